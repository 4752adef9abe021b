"""The least that trains the models of each training: to measure, and to compare with."""

from collections.abc import Callable, Iterable, Iterator
from types import SimpleNamespace
from typing import Any, TypeAlias

import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import nn

from hf_latent.models.presets import measure_compression
from hf_latent.pipeline.add_noise import add_noise
from hf_latent.pipeline.conditions import null_conditions
from hf_latent.pipeline.decode import shown_channels
from hf_latent.pipeline.denoise import prompt_width
from hf_latent.pipeline.encode import encode_posteriors
from hf_latent.training.adversary import Adversary
from hf_latent.training.autoencoder_config import AutoencoderConfig
from hf_latent.training.denoiser_config import DenoiserConfig
from hf_latent.training.distillation_config import DistillationConfig
from hf_latent.training.equivariance import Transform
from hf_latent.training.losses import autoencoder_losses, choose_timesteps, denoising_loss
from hf_latent.training.run.accelerator import TrainingConfig, create_optimizer
from hf_latent.training.run.checkpoints import TrainingState
from hf_latent.training.start.autoencoder import TrainableAutoencoder

Models: TypeAlias = dict[str, nn.Module]
Shape: TypeAlias = tuple[int, int, int, int]


class BareLoop:
    """The least that trains models: losses, gradients, clipping and the optimizer.

    The tensors in memory are always the same. It reads and draws nothing, averages no weights, and
    neither checks nor logs.

    Args:
        models: to train, on the device.
        losses: yields losses of the models. The gradients of one are computed before the next.
        config: the settings of the training.
    """

    def __init__(
        self,
        models: Iterable[nn.Module],
        losses: Callable[[], Iterator[torch.Tensor]],
        config: TrainingConfig,
    ):
        """Create the optimizers."""
        self.models, self.losses, self.config = list(models), losses, config
        betas = (0.9, config.adam_beta2)
        self.optimizers = [
            create_optimizer(x, 1e-4, config.adam_weight_decay, betas) for x in self.models
        ]
        device = next(self.models[0].parameters()).device.type
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(config.mixed_precision or "no")
        self.precision = torch.autocast(device, dtype, enabled=dtype is not None)

    def add_gradients(self) -> None:
        """Compute the losses of one batch, and add their gradients to the models'."""
        losses = self.losses()
        while True:
            with self.precision:
                loss = next(losses, None)
            if loss is None:
                return
            loss.backward()

    def update(self) -> None:
        """Clip the gradients, and change the weights."""
        for model, optimizer in zip(self.models, self.optimizers, strict=True):
            nn.utils.clip_grad_norm_(model.parameters(), self.config.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()

    def step(self) -> None:
        """Train one step of one batch."""
        self.add_gradients()
        self.update()

    def run(self, steps: int) -> None:
        """Train some steps."""
        for _ in range(steps):
            self.step()


def bare_autoencoder(
    config: AutoencoderConfig, models: Models, shape: Shape, device: torch.device
) -> BareLoop:
    """Return the bare loop of an autoencoder's training, with its dearest steps.

    Args:
        config: the settings of the training.
        models: `vae`, and `network` for the perceptual distance, on the device.
        shape: of a batch, `(B, C, H, W)`.
        device: that trains.
    """
    vae: Any = models["vae"]
    network: Any = models.get("network")
    model = TrainableAutoencoder(vae)
    is_measured, (channels, height, width) = shown_channels(vae) is not None, shape[1:]
    latent_shape = measure_compression(vae, (channels, height, width)).latent_shape
    images = torch.rand(shape, device=device) * 2 - 1
    noise = torch.randn(shape[0], *latent_shape, device=device)
    # What the discriminator needs of an accelerator, for one process without wrappers.
    alone: Any = SimpleNamespace(device=device, prepare=lambda *parts: parts)
    state = TrainingState({}, {}, {}, {})
    with device:
        adversary = Adversary(config, channels, vae, state, alone)
    step = config.discriminator_start
    transform = Transform(turns=1, scale=1.0) if config.equivariance_weight else None

    def losses() -> Iterator[torch.Tensor]:
        output = model(images, noise, transform)
        fidelity, loss = autoencoder_losses(config, output, images, transform, network, is_measured)
        yield loss + adversary.adversarial_loss(output.images, fidelity, step)
        if adversary.is_active(step):
            yield adversary.discriminator_loss(images, output.images)

    return BareLoop([vae, *state.models.values()], losses, config)


def bare_denoiser(
    scheduler: SchedulerMixin,
    config: DenoiserConfig,
    models: Models,
    shape: Shape,
    device: torch.device,
) -> BareLoop:
    """Return the bare loop of a denoiser's training.

    Args:
        scheduler: determines the objective.
        config: the settings of the training.
        models: `vae` and `unet`, on the device.
        shape: of a batch of images, `(B, C, H, W)`.
        device: that trains.
    """
    vae: Any = models["vae"]
    unet: Any = models["unet"]
    count, channels, height, width = shape
    latent_shape = measure_compression(vae, (channels, height, width)).latent_shape
    images = torch.rand(shape, device=device) * 2 - 1
    latents, noise = torch.randn(2, count, *latent_shape, device=device)
    timesteps = choose_timesteps(scheduler, torch.randn(count, device=device))
    conditions = null_conditions(unet, count, device)
    if token_width := prompt_width(unet):
        tokens = torch.randn(count, config.caption_length, token_width, device=device)
        conditions |= {"encoder_hidden_states": tokens}

    def losses() -> Iterator[torch.Tensor]:
        clean = latents
        if config.encode_every_step:
            with torch.no_grad():
                clean = encode_posteriors(vae, images).mean
        noised = add_noise(scheduler, clean, noise, timesteps, config.snr_gamma)
        output = unet(noised.noisy_latents, noised.timesteps, **conditions).sample
        yield denoising_loss(output, noised.target, noised.weights)

    return BareLoop([unet], losses, config)


def bare_distillation(
    evaluations: tuple[int, int],
    config: DistillationConfig,
    models: Models,
    shape: Shape,
    device: torch.device,
) -> BareLoop:
    """Return the bare loop of a distillation.

    Args:
        evaluations: for each trajectory, of the teacher, and of its guide or of the teacher again.
        config: the settings of the training.
        models: `vae`, `unet`, `teacher` and perhaps `guide`, on the device.
        shape: of a batch of images, `(B, C, H, W)`.
        device: that trains.
    """
    vae: Any = models["vae"]
    unet: Any = models["unet"]
    count, channels, height, width = shape
    latent_shape = measure_compression(vae, (channels, height, width)).latent_shape
    latents, target = torch.randn(2, count, *latent_shape, device=device)
    timesteps = torch.full((count,), 500.0, device=device)
    conditions = null_conditions(unet, count, device)
    networks = models["teacher"], models.get("guide", models["teacher"])
    few = slice(-(-count // config.num_inference_steps))

    def losses() -> Iterator[torch.Tensor]:
        with torch.no_grad():
            labels = {name: x[few] for name, x in conditions.items()}
            for network, number in zip(networks, evaluations, strict=True):
                for _ in range(number):
                    network(latents[few], timesteps[few], **labels)
        output = unet(latents, timesteps, **conditions).sample
        yield denoising_loss(output, target, torch.ones_like(timesteps))

    return BareLoop([unet], losses, config)
