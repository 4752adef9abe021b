import torch

from hf_latent.data.latents import LatentPosteriors
from hf_latent.models.presets import create_scheduler
from hf_latent.training.validation import evenly_spaced_timesteps, held_out_denoising_loss


class ZeroDenoiser(torch.nn.Module):
    device = torch.device("cpu")

    def forward(self, sample, timestep, class_labels=None):
        return type("Output", (), {"sample": torch.zeros_like(sample)})


def test_noise_levels_cover_the_range():
    timesteps = evenly_spaced_timesteps(create_scheduler("flow"), 4)
    assert timesteps.tolist() == [125.0, 375.0, 625.0, 875.0]
    timesteps = evenly_spaced_timesteps(create_scheduler("epsilon"), 4)
    assert timesteps.tolist() == [125, 375, 625, 875]
    assert timesteps.dtype == torch.int64


def test_held_out_loss_is_that_of_the_target_and_never_changes(denoiser_config):
    mean = torch.full((300, 4, 4, 4), 3.0)
    posteriors = LatentPosteriors(mean, torch.zeros_like(mean))
    config, scheduler = denoiser_config(train_batch_size=64), create_scheduler("flow")
    loss = held_out_denoising_loss(ZeroDenoiser(), scheduler, posteriors, config)
    # E (noise - 3)^2 = 1 + 9
    assert abs(loss - 10) < 0.3
    assert loss == held_out_denoising_loss(ZeroDenoiser(), scheduler, posteriors, config)
