"""The settings of a sweep: the latents to compare, the images and the time."""

from dataclasses import asdict, dataclass
from math import log2
from typing import Any

from jsonargparse.typing import NonNegativeFloat, PositiveFloat, PositiveInt

from hf_latent.data.images.config import ImagesConfig, select_image_settings
from hf_latent.errors import UserError
from hf_latent.models.presets import AUTOENCODERS, FLOW_INFERENCE_STEPS, Preset

NOT_IN_PLAN = {"output_dir", "overwrite_output_dir"}  # a sweep can be moved


@dataclass(frozen=True)
class Pair:
    """One latent of a sweep.

    Attributes:
        factor: downsampling factor f.
        channels: latent channels c.
    """

    factor: int
    channels: int

    @property
    def name(self) -> str:
        """The name of its folder."""
        return f"f{self.factor}-c{self.channels}"


@dataclass(frozen=True, kw_only=True)
class SweepConfig(ImagesConfig):
    """Choose the latent: a short autoencoder and a short denoiser for each factor and channels.

    All autoencoders train equally long, and so do all denoisers. To resume a killed sweep, give
    the same command again.

    Attributes:
        output_dir: The folder for report.md, its plot, report.json, the plan and each pair's runs.
        overwrite_output_dir: Accept a folder with other files in it, and replace a sweep of other
            settings.
        factors: Comma-separated downsampling factors, powers of 2.
        latent_channels: Comma-separated numbers of latent channels.
        max_minutes: Minutes for the whole command, measuring included.
        num_images: Number of generated images a seed, and of real images to compare with.
        num_seeds: How many times to generate the images; the spread of their FDs shows which pairs
            differ.
        num_inference_steps: The sampler's steps, without guidance.
        preset: The autoencoders' configuration. A factor of 2^n uses its first n + 1 widths, and
            repeats the last one if there are too few.
        block_out_channels: Widths of the autoencoders' levels, in place of the preset's.
        denoiser_preset: The denoisers' configuration.
        ldm_kl_weight: LDM's weight of the KL, equal for all pairs: the price of a nat of an image.
            A training's kl_weight is this divided by the ratio of image values to latent values.
    """

    output_dir: str = "hf-latent-sweep"
    overwrite_output_dir: bool = False
    factors: list[int] | int | str = "2,4,8"
    latent_channels: list[int] | int | str = "2,4,8"
    max_minutes: PositiveFloat = 25.0
    num_images: PositiveInt = 500
    num_seeds: PositiveInt = 2
    num_inference_steps: PositiveInt = FLOW_INFERENCE_STEPS
    preset: Preset = "tiny"
    block_out_channels: list[PositiveInt] | None = None
    denoiser_preset: Preset = "tiny"
    ldm_kl_weight: NonNegativeFloat = 1.2e-3

    def __post_init__(self) -> None:
        """Check the values; errors name the flag."""
        super().__post_init__()
        if self.crop == "random":
            raise UserError(
                "--crop random does not go with latents that are encoded once: use center"
            )
        if self.num_seeds < 2:
            raise UserError(
                f"--num_seeds {self.num_seeds} must be at least 2: the spread of their FDs shows "
                "which pairs differ"
            )
        if self.num_images < 2:
            raise UserError(f"--num_images {self.num_images} must be at least 2")
        if self.block_out_channels == []:
            raise UserError("--block_out_channels [] has no width")
        self.pairs()

    def images_config(self) -> ImagesConfig:
        """Return the settings of the images."""
        return ImagesConfig(**select_image_settings(self))

    def pairs(self) -> list[Pair]:
        """Return the latents to compare, in ascending order.

        Raises:
            UserError: if a factor or number of channels is invalid or given twice.
        """
        factors = parse_numbers("factors", self.factors)
        for factor in factors:
            if factor < 2 or factor & (factor - 1):
                raise UserError(f"--factors {factor} must be a power of 2, at least 2")
        channels = parse_numbers("latent_channels", self.latent_channels)
        return [Pair(f, c) for f in factors for c in channels]

    def widths(self, factor: int) -> tuple[int, ...]:
        """Return the widths of an autoencoder's levels, the finest first.

        All pairs have the same width at the same resolution, so they differ only in the latent and
        in the number of levels. The last width is repeated, not doubled: otherwise the largest
        factor would have by far the most weights to train in the same time.

        Args:
            factor: f; 2^n has n + 1 levels.
        """
        known = tuple(self.block_out_channels or AUTOENCODERS[self.preset]["block_out_channels"])
        levels = int(log2(factor)) + 1
        return known[:levels] + known[-1:] * (levels - len(known))

    def settings(self) -> dict[str, Any]:
        """Return the settings that a resumed sweep must share; flat, for JSON."""
        values = {name: value for name, value in asdict(self).items() if name not in NOT_IN_PLAN}
        pairs = self.pairs()
        return values | {
            "factors": sorted({pair.factor for pair in pairs}),
            "latent_channels": sorted({pair.channels for pair in pairs}),
        }


def parse_numbers(name: str, given: list[int] | int | str) -> list[int]:
    """Return the numbers of a recipe's list or of a flag such as `2,4,8`, in ascending order.

    Args:
        name: of the flag, for the message.
        given: its value.

    Raises:
        UserError: if a number is not above 0, or is given twice.
    """
    parts = given if isinstance(given, list) else str(given).strip("[] ").split(",")
    words = [str(part).strip() for part in parts]
    if not words or not all(word.isdecimal() and int(word) for word in words):
        raise UserError(f"--{name} {given} must be numbers above 0, as in --{name} 2,4,8")
    numbers = sorted(map(int, words))
    for number in numbers:
        if numbers.count(number) > 1:
            raise UserError(f"--{name} has {number} twice")
    return numbers
