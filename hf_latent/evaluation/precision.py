"""The dtype to sample in, and whether bfloat16 is worth it on this machine."""

import logging
import time
from collections.abc import Callable
from copy import deepcopy
from typing import Any, Literal

import torch
from torch import nn

from hf_latent.pipeline import LatentDiffusionPipeline
from hf_latent.pipeline.conditions import has_prompts, null_conditions
from hf_latent.pipeline.prompts import prompt_conditions

logger = logging.getLogger(__name__)

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
SECONDS = 0.5  # of a comparison
WORTH = 1.1  # bfloat16 keeps 3 digits, so it has to be this many times faster
TOO_SLOW = 0.25
IMAGES = 8


def speed_ratio(first: Callable[[], Any], second: Callable[[], Any], seconds: float) -> float:
    """Return how many times faster the second call is than the first, on the CPU.

    Args:
        first: called in turn with `second`, at least once after a call for warm-up.
        second: see `first`.
        seconds: no round starts after so many.
    """
    first(), second()
    times: tuple[list[float], list[float]] = ([], [])
    end = time.perf_counter() + seconds
    while not times[0] or time.perf_counter() < end:
        for call, own in zip((first, second), times, strict=True):
            start = time.perf_counter()
            call()
            own.append(time.perf_counter() - start)
    return min(times[0]) / min(times[1])


def small_product_bf16_speed() -> float:
    """Return how many times faster a small matrix product is in bfloat16, on the CPU.

    A processor without bfloat16 can take hundreds of times as long, so larger work is measured only
    if this is at least `TOO_SLOW`.
    """
    matrix = torch.randn(256, 256)
    rounded = matrix.bfloat16()
    return speed_ratio(lambda: matrix @ matrix, lambda: rounded @ rounded, 0)


def bf16_speed(in_float32: Callable[[], Any], in_bf16: Callable[[], Any]) -> float:
    """Return how many times faster bfloat16 is than float32, on the CPU.

    Args:
        in_float32: the work in float32.
        in_bf16: the same in bfloat16; not called if a small product is far too slow.
    """
    speed = small_product_bf16_speed()
    return speed if speed < TOO_SLOW else speed_ratio(in_float32, in_bf16, SECONDS)


@torch.no_grad()
def denoiser_bf16_speed(pipeline: LatentDiffusionPipeline) -> float:
    """Return how many times faster a pipeline's denoiser is in bfloat16, on the CPU.

    Args:
        pipeline: in float32.
    """
    unet, timesteps = pipeline.unet, torch.zeros(IMAGES)
    inputs = {"sample": torch.zeros(IMAGES, unet.config.in_channels, *pipeline.latent_size)}
    inputs |= null_conditions(unet, IMAGES, "cpu")
    inputs |= prompt_conditions(pipeline, [""] if has_prompts(unet) else None, IMAGES)
    rounded = {k: x.bfloat16() if x.is_floating_point() else x for k, x in inputs.items()}
    in_bf16 = deepcopy(unet).bfloat16()
    return bf16_speed(
        lambda: unet(timestep=timesteps, **inputs),
        lambda: in_bf16(timestep=timesteps, **rounded),
    )


def choose_dtype(pipeline: LatentDiffusionPipeline, dtype: Dtype) -> torch.dtype:
    """Return the dtype to sample in.

    Args:
        pipeline: in float32.
        dtype: auto is bfloat16 on a GPU that has it, and on a CPU on which it makes the denoiser
            faster, which is measured in about a second; else float32.
    """
    if dtype != "auto":
        return getattr(torch, dtype)
    if pipeline.device.type == "cpu":
        speed = denoiser_bf16_speed(pipeline)
        chosen = torch.bfloat16 if speed >= WORTH else torch.float32
        reason = f"bfloat16 is {speed:.2g} times as fast as float32 here"
    else:
        has = pipeline.device.type == "cuda" and torch.cuda.is_bf16_supported(
            including_emulation=False
        )
        chosen = torch.bfloat16 if has else torch.float32
        reason = f"this device has {'' if has else 'no '}bfloat16"
    logger.info(f"dtype: {str(chosen).removeprefix('torch.')}; {reason}")
    return chosen


def in_dtype(pipeline: LatentDiffusionPipeline, dtype: torch.dtype) -> LatentDiffusionPipeline:
    """Return the pipeline if its models have this dtype, otherwise a copy whose models have it."""
    if pipeline.dtype == dtype:
        return pipeline
    pipeline = deepcopy(pipeline)
    for part in pipeline.components.values():
        if isinstance(part, nn.Module):
            nn.Module.to(part, dtype)  # diffusers' own `to` warns of modules that it does not name
    return pipeline
