"""CLIP score (Hessel et al. 2021): how well images fit their captions, as a CLIP model sees both.

The formula is that of torchmetrics: 100 times the mean cosine of the embeddings of an image and of
its caption, and 0 if that is negative. torchmetrics' own class takes no model of transformers 5,
which returns records, and cuts the last token off long captions, where CLIP reads the embedding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import normalize

from hf_latent.data.device import fastest_device
from hf_latent.evaluation.features.extractors import as_rgb_pixels
from hf_latent.models.frozen import freeze
from hf_latent.models.load import loading


@dataclass(frozen=True)
class ClipScore:
    """A CLIP model that scores images with captions.

    Attributes:
        model: a `transformers.CLIPModel`.
        processor: its `CLIPProcessor`.
    """

    model: Any
    processor: Any

    @torch.no_grad()
    def scores(self, images: torch.Tensor, captions: Sequence[str]) -> torch.Tensor:
        """Return 100 times the cosine of each image and its caption, `(B,)` float32 on the CPU.

        Args:
            images: `(B, C, H, W)` uint8; C is 1, 3 or 4, see `as_rgb_pixels`.
            captions: B texts; the model's tokenizer cuts long ones.
        """
        device, tokenizer = self.model.device, self.processor.tokenizer
        pictures = list((as_rgb_pixels(images) * 255).round().byte())
        pixels = self.processor.image_processor(pictures, return_tensors="pt").pixel_values
        tokens = tokenizer(list(captions), padding=True, truncation=True, return_tensors="pt")
        words = {name: tokens[name].to(device) for name in ("input_ids", "attention_mask")}
        seen = self.model.get_image_features(pixels.to(device)).pooler_output
        read = self.model.get_text_features(**words).pooler_output
        return 100 * (normalize(seen, dim=1) * normalize(read, dim=1)).sum(1).float().cpu()


def mean_score(scores: torch.Tensor) -> float:
    """Return the CLIP score of many images: the mean of their scores, at least 0."""
    return max(scores.double().mean().item(), 0.0)


def load_clip(name: str) -> ClipScore:
    """Load a CLIP model from safetensors onto the accelerator, or the CPU if there is none.

    Args:
        name: a folder, or an id on the Hub.

    Returns:
        The model, frozen, in float32.

    Raises:
        UserError: if there is no such model, or weights are missing.
    """
    from transformers import CLIPModel, CLIPProcessor

    kind: Any = CLIPModel
    with loading(name, "CLIP model"):
        model, found = kind.from_pretrained(
            name, use_safetensors=True, output_loading_info=True, dtype="float32"
        )
        if missing := sorted(found["missing_keys"]):
            raise ValueError(f"it lacks the weights {', '.join(missing[:3])}")
        processor = CLIPProcessor.from_pretrained(name)
    positions = model.config.text_config.max_position_embeddings
    tokenizer = processor.tokenizer
    tokenizer.model_max_length = min(tokenizer.model_max_length, positions)
    return ClipScore(freeze(model).to(fastest_device()), processor)
