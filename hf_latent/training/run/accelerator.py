"""The settings that all trainings share, and their accelerator and optimizer."""

import atexit
import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from accelerate import Accelerator, DistributedType
from accelerate.utils import InitProcessGroupKwargs, gather_object, parse_flag_from_env
from jsonargparse.typing import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import nn

from hf_latent.command import Seed, Settings, Share
from hf_latent.data.images.config import ImagesConfig
from hf_latent.errors import SharedError, UserError
from hf_latent.hub.remote import check_repo_id
from hf_latent.training.run.batches import ProcessRows
from hf_latent.training.run.learning_rate import LearningRateScheduler
from hf_latent.training.run.threads import use_all_cores

logger = logging.getLogger(__name__)

# These launchers split a model's weights, which checkpoints and averages here need whole.
UNSUPPORTED = (DistributedType.DEEPSPEED, DistributedType.FSDP, DistributedType.MEGATRON_LM)
TRACKERS = ("tensorboard", "trackio", "wandb")
# Settings of where a run is stored and logged. They do not affect the model.
STORAGE_SETTINGS = {
    *("output_dir", "dry_run", "overwrite_output_dir", "resume_from_checkpoint", "report_to"),
    *("push_to_hub", "hub_model_id", "hub_private_repo"),
}
# Timeout of waiting for another process. The first process decodes images, downloads caches,
# validates and saves alone, which takes hours for much data; by default NCCL gives up after 10
# minutes and gloo after 30. If a process fails, the launcher ends the others.
PROCESS_GROUP = InitProcessGroupKwargs(timeout=timedelta(hours=24))
# Settings whose default is the preset's: None until `__post_init__` replaces it.
FROM_PRESET: Any = None
if TYPE_CHECKING:
    PresetRate: TypeAlias = float
    PresetSize: TypeAlias = int
else:
    PresetRate, PresetSize = PositiveFloat | None, PositiveInt | None


@dataclass(frozen=True)
class TrainingDefaults:
    """Settings of a training that depend on the model's width.

    Attributes:
        learning_rate: the highest one.
        train_batch_size: images per forward pass and process.
    """

    learning_rate: float
    train_batch_size: int


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(Settings, ABC):
    """Settings that all trainings share.

    Attributes:
        output_dir: The run's folder: config.yaml, logs, samples, and at the end the model.
        dry_run: Open the data and the models, check the settings, print memory, time and steps of
            the training, and end before its first step. Nothing is written.
        overwrite_output_dir: Accept a folder with files in it and replace them. The old model
            stays until the new one is complete.
        learning_rate: The highest learning rate, reached after the warm-up. By default the
            preset's, or that of a pretrained model.
        lr_scheduler: How the learning rate changes after the warm-up. cosine: it falls to 0 along a
            cosine. constant_with_decay: it stays, and falls to 0 at the end; such a training can be
            lengthened without a rise of the rate.
        lr_warmup_ratio: Share of the training in which the learning rate rises from 0.
        lr_decay_ratio: Share of the training in which the learning rate of constant_with_decay
            falls.
        train_batch_size: Images per forward pass and process. By default the preset's, or that of
            a pretrained model.
        max_train_steps: Number of optimizer steps.
        max_train_minutes: Train for so many minutes instead; the learning rate then follows the
            clock.
        gradient_accumulation_steps: Forward passes per optimizer step.
        max_grad_norm: Gradients are clipped to this norm.
        adam_beta2: AdamW's decay of the second moment.
        adam_weight_decay: AdamW's weight decay.
        ema_decay: Highest decay of the moving average of the weights, which is the model that is
            saved. The decay of a step is 1 - (1 + step)^-0.75, up to this.
        mixed_precision: no, fp16 or bf16 over fp32 weights. By default as accelerate is configured;
            started without it, bf16 on a GPU that has it, otherwise no.
        gradient_checkpointing: Use less memory and more time.
        compile: Compile the trained model with torch.compile.
        validation_steps: Steps between two measurements of the held-out loss, each with a sample
            grid.
        max_validation_samples: Number of held-out images to measure it on, evenly spaced.
        checkpointing_steps: Steps between checkpoints. The last step makes one too, and so does a
            signal after the first step.
        checkpoints_total_limit: Keep so many checkpoints and remove older ones. null keeps all.
        resume_from_checkpoint: Resume from a folder checkpoint-N, or from the latest checkpoint of
            output_dir if there is one.
        report_to: Trackers to log to besides logs/losses.jsonl: tensorboard, trackio or wandb, or
            several separated by commas.
        push_to_hub: Push the model to the Hub at the end. The repository is made and the access
            checked before the training. The token is that of `hf auth login` or HF_TOKEN.
        hub_model_id: The repository, user/name. By default the account's name and the run folder's.
        hub_private_repo: Make a new repository private. An existing public one is refused.
        seed: Seed of all random draws. It does not change which images are held out.
    """

    output_dir: str
    dry_run: bool = False
    overwrite_output_dir: bool = False
    learning_rate: PresetRate = FROM_PRESET
    lr_scheduler: LearningRateScheduler = "cosine"
    lr_warmup_ratio: Share = 0.05
    lr_decay_ratio: Share = 0.2
    train_batch_size: PresetSize = FROM_PRESET
    max_train_steps: PositiveInt = 10_000
    max_train_minutes: PositiveFloat | None = None
    gradient_accumulation_steps: PositiveInt = 1
    max_grad_norm: PositiveFloat = 1.0
    adam_beta2: Share = 0.99
    adam_weight_decay: NonNegativeFloat = 1e-2
    ema_decay: Share = 0.999
    mixed_precision: Literal["no", "fp16", "bf16"] | None = None
    gradient_checkpointing: bool = False
    compile: bool = False
    validation_steps: PositiveInt = 1000
    max_validation_samples: PositiveInt = 512
    checkpointing_steps: PositiveInt | None = 1000
    checkpoints_total_limit: PositiveInt | None = 2
    resume_from_checkpoint: str | None = None
    report_to: str | None = None
    push_to_hub: bool = False
    hub_model_id: str | None = None
    hub_private_repo: bool = False
    seed: Seed = 0

    def __post_init__(self) -> None:
        """Fill in the defaults and check the values; errors name the flag."""
        super().__post_init__()
        for name, value in asdict(self.training_defaults()).items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        for tracker in self.trackers():
            if tracker not in TRACKERS:
                raise UserError(f"--report_to {tracker} is not one of {', '.join(TRACKERS)}")
        constant = self.lr_scheduler == "constant_with_decay"
        if constant and self.lr_warmup_ratio + self.lr_decay_ratio > 1:
            raise UserError("--lr_warmup_ratio and --lr_decay_ratio are more than 1 together")
        if self.hub_model_id is not None:
            check_repo_id(self.hub_model_id, "hub_model_id", account="user")
        if not self.push_to_hub and (self.hub_model_id is not None or self.hub_private_repo):
            raise UserError("--hub_model_id and --hub_private_repo need --push_to_hub")

    @abstractmethod
    def training_defaults(self) -> TrainingDefaults:
        """Return the defaults of the model that trains."""

    def trackers(self) -> list[str]:
        """Return the names in `report_to`."""
        return [name.strip() for name in (self.report_to or "").split(",") if name.strip()]


@dataclass(frozen=True, kw_only=True)
class ImageTrainingConfig(TrainingConfig, ImagesConfig, ABC):
    """Settings that trainings on images share.

    Attributes:
        dataloader_num_workers: Number of processes that read images.
    """

    dataloader_num_workers: NonNegativeInt = 0


def start_accelerator(config: TrainingConfig) -> Accelerator:
    """Create the accelerator of a training.

    Raises:
        UserError: if a tracker is not installed, fp16 is to run on a CPU, Accelerate is configured
            for something else than this training, or as `create_accelerator`.
    """
    for tracker in config.trackers():
        if find_spec(tracker) is None:
            raise UserError(f"--report_to {tracker} is not installed: pip install {tracker}")
    accelerator = create_accelerator(
        mixed_precision=config.mixed_precision,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        log_with=config.trackers() or None,
        project_dir=str(Path(config.output_dir) / "logs"),
    )
    if accelerator.distributed_type in UNSUPPORTED:
        raise UserError(
            f"{accelerator.distributed_type.value} is not supported here: run `accelerate config` "
            "and choose one or several GPUs, or none"
        )
    # On a CPU Accelerate would train in fp32 and still report fp16.
    if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise UserError(
            "fp16 needs a GPU, and this training is on a CPU: pass --mixed_precision bf16 or no "
            "(by default it is as accelerate is configured)"
        )
    if config.mixed_precision is None and accelerator.mixed_precision != "no":
        precision = accelerator.mixed_precision
        logger.info(f"mixed precision: {precision}; --mixed_precision no trains in float32")
    parts = accelerator.gradient_accumulation_steps
    if parts != config.gradient_accumulation_steps:
        raise UserError(
            f"accelerate is set to accumulate {parts} times, this run "
            f"{config.gradient_accumulation_steps}: pass --gradient_accumulation_steps {parts}"
        )
    return accelerator


def default_precision() -> Literal["bf16"] | None:
    """Return bf16 on a GPU that has it, and None (as Accelerate is configured) otherwise."""
    configured = "ACCELERATE_MIXED_PRECISION" in os.environ
    on_cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or "ACCELERATE_TORCH_DEVICE" in os.environ
    if configured or on_cpu or not torch.cuda.is_available():
        return None
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else None


def create_accelerator(mixed_precision: str | None = None, **options: Any) -> Accelerator:
    """Create an accelerator for the processes that were launched.

    Args:
        mixed_precision: no, fp16 or bf16; None: see `default_precision`.
        **options: other options of `Accelerator`.

    Raises:
        UserError: if a launcher's environment or Accelerate's configuration is not valid, or as
            `check_processes`.
    """
    try:
        precision = mixed_precision or default_precision()
        accelerator = Accelerator(
            mixed_precision=precision, kwargs_handlers=[PROCESS_GROUP], **options
        )
        check_processes(accelerator)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(
            f"Accelerate cannot start ({error}): correct its configuration, or the environment "
            "variables WORLD_SIZE, RANK, LOCAL_RANK, MASTER_PORT and ACCELERATE_..."
        ) from error
    if accelerator.device.type == "cpu":
        use_all_cores()
    return accelerator


def check_processes(accelerator: Accelerator) -> None:
    """Check that Accelerate sees as many processes as were launched.

    Raises:
        UserError: if not. The processes would work independently and overwrite each other's files.
    """
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched != accelerator.num_processes:
        raise UserError(
            f"{launched} processes were launched and Accelerate sees {accelerator.num_processes}: "
            "correct the launch configuration (on CPUs, set ACCELERATE_USE_CPU=1 and use torchrun)"
        )


# Otherwise the threads of gloo and of the store still run while the interpreter ends.
@atexit.register
def end_process_group() -> None:
    """End the group of processes, if there is one, when the program ends."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@contextmanager
def raise_everywhere(accelerator: Accelerator) -> Iterator[None]:
    """Raise a UserError or OSError of one process in all processes, which all enter and leave it.

    Raises:
        SharedError: if any process raises one inside.
    """
    message = None
    try:
        yield
    except (UserError, OSError) as error:
        message = str(error)
    messages = [x for x in gather_object([message]) if x is not None]
    if messages:
        raise SharedError(messages[0])


@contextmanager
def first_process_first(accelerator: Accelerator) -> Iterator[None]:
    """Run a block in the first process, then in the others.

    Accelerate's `main_process_first` makes the others wait for ever if the first one fails.

    Raises:
        SharedError: if any process raises a UserError or OSError inside; after the first one's the
            others do not run the block.
    """
    if not accelerator.is_main_process:
        with raise_everywhere(accelerator):
            pass
    with raise_everywhere(accelerator):
        yield
    if accelerator.is_main_process:
        with raise_everywhere(accelerator):
            pass


def create_optimizer(
    model: nn.Module, learning_rate: float, weight_decay: float, betas: tuple[float, float]
) -> torch.optim.Optimizer:
    """Create AdamW (Loshchilov and Hutter 2019) over all of a model's parameters."""
    # A fused step takes a quarter of the time, also on a CPU.
    return torch.optim.AdamW(
        model.parameters(), learning_rate, betas, weight_decay=weight_decay, fused=True
    )


def process_rows(batch_size: int, accelerator: Accelerator) -> ProcessRows:
    """Return the rows of every global batch that this process takes."""
    return ProcessRows(batch_size, accelerator.process_index, accelerator.num_processes)
