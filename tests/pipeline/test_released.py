"""The released model generates the same images as when it was released."""

from pathlib import Path

import torch
from safetensors.torch import load_file

from hf_latent.models.load import PRETRAINED
from hf_latent.pipeline import LatentDiffusionPipeline

# Generated when the model was released: labels Coat, Bag, 7 with seeds 0, 1, 2.
DRAWN = Path(__file__).with_name("drawn_when_released.safetensors")


def test_the_released_model_generates_the_same_pixels_as_when_it_was_released():
    expected = load_file(DRAWN)
    pipeline = LatentDiffusionPipeline.from_pretrained(
        PRETRAINED / "fashion-mnist", dtype=torch.float32
    )
    pipeline.set_progress_bar_config(disable=True)

    def draw(output_type: str) -> torch.Tensor:
        seeds = [torch.Generator().manual_seed(seed) for seed in range(3)]
        return pipeline(["Coat", "Bag", 7], generator=seeds, output_type=output_type).images

    torch.testing.assert_close(draw("latent"), expected["latents"], rtol=0, atol=1e-4)
    pixels = (draw("pt") * 255).round()
    torch.testing.assert_close(pixels, expected["pixels"].float(), rtol=0, atol=1)
