"""The teacher of a distillation: a model that denoises noise in many guided steps."""

import math

import torch

from hf_latent.errors import UserError
from hf_latent.evaluation.config import parse_interval
from hf_latent.evaluation.images.sampling import count_evaluations
from hf_latent.models.frozen import freeze
from hf_latent.models.load import find_model, loading
from hf_latent.pipeline import LatentDiffusionPipeline
from hf_latent.pipeline.conditions import Conditions, has_prompts
from hf_latent.pipeline.denoise import LEVEL_TOLERANCE, choose_sampling
from hf_latent.pipeline.samplers import get_objective, noise_levels, set_inference_steps
from hf_latent.training.distillation_config import DistillationConfig

# Samplers of flows begin at a noise level of 1, or at 0.999.
TOLERANCE = 2 * LEVEL_TOLERANCE


class Teacher:
    """A frozen model, and its trajectories from noise to latents.

    Args:
        config: names the model, the numbers of steps and the guidance.
        device: of the model.

    Attributes:
        pipeline: the model, in float32.
        steps: its number of steps, a multiple of the student's.
        guidance: that the student learns.
        evaluations: of its denoiser, for each trajectory.

    Raises:
        UserError: if there is no such model, it is no flow, or it cannot make the steps.
    """

    def __init__(self, config: DistillationConfig, device: torch.device):
        """Load the model."""
        self.name, self.student_steps = config.model, config.num_inference_steps
        folder = find_model(config.model)
        with loading(folder, "model"):
            self.pipeline = LatentDiffusionPipeline.from_pretrained(folder)
        if (objective := get_objective(self.pipeline.trained_scheduler)) != "flow":
            raise UserError(
                f"--model {self.name} has the objective {objective}: only flows can be distilled"
            )
        if has_prompts(self.pipeline.unet):
            raise UserError(f"--model {self.name} has prompts: name a model without them")
        self.pipeline.set_progress_bar_config(disable=True)
        for model in (self.pipeline.vae, self.pipeline.unet, self.pipeline.guide_unet):
            if model is not None:
                freeze(model)
        self.pipeline.to(device)
        self._check_steps(config.teacher_num_inference_steps)
        given = config.guidance_scale, parse_interval(config.guidance_interval)
        conditional = self.pipeline.num_classes is not None
        try:
            own, self.guidance = choose_sampling(
                self.pipeline, conditional, config.teacher_num_inference_steps, *given
            )
        except ValueError as error:
            raise UserError(f"--model {self.name}: {error}") from error
        self.steps = self.student_steps * math.ceil(own / self.student_steps)
        self.evaluations = count_evaluations(self.pipeline, self.steps, self.guidance)

    def _check_steps(self, asked: int | None) -> None:
        """Check that a teacher that is a student makes its own steps, whose number n divides."""
        settings = self.pipeline.config
        own = settings.num_inference_steps
        if settings.distilled and asked not in (None, own):
            raise UserError(
                f"--teacher_num_inference_steps {asked}: --model {self.name} was distilled and "
                f"makes {own} steps only: leave it unset"
            )
        if settings.distilled and own % self.student_steps:
            raise UserError(
                f"--num_inference_steps {self.student_steps} must divide the {own} steps of "
                f"--model {self.name}, which was distilled"
            )
        scheduler = self.pipeline.scheduler.config
        is_random = str(scheduler.get("algorithm_type")).startswith("sde")
        if is_random or scheduler.get("stochastic_sampling"):
            raise UserError(
                f"--model {self.name} samples with a stochastic {self.sampler}, whose steps cannot "
                "be learned: use its sampler euler, dpm++ or unipc, and save it again"
            )

    @property
    def sampler(self) -> str:
        """The class of its scheduler."""
        return type(self.pipeline.scheduler).__name__

    def check_noise_levels(self, levels: torch.Tensor) -> None:
        """Check that its steps visit noise levels.

        Args:
            levels: `(n,)`, where each of the student's steps begins, see `samplers.noise_levels`.

        Raises:
            UserError: if they do not, as those of Heun's second order.
        """
        scheduler = self.pipeline.scheduler
        set_inference_steps(scheduler, self.steps, "cpu")
        own = noise_levels(scheduler, scheduler.timesteps)
        visited = own[:: self.steps // self.student_steps]
        if len(own) != self.steps or (visited - levels).abs().max() > TOLERANCE:
            raise UserError(
                f"--model {self.name} samples with {self.sampler}, whose {self.steps} steps do not "
                f"visit the noise levels of {self.student_steps}: use its sampler euler, dpm++ or "
                "unipc, and save it again"
            )

    def follow(self, noise: torch.Tensor, conditions: Conditions) -> torch.Tensor:
        """Return its states where the student's steps begin and end.

        Args:
            noise: `(B, c, h, w)`, standard normal.
            conditions: of B images; null conditions are those of images of no class.

        Returns:
            `(n + 1, B, c, h, w)` of n steps of the student, from the noise to the latents.
        """
        every, states = self.steps // self.student_steps, [noise]

        def keep(i: int, t: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
            if (i + 1) % every == 0:
                states.append(latents)
            return latents

        self.pipeline.denoise_latents(
            noise,
            self.steps,
            guidance_scale=self.guidance.scale,
            guidance_interval=self.guidance.interval,
            conditions=conditions or None,
            after_step=keep,
        )
        return torch.stack(states)
