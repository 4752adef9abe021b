"""The settings of a distillation."""

import math
from dataclasses import dataclass
from typing import Literal

from jsonargparse.typing import NonNegativeFloat, PositiveInt

from hf_latent.command import Seed
from hf_latent.errors import UserError
from hf_latent.evaluation.config import parse_interval
from hf_latent.training.denoiser_config import DenoiserTrainingConfig
from hf_latent.training.run.accelerator import (
    FROM_PRESET,
    PresetRate,
    PresetSize,
    TrainingDefaults,
)


@dataclass(frozen=True, kw_only=True)
class DistillationConfig(DenoiserTrainingConfig):
    """Distill a trained model into a student that makes its images in few steps.

    The teacher denoises noise in many guided steps. The student, a copy of the teacher's denoiser,
    learns to make several of these steps at once. No images are needed.

    Attributes:
        model: The teacher, a model of the objective flow: its folder or that of the run that
            trained it, the name of a released one, or an id on the Hub. It may be a student itself.
        num_inference_steps: Number of steps of the student. Each is one evaluation of the denoiser,
            guidance included.
        teacher_num_inference_steps: Number of steps of the teacher, with its own sampler: a
            multiple of the student's. By default the teacher's own number, or the next multiple.
        guidance_scale: The teacher's guidance scale. By default the model's own, or 2; off without
            classes and guide.
        guidance_interval: Lowest and highest noise level at which the teacher is guided, such as
            0,0.8. By default the model's own, or all.
        learning_rate: The highest learning rate, reached after the warm-up. By default 4e-4.
        train_batch_size: What a forward pass and process learns: each step of the student in as
            many trajectories of the teacher as fit. A multiple of num_inference_steps; by default
            the first from 64 on.
        max_validation_samples: Number of noises that are held out. From each the teacher makes a
            trajectory before the first step.
        seed: Seed of all random draws, also of the held-out noises.
        compile: Compile the student with torch.compile.
        mixed_precision: no, fp16 or bf16 over fp32 weights, of the student; the teacher is always
            in float32. By default as accelerate is configured; started without it, bf16 on a GPU
            that has it, otherwise no.
    """

    model: str
    num_inference_steps: PositiveInt = 4
    teacher_num_inference_steps: PositiveInt | None = None
    guidance_scale: NonNegativeFloat | None = None
    guidance_interval: str | None = None
    learning_rate: PresetRate = FROM_PRESET
    train_batch_size: PresetSize = FROM_PRESET
    max_validation_samples: PositiveInt = 512
    seed: Seed = 0
    compile: bool = False
    mixed_precision: Literal["no", "fp16", "bf16"] | None = None

    def __post_init__(self) -> None:
        """Check values that depend on each other."""
        super().__post_init__()
        parse_interval(self.guidance_interval)
        own = self.num_inference_steps
        for name in ("train_batch_size", "teacher_num_inference_steps"):
            if (getattr(self, name) or 0) % own:
                raise UserError(
                    f"--{name} {getattr(self, name)} must be a multiple of --num_inference_steps "
                    f"{own}"
                )

    def training_defaults(self) -> TrainingDefaults:
        """Return those of every distillation: a batch of 64, or the next multiple of the steps."""
        batch_size = self.num_inference_steps * math.ceil(64 / self.num_inference_steps)
        return TrainingDefaults(learning_rate=4e-4, train_batch_size=batch_size)
