"""A denoiser that knows the answer, for samplers to be held against."""

from types import SimpleNamespace

import torch
from diffusers import SchedulerMixin

from hf_latent.models.presets import create_scheduler
from hf_latent.pipeline.samplers import get_objective

# The whole table: what goes with what. All else is refused.
TABLE = {
    "flow": ["euler", "heun", "dpm++", "unipc"],
    "epsilon": ["euler", "heun", "dpm++", "unipc", "ddim"],
    "v_prediction": ["euler", "heun", "dpm++", "unipc", "ddim"],
    "sample": ["euler", "dpm++", "unipc", "ddim"],
    "v_prediction, zero terminal SNR": ["euler", "dpm++", "unipc", "ddim"],
    "sample, zero terminal SNR": ["euler", "dpm++", "unipc", "ddim"],
}
PAIRS = [(name, sampler) for name, samplers in TABLE.items() for sampler in samplers]


def scheduler_of(name: str):
    objective, _, zero = name.partition(", ")
    return create_scheduler(objective, zero_terminal_snr=bool(zero))


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
        self.noise: list[torch.Tensor] = []  # what there is beside the latents, of deviation 1

    def forward(self, sample, timestep, class_labels=None):
        self.calls.append((len(sample), class_labels))
        if self.objective == "flow":
            velocity = (sample - self.latents) / (timestep / 1000)
            self.noise.append(velocity + self.latents)
            return SimpleNamespace(sample=velocity)
        share = self.scheduler.alphas_cumprod[timestep.long()]
        signal, noise = share.sqrt(), (1 - share).sqrt()
        epsilon = (sample - signal * self.latents) / noise
        self.noise.append(epsilon)
        answers = {
            "epsilon": epsilon,
            "sample": self.latents,
            "v_prediction": signal * epsilon - noise * self.latents,
        }
        return SimpleNamespace(sample=answers[self.objective])
