"""A denoiser that knows the answer, for samplers to be held against."""

from types import SimpleNamespace

import torch
from diffusers import SchedulerMixin

from hf_latent.samplers import get_objective


class IdealDenoiser(torch.nn.Module):
    """Answers for a known latent, on any objective's terms.

    Args:
        latents: the known ones.
        scheduler: of the trained model, with its noise levels.
    """

    def __init__(self, latents: torch.Tensor, scheduler: SchedulerMixin):
        super().__init__()
        self.latents, self.scheduler = latents, scheduler
        self.objective = get_objective(scheduler)
        self.config = SimpleNamespace(in_channels=4, block_out_channels=(1,), num_class_embeds=4)
        self.calls: list[tuple[int, torch.Tensor | None]] = []

    def forward(self, sample, timestep, class_labels=None):
        self.calls.append((len(sample), class_labels))
        if self.objective == "flow":
            return SimpleNamespace(sample=(sample - self.latents) / (timestep / 1000))
        share = self.scheduler.alphas_cumprod[timestep.long()]
        signal, noise = share.sqrt(), (1 - share).sqrt()
        epsilon = (sample - signal * self.latents) / noise
        answers = {
            "epsilon": epsilon,
            "sample": self.latents,
            "v_prediction": signal * epsilon - noise * self.latents,
        }
        return SimpleNamespace(sample=answers[self.objective])
