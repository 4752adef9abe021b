"""How much of the brightness and of the colours of images their reconstructions keep."""

import torch

# Luma and colour differences of ITU-R BT.601, as JPEG has them (ITU-T T.871, section 7), from RGB.
TO_LUMA_AND_CHROMA = torch.tensor(
    [[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]],
    dtype=torch.float64,
)
# Colours are not measured below this variance: a deviation of one of 255 levels.
SMALLEST_VARIANCE = (1 / 255) ** 2


class ColourFit:
    """The coefficient of determination (R2) of luma and of chroma, over all pixels of all images.

    1 is perfect, 0 is no better than the mean colour of all images, and less is worse.
    """

    def __init__(self) -> None:
        """Start without images."""
        self._pixels = 0
        self._sum, self._square, self._error = torch.zeros(3, 3, dtype=torch.float64)

    def update(self, originals: torch.Tensor, reconstructions: torch.Tensor) -> None:
        """Add images `(B, 3, H, W)` in [0, 1] and their reconstructions."""
        matrix = TO_LUMA_AND_CHROMA.float()
        first, second = (
            torch.einsum("yc,bchw->ybhw", matrix, x.float()).flatten(1).double()
            for x in (originals, reconstructions)
        )
        self._pixels += first.shape[1]
        self._sum += first.sum(1)
        self._square += first.square().sum(1)
        self._error += (second - first).square().sum(1)

    def compute(self) -> dict[str, float]:
        """Return `luma_r2` and `chroma_r2`; what hardly varies in the originals is missing."""
        variance = self._square / self._pixels - (self._sum / self._pixels).square()
        error = self._error / self._pixels
        parts = {"luma_r2": slice(0, 1), "chroma_r2": slice(1, 3)}
        return {
            name: (1 - error[part].sum() / variance[part].sum()).item()
            for name, part in parts.items()
            if variance[part].sum() > SMALLEST_VARIANCE
        }
