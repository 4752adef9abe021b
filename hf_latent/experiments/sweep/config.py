"""The settings of a sweep: which latents are compared, on what, and for how long."""

from dataclasses import asdict, dataclass, fields
from math import log2
from typing import Any, Literal

from jsonargparse.typing import NonNegativeFloat, PositiveFloat, PositiveInt

from hf_latent.data.images.config import ImagesConfig
from hf_latent.errors import UserError
from hf_latent.models.presets import AUTOENCODERS, Preset

# Where a sweep lies is no part of what it is.
PLACE = {"output_dir", "overwrite_output_dir"}


@dataclass(frozen=True)
class Pair:
    """One latent of a sweep.

    Attributes:
        factor: f, how many times lower and narrower than the image the latent is.
        channels: c, of the latent.
    """

    factor: int
    channels: int

    @property
    def name(self) -> str:
        """What its folder is called."""
        return f"f{self.factor}-c{self.channels}"


@dataclass(frozen=True, kw_only=True)
class SweepConfig(ImagesConfig):
    """Choose the latent: a short autoencoder and a short denoiser for each factor and channels.

    All autoencoders train for equally long, and so do all denoisers. A sweep that was killed goes
    on where it was when the same command is given again.

    Attributes:
        output_dir: for report.md, its plot and report.json, the plan, and a folder a pair.
        overwrite_output_dir: accept a folder with other files in it, and replace a sweep of other
            settings.
        factors: downsampling factors, powers of 2, with commas between.
        channels: numbers of latent channels, with commas between.
        image_channels: of the images: 1 for grey, 3 for RGB, 4 for RGBA. By default what the first
            training image has.
        max_minutes: for the whole command; measuring is reserved first, the rest is training.
        num_images: generated images a seed, and as many real ones to compare with.
        num_seeds: how often they are generated, each time from other noise; how far their FDs lie
            apart tells which pairs differ.
        num_inference_steps: sampling steps, without guidance.
        preset: the autoencoders' configuration. A factor of 2^n takes its first n + 1 widths, and
            the last one again where there are too few.
        block_out_channels: widths of the autoencoders' levels, in place of the preset's.
        denoiser_preset: the denoisers' configuration.
        kl_weight: the price of a nat of an image's latent, as LDM counts it; equal for all pairs.
    """

    output_dir: str = "hf-latent-sweep"
    overwrite_output_dir: bool = False
    factors: list[int] | int | str = "2,4,8"
    # The flag's short name is the latent's here: `images_config` has that of the images.
    channels: list[int] | int | str = "2,4,8"  # type: ignore[assignment]
    image_channels: Literal[1, 3, 4] | None = None
    max_minutes: PositiveFloat = 25.0
    num_images: PositiveInt = 500
    num_seeds: PositiveInt = 2
    num_inference_steps: PositiveInt = 20
    preset: Preset = "tiny"
    block_out_channels: list[PositiveInt] | None = None
    denoiser_preset: Preset = "tiny"
    kl_weight: NonNegativeFloat = 1.2e-3

    def __post_init__(self) -> None:
        """Refuse values that cannot work, naming the flag."""
        super(ImagesConfig, self).__post_init__()  # these channels are not ImagesConfig's
        self.images_config()
        if self.crop == "random":
            raise UserError(
                "--crop random does not go with latents that are encoded once: use center"
            )
        if self.num_seeds < 2:
            raise UserError(
                f"--num_seeds {self.num_seeds} must be at least 2: how far their FDs lie apart "
                "tells which pairs differ"
            )
        if self.num_images < 2:
            raise UserError(f"--num_images {self.num_images} must be at least 2")
        if self.block_out_channels == []:
            raise UserError("--block_out_channels [] has no width")
        self.pairs()

    def images_config(self) -> ImagesConfig:
        """Return which images are used, and how."""
        values = {field.name: getattr(self, field.name) for field in fields(ImagesConfig)}
        return ImagesConfig(**values | {"channels": self.image_channels})

    def pairs(self) -> list[Pair]:
        """Return the latents to compare, in ascending order.

        Raises:
            UserError: if a factor or number of channels cannot be, or is given twice.
        """
        factors = parse_numbers("factors", self.factors)
        for factor in factors:
            if factor < 2 or factor & (factor - 1):
                raise UserError(f"--factors {factor} must be a power of 2, from 2 on")
        channels = parse_numbers("channels", self.channels)
        return [Pair(f, c) for f in factors for c in channels]

    def widths(self, factor: int) -> tuple[int, ...]:
        """Return the widths of an autoencoder's levels, the finest first.

        All pairs share the widths at equal resolution, so that they differ in the latent, and in
        no more than the levels that it takes. That the last width is repeated and not doubled
        keeps the largest factor from having by far the most weights to train in as much time.

        Args:
            factor: f; n halvings take n + 1 levels.
        """
        known = tuple(self.block_out_channels or AUTOENCODERS[self.preset]["block_out_channels"])
        levels = int(log2(factor)) + 1
        return known[:levels] + known[-1:] * (levels - len(known))

    def settings(self) -> dict[str, Any]:
        """Return all that makes one sweep another, flat, as JSON can hold it."""
        values = {name: value for name, value in asdict(self).items() if name not in PLACE}
        pairs = self.pairs()
        return values | {
            "factors": sorted({pair.factor for pair in pairs}),
            "channels": sorted({pair.channels for pair in pairs}),
        }


def parse_numbers(name: str, given: list[int] | int | str) -> list[int]:
    """Read numbers from a recipe's list or a command line's `2,4,8`.

    Args:
        name: of the flag, for the message.
        given: the value.

    Returns:
        The numbers, ascending.

    Raises:
        UserError: if one is not above 0, or stands there twice.
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
