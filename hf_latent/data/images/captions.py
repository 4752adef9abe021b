"""The captions of a data set's images, as numbers of distinct texts."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

# In place of a caption that an image does not have.
NO_CAPTION = -1
MOST_ALTERNATIVES = 1000


@dataclass(frozen=True)
class CaptionTexts:
    """The distinct captions of a data set.

    Attributes:
        texts: sorted; the first is the empty text, which stands for no caption.
        alternatives: K, the highest number of captions of an image.
    """

    texts: tuple[str, ...]
    alternatives: int

    @classmethod
    def of(cls, captions: Sequence[Sequence[Sequence[str]]]) -> "CaptionTexts":
        """Collect the captions of each image of each split."""
        several = [texts for split in captions for texts in split]
        distinct = {text for texts in several for text in texts}
        return cls(("", *sorted(distinct)), max(1, *map(len, several)))

    def number(self, captions: Sequence[Sequence[str]]) -> torch.Tensor:
        """Return the numbers `(n, K)` int64 of the captions of n images.

        An image with fewer than K has `NO_CAPTION` in their place, at the end.
        """
        number_of = {text: number for number, text in enumerate(self.texts)}
        found = np.full((len(captions), self.alternatives), NO_CAPTION, np.int64)
        for row, texts in zip(found, captions, strict=True):
            row[: len(texts)] = [number_of[text] for text in texts]
        return torch.from_numpy(found)


def choose_captions(numbers: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Choose one of each image's captions.

    Args:
        numbers: `(B, K)` int64, of `CaptionTexts.number`.
        uniform: `(B,)` in [0, 1], decides.

    Returns:
        `(B,)` int64; 0, the empty text, for an image without captions.
    """
    counts = (numbers != NO_CAPTION).sum(1)
    places = torch.minimum((uniform * counts).long(), counts - 1).clamp(min=0)
    chosen = numbers.gather(1, places[:, None])[:, 0]
    return torch.where(counts > 0, chosen, 0)
