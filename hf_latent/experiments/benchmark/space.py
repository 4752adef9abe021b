"""Cost of a denoiser on pixels, compared with the same denoiser on latents."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from diffusers import UNet2DModel
from jsonargparse.typing import PositiveFloat, PositiveInt
from torch._subclasses.fake_tensor import FakeTensorMode

from hf_latent.data.device import fastest_device
from hf_latent.errors import UserError
from hf_latent.evaluation.costs import Costs, measure_peak_bytes
from hf_latent.evaluation.timing import time_alternately
from hf_latent.experiments.benchmark.benchmark import (
    BenchmarkConfig,
    median_ratio,
    run_benchmark,
)
from hf_latent.experiments.benchmark.space_plot import draw_costs
from hf_latent.models.frozen import freeze
from hf_latent.models.presets import Preset, create_autoencoder
from hf_latent.output import replaced_whole
from hf_latent.pipeline.decode import decode_latents

FACTOR, LATENT_CHANNELS = 8, 4
SMALLEST = FACTOR * 8  # the denoisers halve the size three times
# The presets whose decoders end an image of the latent side.
AUTOENCODERS: tuple[Preset, ...] = ("base", "base-fast")
# Four levels each. Self-attention costs the square of the number of positions.
DENOISERS: dict[str, dict[str, Any]] = {
    "attention at the lowest level": {
        "block_out_channels": (64, 128, 192, 256),
        "down_block_types": (*("DownBlock2D",) * 3, "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", *("UpBlock2D",) * 3),
        "attention_head_dim": 32,
        "layers_per_block": 1,
    },
    "attention at every level": {
        "block_out_channels": (32, 64, 96, 128),
        "down_block_types": ("AttnDownBlock2D",) * 4,
        "up_block_types": ("AttnUpBlock2D",) * 4,
        "attention_head_dim": 32,
        "norm_num_groups": 16,
        "layers_per_block": 1,
    },
}
KINDS = ("step", "training_step")
Shape = tuple[int, int, int, int]


@dataclass(frozen=True, kw_only=True)
class SpaceBenchmarkConfig(BenchmarkConfig):
    """Compare a denoiser on pixels with the same one on latents; write bench.json and space.png.

    Latents have 8 times fewer rows and columns than images, and 4 channels. Two denoisers are
    measured, one with self-attention at its lowest level, one at every level: the time of a
    denoising step and of a training step, and their activations, which are the memory beyond
    weights, gradients and optimizer. Operations are counted without computing, and so are the
    activations on a CPU. An image on latents is timed twice: decoded by preset base, and by
    base-fast.

    Attributes:
        resolutions: Sizes of the square RGB images in pixels, multiples of 64. By default 64, 128,
            256 and 512.
        batch_size: Images of a step. A small step on latents mostly starts operations: with one
            image it gains less than its operations. Four images of 512 pixels take 15 GB.
        num_inference_steps: Denoising steps of a whole image.
        max_step_seconds: A step that would take longer is counted and not timed.
    """

    rounds: PositiveInt = 5
    resolutions: list[PositiveInt] | None = None
    batch_size: PositiveInt = 4
    num_inference_steps: PositiveInt = 20
    max_step_seconds: PositiveFloat = 120.0

    def __post_init__(self) -> None:
        """Check the sizes."""
        super().__post_init__()
        for size in self.resolutions or ():
            if size % SMALLEST:
                raise UserError(f"--resolutions {size} must be a multiple of {SMALLEST}")


class Side:
    """A denoiser in one space, with its optimizer and a batch.

    Args:
        name: a key of `DENOISERS`.
        shape: of the batch, `(B, C, H, W)`.
        device: of all tensors.
    """

    def __init__(self, name: str, shape: Shape, device: torch.device):
        """Create the model and random inputs."""
        channels = shape[1]
        with device:  # fake tensors cannot be moved
            self.unet = UNet2DModel(in_channels=channels, out_channels=channels, **DENOISERS[name])
        self.optimizer = torch.optim.AdamW(self.unet.parameters(), 1e-4, fused=True)
        self.noisy, self.target = torch.randn(2, *shape, device=device)
        self.timesteps = torch.full(shape[:1], 500.0, device=device)

    @torch.no_grad()
    def step(self) -> None:
        """Compute the denoiser once, as a sampler does."""
        self.unet(self.noisy, self.timesteps)

    def training_step(self) -> None:
        """Compute the denoiser, its gradients, and new weights."""
        output = self.unet(self.noisy, self.timesteps).sample
        (output - self.target).square().mean().backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=False)  # so that gradients stay and do not count


def benchmark_space(config: SpaceBenchmarkConfig) -> dict[str, Any]:
    """Measure every denoiser at every size; draw the plot; return figures for bench.json."""
    points = []
    for name in DENOISERS:
        speeds: dict[str, float] = {}
        for resolution in sorted(config.resolutions or (64, 128, 256, 512)):
            points.append(measure_point(name, resolution, speeds, config))
            print(describe_point(points[-1]), flush=True)
    with replaced_whole(Path(config.output_dir) / "space.png") as temporary:
        draw_costs(points, temporary)
    settings = ("rounds", "batch_size", "num_inference_steps")
    return {"points": points, **{name: getattr(config, name) for name in settings}}


def measure_point(
    name: str, resolution: int, speeds: dict[str, float], config: SpaceBenchmarkConfig
) -> dict[str, Any]:
    """Measure a denoiser at one size of images.

    Args:
        name: a key of `DENOISERS`.
        resolution: of the images, in pixels.
        speeds: operations a second on pixels at the last size, by kind of step; updated here.
        config: the settings.

    Returns:
        Operations and activations of both sides; seconds and their ratio for what was timed, and
        an estimate of the seconds for what was not.
    """
    batch_size, size = config.batch_size, resolution // FACTOR
    shapes = {
        "pixels": (batch_size, 3, resolution, resolution),
        "latents": (batch_size, LATENT_CHANNELS, size, size),
    }
    device = fastest_device()
    point: dict[str, Any] = {"denoiser": name, "resolution": resolution}
    for space, shape in shapes.items():
        point |= count_costs(name, shape, space, device)
    sides = {space: Side(name, shape, device) for space, shape in shapes.items()}
    for kind in KINDS:
        operations = {space: point[f"{space}_{kind}_operations"] for space in sides}
        point[f"{kind}_operations_ratio"] = operations["pixels"] / operations["latents"]
        calls = {space: getattr(side, kind) for space, side in sides.items()}
        # A training step makes about as many operations a second as a denoising step.
        speed = speeds.get(kind) or speeds.get("step") or float("inf")
        estimate = operations["pixels"] / speed
        if estimate > config.max_step_seconds:
            point[f"pixels_{kind}_estimated_seconds"] = estimate
            del calls["pixels"]
        point |= {
            f"{space}_{kind}_seconds": seconds
            for space, seconds in time_alternately(calls, config.rounds).items()
        }
        if device.type != "cpu":
            for space, call in calls.items():
                point[f"{space}_{kind}_activations_mb"] = measure_peak_bytes(call) / 2**20
        if "pixels" in calls:
            seconds = point[f"pixels_{kind}_seconds"]
            speeds[kind] = operations["pixels"] / median(seconds)
            point[f"{kind}_ratio_median"] = median_ratio(seconds, point[f"latents_{kind}_seconds"])
    return point | measure_image(point, resolution, config)


def count_costs(name: str, shape: Shape, space: str, device: torch.device) -> dict[str, Any]:
    """Return parameters, and operations and activations of both kinds of step, uncomputed."""
    costs: dict[str, Any] = {}
    with FakeTensorMode():
        side = Side(name, shape, device)
        side.training_step()  # makes the gradients and the optimizer's state
        for kind in KINDS:
            call = getattr(side, kind)
            with Costs() as counted:
                call()
            costs[f"{space}_{kind}_operations"] = counted.operations
            costs[f"{space}_{kind}_activations_mb"] = counted.peak_bytes / 2**20
    return {f"{space}_parameters": side.unet.num_parameters(), **costs}


def measure_image(
    point: dict[str, Any], resolution: int, config: SpaceBenchmarkConfig
) -> dict[str, Any]:
    """Time each autoencoder's decoder.

    Returns:
        By preset: the decoder's seconds, those in steps on latents, the median seconds of a whole
        image, and their ratio if a step on pixels was timed.
    """
    steps, size = config.num_inference_steps, resolution // FACTOR
    device, latent_step = fastest_device(), median(point["latents_step_seconds"])
    latents = torch.randn(config.batch_size, LATENT_CHANNELS, size, size, device=device)
    calls: dict[str, Callable[[], Any]] = {}
    for preset in AUTOENCODERS:
        vae = create_autoencoder(preset, 3, resolution, latent_channels=LATENT_CHANNELS)
        calls[preset] = partial(torch.no_grad()(decode_latents), freeze(vae).to(device), latents)
    images = {}
    for name, seconds in time_alternately(calls, config.rounds).items():
        image = median(seconds) + steps * latent_step
        images[name] = {
            "decode_seconds": seconds,
            "decode_steps": median(seconds) / latent_step,
            "seconds_median": image,
        }
        if "pixels_step_seconds" in point:
            images[name]["ratio"] = steps * median(point["pixels_step_seconds"]) / image
    return {"images": images}


def describe_point(point: dict[str, Any]) -> str:
    """Return one line: how many times less a step on latents costs."""
    parts = []
    for kind, words in (("step", "a step"), ("training_step", "a training step")):
        ratio = point.get(f"{kind}_ratio_median")
        timed = "not timed" if ratio is None else f"{ratio:.1f} times faster"
        pixels, latents = (point[f"{x}_{kind}_activations_mb"] for x in ("pixels", "latents"))
        parts.append(
            f"{words} {timed}, {point[f'{kind}_operations_ratio']:.1f} times fewer operations, "
            f"{pixels / latents:.1f} times less memory of activations"
        )
    parts += [
        f"an image decoded by {preset} {image['ratio']:.1f} times faster"
        for preset, image in point["images"].items()
        if "ratio" in image
    ]
    return f"{point['denoiser']}, {point['resolution']} pixels: on latents {'; '.join(parts)}"


def run(config: SpaceBenchmarkConfig) -> dict[str, Any]:
    """Measure, and write bench.json and space.png; return the content of bench.json."""
    return run_benchmark(config, "space", benchmark_space)
