"""`--dry_run`: what a training needs, from its own models and a few measured steps."""

import copy
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import chain
from typing import Any, NoReturn

import psutil
import torch
from accelerate import Accelerator
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from hf_latent.data.images.dataset import ImageDataset
from hf_latent.evaluation.costs import (
    Costs,
    product_rate,
)
from hf_latent.evaluation.machine import device_name
from hf_latent.evaluation.timing import seconds_per_call
from hf_latent.models.presets import Compression
from hf_latent.training.dry_run.bare import BareLoop, Models, Shape
from hf_latent.training.run.accelerator import ImageTrainingConfig, TrainingConfig
from hf_latent.training.run.checkpoints import TrainingState

logger = logging.getLogger(__name__)

MB = 2**20
LONGEST_SECONDS, SECONDS = 3.0, 0.5  # of a measured step, and of measuring a short one
SHARE_OF_PRODUCT_RATE = 0.5  # of a training's operations a second, see `hf-latent bench loop`
SMALLEST = 128  # images are not measured smaller; the sizes of every model divide it
SHARE_OF_FREE_MEMORY = 0.8  # that a measured step may use
READ_IMAGES = 16


class DryRunEnd(SystemExit):
    """Ends a dry run, with status 0.

    Attributes:
        figures: what was found.
    """

    def __init__(self, figures: dict[str, Any]):
        """Keep the figures."""
        super().__init__(0)
        self.figures = figures


def end_dry_run(
    config: TrainingConfig,
    create_loop: Callable[[Any, Models, Shape, torch.device], BareLoop],
    state: TrainingState,
    frozen: Mapping[str, nn.Module | None],
    compression: Compression,
    train_images: int | None,
    images: ImageDataset | None,
    accelerator: Accelerator,
) -> NoReturn:
    """Print what a training needs, and end it; called after the checks of its start.

    Args:
        config: the settings of the training.
        create_loop: makes its bare loop.
        state: of the training, before its first step.
        frozen: the other models on the device, by name.
        compression: of the images.
        train_images: number of training images; None if it needs none.
        images: those that each step reads; None if it reads latents.
        accelerator: its first process prints.

    Raises:
        DryRunEnd: always, with the figures.
    """
    precision: Any = accelerator.mixed_precision  # by default that of the device
    config = replace(config, mixed_precision=precision)
    device, processes = accelerator.device, accelerator.num_processes
    others = {name: model for name, model in frozen.items() if model is not None}
    models: Models = {**state.models, **others}
    channels, height, width = compression.image_shape
    shape = (config.train_batch_size, channels, height, width)

    def create(models: Models, shape: Shape) -> BareLoop:
        return create_loop(config, models, shape, device)

    figures: dict[str, Any] = {
        "image_shape": list(compression.image_shape),
        "latent_shape": list(compression.latent_shape),
        "train_images": train_images,
        "trained_parameters": {
            name: count_parameters(x, trained=True) for name, x in state.models.items()
        },
        "frozen_parameters": {name: count_parameters(x) for name, x in others.items()},
        "processes": processes,
        "train_batch_size": shape[0],
        "images_per_step": shape[0] * config.gradient_accumulation_steps * processes,
        "device_name": device_name(),
    }
    operations, held_bytes = count_batch(config, create, models, shape)
    figures |= memory_figures(state, models, held_bytes, processes)
    free_mb = measure_free_mb(device)
    figures["available_mb"] = free_mb + figures["parameters_mb"] + figures["average_mb"]

    # How many images of full size a measured step may have, by memory and by time.
    room = SHARE_OF_FREE_MEMORY * free_mb - figures["gradients_mb"] - figures["optimizer_mb"]
    fitting = room / max(figures["activations_mb"] / shape[0], 1)
    rate = SHARE_OF_PRODUCT_RATE * product_rate(torch.float32, device)
    affordable = LONGEST_SECONDS * rate / (operations / shape[0])
    if fitting >= 1:
        measured = choose_shape(shape, min(fitting, affordable))
        seconds = measure_step(config, create(models, measured), shape, measured, images)
        figures |= {"measured_shape": list(measured), "step_seconds": seconds}
    figures |= length_figures(config, figures)
    for line in describe(figures):
        logger.info(line)
    raise DryRunEnd(figures)


def count_parameters(model: nn.Module, trained: bool = False) -> int:
    """Return the number of a model's parameters, or of those that are trained."""
    return sum(x.numel() for x in model.parameters() if x.requires_grad or not trained)


def count_batch(
    config: TrainingConfig,
    create: Callable[[Models, Shape], BareLoop],
    models: Models,
    shape: Shape,
) -> tuple[int, int]:
    """Return the operations of a batch, and the most bytes of gradients and all that it holds.

    Nothing is computed. If several batches make a step, there are gradients of an earlier one.
    """
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        # A deep copy takes the fake tensors of the memo in place of copies.
        tensors = chain(*(chain(x.parameters(), x.buffers()) for x in models.values()))
        memo: dict[int, Any] = {id(tensor): mode.from_tensor(tensor) for tensor in tensors}
        loop = create(copy.deepcopy(models, memo), shape)
        if config.gradient_accumulation_steps > 1:
            loop.add_gradients()
        trained = chain(*(x.parameters() for x in loop.models))
        before = _bytes(x.grad for x in trained if x.grad is not None)
        with Costs() as costs:
            loop.add_gradients()
    return costs.operations, before + costs.peak_bytes


def memory_figures(
    state: TrainingState, models: Models, held_bytes: int, processes: int
) -> dict[str, float]:
    """Return what fills the memory of the device in a training step, and the sum.

    Args:
        state: of the training.
        models: all on the device.
        held_bytes: as `count_batch` returns.
        processes: of the training. DistributedDataParallel keeps a second copy of the gradients.
    """
    parts = [chain(x.parameters(), x.buffers()) for x in models.values()]
    trained = [x for model in state.models.values() for x in model.parameters()]
    gradients = _bytes(x for x in trained if x.requires_grad)
    averages = [x for kinds in state.averages.values() for x in kinds.values()]
    memory = {
        "parameters_mb": _bytes(chain(*parts)) / MB,
        "gradients_mb": gradients * (1 if processes == 1 else 2) / MB,
        "optimizer_mb": 2 * gradients / MB,  # AdamW's two moments
        "average_mb": _bytes(x for average in averages for x in average.shadow_params) / MB,
        "activations_mb": max(held_bytes - gradients, 0) / MB,
    }
    # A checkpoint has the trained models, their averages and the moments.
    files = _bytes(trained) / MB + memory["average_mb"] + memory["optimizer_mb"]
    return memory | {"memory_mb": sum(memory.values()), "checkpoint_mb": files}


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(x.nbytes for x in tensors)


def measure_free_mb(device: torch.device) -> float:
    """Return the free memory of a device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] / MB
    return psutil.virtual_memory().available / MB


def choose_shape(shape: Shape, affordable: float) -> Shape:
    """Return the shape of a batch to measure: fewer images, or one smaller image.

    Args:
        shape: of a batch of the training, `(B, C, H, W)`.
        affordable: number of images that a measured step may have.
    """
    count, channels, height, width = shape
    while affordable < 1 and height % (2 * SMALLEST) == width % (2 * SMALLEST) == 0:
        height, width, affordable = height // 2, width // 2, affordable * 4
    return max(1, min(count, int(affordable))), channels, height, width


def measure_step(
    config: TrainingConfig,
    loop: BareLoop,
    shape: Shape,
    measured: Shape,
    images: ImageDataset | None,
) -> float:
    """Return the seconds of a step, measured with another batch, and with reading its images.

    Args:
        config: the settings of the training.
        loop: of batches of the shape `measured`.
        shape: of the training's batches.
        measured: as `choose_shape` returns.
        images: as in `end_dry_run`.
    """
    loop.step()  # prepares kernels and the optimizer
    batch = seconds_per_call(loop.add_gradients, SECONDS) * math.prod(shape) / math.prod(measured)
    update = seconds_per_call(loop.update, 1e-9)  # once: it takes the gradients
    parts = config.gradient_accumulation_steps
    seconds, reading = parts * batch + update, parts * shape[0] * _read_seconds(images)
    workers = config.dataloader_num_workers if isinstance(config, ImageTrainingConfig) else 0
    return max(seconds, reading / workers) if workers else seconds + reading


def _read_seconds(images: ImageDataset | None) -> float:
    """Return the time of reading one image, in this process."""
    if images is None:
        return 0.0
    part = images.evenly_spaced(READ_IMAGES)
    for _ in range(2):  # images that are kept in memory are decoded once
        seconds = seconds_per_call(lambda: [part[i] for i in range(len(part))], 1e-9)
    return seconds / len(part)


def length_figures(config: TrainingConfig, figures: dict[str, Any]) -> dict[str, Any]:
    """Return steps, epochs and hours of the run, as far as they are known."""
    steps, seconds = config.max_train_steps, figures.get("step_seconds")
    if config.max_train_minutes is not None:
        steps = int(60 * config.max_train_minutes / seconds) if seconds else None
    if steps is None:
        return {}
    length: dict[str, Any] = {"steps": steps}
    if figures["train_images"] is not None:
        length["epochs"] = steps * figures["images_per_step"] / figures["train_images"]
    return length | ({"hours": steps * seconds / 3600} if seconds else {})


def describe(figures: dict[str, Any]) -> Iterator[str]:
    """Yield lines for a person."""

    def numbers(kind: str) -> str:
        parts = (f"{name} {x / 1e6:,.1f} M" for name, x in figures[f"{kind}_parameters"].items())
        return ", ".join(parts) or "none"

    def size(name: str) -> str:
        return f"{figures[f'{name}_mb'] / 1024:,.2f}"

    images, latents = (tuple(figures[f"{x}_shape"]) for x in ("image", "latent"))
    processes, parts = figures["processes"], ("parameters", "gradients", "optimizer", "average")
    yield "a dry run: nothing is trained, and nothing is written"
    count = figures["train_images"]
    known = "" if count is None else f"; {count:,} training images"
    yield f"images {images}, latents {latents}{known}"
    yield f"parameters: trained {numbers('trained')}; frozen {numbers('frozen')}"
    shares = " + ".join(f"{name} {size(name)}" for name in (*parts, "activations"))
    of_each = "" if processes == 1 else " of each process"
    yield (
        f"memory{of_each}, estimated: {size('memory')} GB = {shares}; {size('available')} GB are "
        f"available on {figures['device_name']}"
    )
    if figures["memory_mb"] > figures["available_mb"]:
        yield (
            "this is more than is available: lower --train_batch_size and raise "
            "--gradient_accumulation_steps, or pass --gradient_checkpointing true"
        )
    yield f"a checkpoint: {size('checkpoint')} GB on the disk"
    plural = "es" if processes > 1 else ""
    work = f"{figures['images_per_step']:,} images in {processes} process{plural}"
    if "step_seconds" in figures:
        count, *_, height, width = figures["measured_shape"]
        batch = [figures["train_batch_size"], *figures["image_shape"]]
        scaled = "" if figures["measured_shape"] == batch else ", and scaled"
        yield (
            f"a step of {work}: {figures['step_seconds']:.3g} s, measured with {count} of "
            f"{height}x{width} pixels{scaled}"
        )
    else:
        yield f"a step of {work}: not measured, because one image does not fit into the memory"
    if "steps" in figures:
        hours = figures.get("hours")
        time = "" if hours is None else f", {_duration(hours)} without validation and checkpoints"
        epochs = f", {figures['epochs']:,.1f} epochs" if "epochs" in figures else ""
        yield f"the run: {figures['steps']:,} steps{epochs}{time}"


def _duration(hours: float) -> str:
    if hours < 2:
        return f"{60 * hours:.0f} minutes"
    return f"{hours:.0f} hours" if hours < 72 else f"{hours / 24:.0f} days"
