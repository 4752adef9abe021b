"""Draw the four steps with real latents of the released model, for the README and the site.

python train_scripts/release/draw_four_steps.py --output docs/pictures/four_steps.png
"""

from dataclasses import dataclass
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch

from hf_latent.command import Seed, Settings, run_command
from hf_latent.data.images.config import ImagesConfig
from hf_latent.data.images.open import open_images
from hf_latent.models.load import find_model
from hf_latent.output import replaced_whole
from hf_latent.pipeline import LatentDiffusionPipeline

MODEL = "fashion-mnist"
STEPS = ("encode", "add noise", "denoise", "decode")
WIDTH, HEIGHT = 10, 2.3  # inches
LEVELS = 3.0  # latents have unit variance: black and white are three deviations from the mean


@dataclass(frozen=True, kw_only=True)
class FourStepsConfig(Settings):
    """Draw one test image on its way through the four steps.

    Attributes:
        output: The PNG to write.
        image: Number of the test image.
        noise_level: How much noise is added, between 0 (none) and 1 (noise only).
        seed: Seed of the noise.
    """

    output: str
    image: int = 23
    noise_level: float = 0.6
    seed: Seed = 0


def take_the_steps(
    pipe: LatentDiffusionPipeline, image: torch.Tensor, label: int, noise_level: float, seed: int
) -> dict[str, torch.Tensor]:
    """Encode an image, add noise, denoise, decode.

    Args:
        pipe: the released model, a flow.
        image: `(C, H, W)` float in [-1, 1].
        label: its class.
        noise_level: of the noisy latents.
        seed: of the noise.

    Returns:
        What each step makes: images `(1, C, H, W)` in [-1, 1], latents `(1, c, h, w)`.
    """
    generator = torch.Generator().manual_seed(seed)
    latents = pipe.encode_images(image[None], generator=generator)
    noise = torch.randn(latents.shape, generator=generator)
    noised = pipe.add_noise(latents, noise, torch.tensor([1000 * noise_level]))
    denoised = pipe.denoise_latents(noise, 40, [label], image_latents=latents, strength=noise_level)
    return {
        "images": image[None],
        "latents": latents,
        "noisy latents": noised.noisy_latents,
        "denoised latents": denoised,
        "decoded images": pipe.decode_latents(denoised),
    }


def draw(steps: dict[str, torch.Tensor]) -> Figure:
    """Draw images in grey and latents channel by channel, with an arrow for each step.

    Args:
        steps: of `take_the_steps`, in order.
    """
    figure = Figure(figsize=(WIDTH, HEIGHT), dpi=160)
    boxes, size, gap = {}, 0.68, 0.018  # a box is as high as 0.68 of the figure
    width, ratio = size * HEIGHT / WIDTH, HEIGHT / WIDTH
    for number, (name, values) in enumerate(steps.items()):
        left = 0.02 + number * (0.96 - width) / (len(steps) - 1)
        boxes[name] = left
        is_image = "images" in name
        limit = 1.0 if is_image else LEVELS
        side = 1 if is_image else 2  # four channels make a square of two by two
        part = (width - gap * ratio * 2 * (side - 1)) / side
        for channel, plane in enumerate(values[0]):
            row, column = divmod(channel, side)
            x = left + column * (part + gap * ratio * 2)
            y = 0.12 + size - (row + 1) * part / ratio - row * gap * 2
            axes = figure.add_axes((x, y, part, part / ratio))
            axes.imshow(plane.cpu(), cmap="gray", vmin=-limit, vmax=limit)
            axes.set_axis_off()
        shape = "x".join(map(str, values.shape[1:]))
        figure.text(left + width / 2, 0.04, f"{name}, {shape}", ha="center", size=9)
    names = list(steps)
    for before, after, step in zip(names, names[1:], STEPS, strict=False):
        start, end = boxes[before] + width, boxes[after]
        style: dict[str, Any] = {
            "transform": figure.transFigure,
            "mutation_scale": 14,
            "color": "tab:blue",
        }
        figure.add_artist(FancyArrowPatch((start, 0.46), (end, 0.46), arrowstyle="-|>", **style))
        figure.text((start + end) / 2, 0.86, step, ha="center", size=10, weight="bold")
    return figure


def draw_four_steps(config: FourStepsConfig) -> None:
    """Draw one test image of the released model's data on its way.

    Args:
        config: which image, how much noise, and where to write the picture.
    """
    pipe = LatentDiffusionPipeline.from_pretrained(find_model(MODEL))
    pipe.set_progress_bar_config(disable=True)
    images = open_images(ImagesConfig(data="fashion_mnist", resolution=32, resize_mode="pad"))
    item = images.validation[config.image]
    steps = take_the_steps(
        pipe, item["images"], int(item["class_labels"]), config.noise_level, config.seed
    )
    with replaced_whole(config.output) as temporary:
        draw(steps).savefig(temporary, facecolor="white")


if __name__ == "__main__":
    run_command(FourStepsConfig, draw_four_steps)
