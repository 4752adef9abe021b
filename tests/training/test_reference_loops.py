"""Both trainings against a bare loop of the same steps, written out in plain torch."""

import torch
from diffusers import AutoencoderKL
from diffusers.optimization import get_cosine_schedule_with_warmup

from hf_latent.data.images import open_images
from hf_latent.models.fold import unfold_latent_scale
from hf_latent.models.presets import create_autoencoder, create_denoiser, create_scheduler
from hf_latent.pipeline import LatentDiffusionPipeline
from hf_latent.training.autoencoder import train_autoencoder
from hf_latent.training.batches import GlobalBatchSampler, ProcessRows, seeded_generator
from hf_latent.training.denoiser import train_denoiser
from tests.conftest import make_autoencoder

STEPS, BATCH, RATE, CLIP = 4, 8, 0.02, 0.05
SETTINGS = {
    "learning_rate": RATE,
    "lr_warmup_ratio": 0.25,
    "max_grad_norm": CLIP,
    "ema_decay": 0.3,
    "adam_weight_decay": 0.1,
}


def bare_loop(model, images, loss_of):
    """AdamW, clipping, cosine with warm-up and the moving average, in plain torch."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.99), weight_decay=0.1)
    schedule = get_cosine_schedule_with_warmup(optimizer, 1, STEPS)
    average = [parameter.detach().clone() for parameter in model.parameters()]
    sampler = GlobalBatchSampler(len(images), ProcessRows(BATCH), 0)
    for step in range(STEPS):
        keys = sampler.keys(step)
        batch = torch.stack([images[key]["images"] for key in keys])
        labels = torch.stack([images[key]["class_labels"] for key in keys])
        loss = loss_of(step, batch, labels)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        schedule.step()
        decay = min(1 - (1 + step) ** -0.75, 0.3)  # diffusers counts the first step as 0
        for mean, parameter in zip(average, model.parameters(), strict=True):
            mean.lerp_(parameter.detach(), 1 - decay)
    return average


def test_autoencoder(autoencoder_config):
    config = autoencoder_config(**SETTINGS, kl_weight=0.5)
    saved = AutoencoderKL.from_pretrained(train_autoencoder(config).model_dir)
    torch.manual_seed(0)
    vae = create_autoencoder("tiny", 1, 32)

    def loss_of(step, batch, labels):
        posterior = vae.encode(batch).latent_dist
        generator = seeded_generator(0, "posterior", step, 0)
        noise = torch.randn(BATCH, 4, 8, 8, generator=generator)
        reconstructions = vae.decode(posterior.mean + posterior.std * noise).sample
        kl = posterior.kl().mean() / (4 * 8 * 8)
        return torch.nn.functional.l1_loss(reconstructions, batch) + 0.5 * kl

    average = bare_loop(vae, open_images(config).train, loss_of)
    for found, expected in zip(unfold_latent_scale(saved).parameters(), average, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)


def test_denoiser(denoiser_config, tmp_path):
    vae = make_autoencoder(sample_size=32)
    vae.save_pretrained(tmp_path / "autoencoder" / "model")
    config = denoiser_config(**SETTINGS, label_dropout=0.5)
    saved = LatentDiffusionPipeline.from_pretrained(train_denoiser(config).model_dir).unet
    torch.manual_seed(0)
    unet = create_denoiser("tiny", vae, (1, 32, 32), num_classes=10)
    scheduler = create_scheduler("flow")

    def loss_of(step, batch, labels):
        generator = seeded_generator(0, "denoiser", step, 0)
        posterior_noise, noise = torch.randn(2, BATCH, 4, 8, 8, generator=generator)
        sigmas = torch.normal(0.0, 1.0, (BATCH,), generator=generator).sigmoid()
        dropped = torch.rand(BATCH, generator=generator) < 0.5
        with torch.no_grad():
            posterior = vae.encode(batch).latent_dist
        latents = posterior.mean + posterior.std * posterior_noise
        s = sigmas.view(-1, 1, 1, 1)
        noisy = (1 - s) * latents + s * noise
        labels = torch.where(dropped, 10, labels)
        output = unet(noisy, sigmas * scheduler.config.num_train_timesteps, labels).sample
        return torch.nn.functional.mse_loss(output, noise - latents)

    average = bare_loop(unet, open_images(config).train, loss_of)
    for found, expected in zip(saved.parameters(), average, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)
