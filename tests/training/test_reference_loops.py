"""Both trainings against a bare loop of the same steps, written out in plain torch."""

import torch
from diffusers import AutoencoderKL
from diffusers.optimization import get_cosine_schedule_with_warmup

from hf_latent.data.images.open import open_images
from hf_latent.models.fold import unfold_latent_scale
from hf_latent.models.presets import create_autoencoder, create_denoiser, create_scheduler
from hf_latent.pipeline import LatentDiffusionPipeline
from hf_latent.training.autoencoder import train_autoencoder
from hf_latent.training.denoiser import train_denoiser
from hf_latent.training.discriminator import PatchDiscriminator
from hf_latent.training.run.batches import GlobalBatchSampler, ProcessRows, ShardedDraws
from tests.conftest import make_autoencoder

STEPS, BATCH, RATE, CLIP = 4, 8, 0.02, 0.05
SETTINGS = {
    "learning_rate": RATE,
    "lr_warmup_ratio": 0.25,
    "max_grad_norm": CLIP,
    "ema_decay": 0.3,
    "adam_weight_decay": 0.1,
}


def draws(purpose: str) -> ShardedDraws:
    return ShardedDraws(0, purpose, ProcessRows(BATCH), torch.device("cpu"))


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
    config = autoencoder_config(**SETTINGS, initialization="random", kl_weight=0.5)
    saved = AutoencoderKL.from_pretrained(train_autoencoder(config).model_dir)
    torch.manual_seed(0)
    vae = create_autoencoder("tiny", 1, 32)

    def loss_of(step, batch, labels):
        posterior = vae.encode(batch).latent_dist
        noise = draws("posterior").normal((step, 0), 4, 8, 8)
        reconstructions = vae.decode(posterior.mean + posterior.std * noise).sample
        kl = posterior.kl().mean() / (4 * 8 * 8)
        return torch.nn.functional.mse_loss(reconstructions, batch) + 0.5 * kl

    average = bare_loop(vae, open_images(config).train, loss_of)
    for found, expected in zip(unfold_latent_scale(saved).parameters(), average, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)


def test_autoencoder_and_discriminator(autoencoder_config, tmp_path):
    start = 2
    config = autoencoder_config(
        **SETTINGS,
        initialization="random",
        discriminator_weight=0.6,
        discriminator_start=start,
        discriminator_base_channels=8,
        discriminator_num_layers=2,
        checkpointing_steps=STEPS,
    )
    train_autoencoder(config)
    torch.manual_seed(0)
    vae = create_autoencoder("tiny", 1, 32)
    torch.manual_seed(0)
    discriminator = PatchDiscriminator(1, base_channels=8, num_layers=2)
    opponent = torch.optim.AdamW(
        discriminator.parameters(), lr=RATE, betas=(0.5, 0.9), weight_decay=0.1
    )
    (rate,) = get_cosine_schedule_with_warmup(opponent, 1, STEPS).lr_lambdas
    weights = [0.0]

    def norm(loss):
        last = vae.decoder.conv_out.weight
        return torch.autograd.grad(loss, last, retain_graph=True)[0].norm()

    def loss_of(step, batch, labels):
        posterior = vae.encode(batch).latent_dist
        noise = draws("posterior").normal((step, 0), 4, 8, 8)
        reconstructions = vae.decode(posterior.mean + posterior.std * noise).sample
        fidelity = torch.nn.functional.mse_loss(reconstructions, batch)
        loss = fidelity + 3e-4 * posterior.kl().mean() / (4 * 8 * 8)
        adversarial = -discriminator(reconstructions).mean()
        # Measured in a step for the next one.
        weights.append(0.6 * (norm(fidelity) / (norm(adversarial) + 1e-4)).item())
        if step < start:
            return loss
        gradients = torch.autograd.grad(
            loss + weights[step] * adversarial, list(vae.parameters()), retain_graph=True
        )
        # In one batch, as in the training: the last bias has a gradient of 0 but for rounding,
        # whose sign Adam follows.
        real, fake = discriminator(torch.cat([batch, reconstructions.detach()])).chunk(2)
        hinge = 0.5 * (torch.relu(1 - real).mean() + torch.relu(1 + fake).mean())
        opponent.zero_grad()
        hinge.backward()
        torch.nn.utils.clip_grad_norm_(discriminator.parameters(), CLIP)
        opponent.param_groups[0]["lr"] = RATE * rate(step)
        opponent.step()
        # Its gradient is the one above, taken before the discriminator changed.
        return sum(
            (gradient * parameter).sum()
            for gradient, parameter in zip(gradients, vae.parameters(), strict=True)
        )

    average = bare_loop(vae, open_images(config).train, loss_of)
    saved = tmp_path / "autoencoder" / f"checkpoint-{STEPS}"
    assert weights[start] > 0.1
    trained = AutoencoderKL.from_pretrained(saved / "vae_ema").parameters()
    for found, expected in zip(trained, average, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)
    trained = PatchDiscriminator.from_pretrained(saved / "discriminator").named_parameters()
    for (name, found), expected in zip(trained, discriminator.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-5, msg=name)


def test_denoiser(denoiser_config, tmp_path):
    vae = make_autoencoder(sample_size=32)
    vae.save_pretrained(tmp_path / "autoencoder" / "model")
    config = denoiser_config(**SETTINGS, label_dropout=0.5)
    saved = LatentDiffusionPipeline.from_pretrained(train_denoiser(config).model_dir).unet
    torch.manual_seed(0)
    unet = create_denoiser("tiny", vae, (1, 32, 32), num_classes=10)
    scheduler = create_scheduler("flow")

    def loss_of(step, batch, labels):
        values = draws("denoiser").normal((step, 0), 2 + 2 * 4 * 8 * 8)
        posterior_noise, noise = values[:, 2:].reshape(BATCH, 2, 4, 8, 8).unbind(1)
        sigmas, dropped = values[:, 0].sigmoid(), values[:, 1] < 0  # half of a normal distribution
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
