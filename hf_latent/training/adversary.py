"""The game of autoencoder and discriminator, with neither's gradient left in the other."""

import math

import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL
from torch import nn

from hf_latent.errors import UserError
from hf_latent.training.autoencoder_config import AutoencoderConfig
from hf_latent.training.discriminator import PatchDiscriminator
from hf_latent.training.losses import (
    adaptive_weight,
    as_seen,
    discriminator_hinge_loss,
    generator_hinge_loss,
)
from hf_latent.training.run.accelerator import create_optimizer
from hf_latent.training.run.checkpoints import TrainingState


def check_image_size(num_layers: int, height: int, width: int) -> None:
    """Make sure that a discriminator of so many layers finds a patch in every image.

    Raises:
        UserError: if the images are too small.
    """
    smallest = 3 * 2**num_layers
    if min(height, width) < smallest:
        raise UserError(
            f"images of {height}x{width} are too small for a discriminator with {num_layers} "
            f"layers, which needs {smallest} pixels: lower --discriminator_num_layers"
        )


class Adversary:
    """The discriminator's side of a training: its pull on the autoencoder, and its own loss.

    The weight of its pull is LDM's adaptive weight, measured over the whole step before: all of
    its micro-steps, in all processes. So a batch weighs the same however it is cut up. (LDM
    measures it on each part of the batch by itself.)

    Args:
        config: widths, start and weight; with a weight of 0 there is no discriminator.
        channels: C of the images.
        vae: the autoencoder; both gradients are measured at its decoder's last layer.
        state: of the training; the discriminator joins it.
        accelerator: the run's.
    """

    def __init__(
        self,
        config: AutoencoderConfig,
        channels: int,
        vae: AutoencoderKL,
        state: TrainingState,
        accelerator: Accelerator,
    ):
        """Create the discriminator and its optimizer; see the class."""
        self.config, self.accelerator = config, accelerator
        self.last_layer = vae.decoder.conv_out.weight
        self.weight = 0.0
        self.logits: tuple[torch.Tensor, torch.Tensor] | None = None
        self.wrapped: tuple[nn.Module, ...] = ()
        if config.discriminator_weight == 0:
            return
        torch.manual_seed(config.seed)
        self.discriminator = PatchDiscriminator(
            as_seen(torch.zeros(1, channels, 1, 1)).shape[1],
            config.discriminator_base_channels,
            config.discriminator_num_layers,
        )
        # LDM's betas: a slow first moment would chase an opponent that has moved on.
        optimizer = create_optimizer(
            self.discriminator, config.learning_rate, config.adam_weight_decay, (0.5, 0.9)
        )
        wrapped, optimizer = accelerator.prepare(self.discriminator, optimizer)
        self.wrapped = (wrapped,)
        self._gradients = torch.zeros(2, self.last_layer.numel(), device=accelerator.device)
        state.models["discriminator"] = self.discriminator
        state.optimizers["discriminator"] = optimizer
        state.others["adversary"] = self

    def plays(self, step: int) -> bool:
        """Return whether the discriminator trains, and pulls, in a step."""
        return bool(self.wrapped) and step >= self.config.discriminator_start

    def measures(self, step: int) -> bool:
        """Return whether gradients are measured in a step: from the one before the first play."""
        return bool(self.wrapped) and step >= self.config.discriminator_start - 1

    def pull(
        self, reconstructions: torch.Tensor, fidelity: torch.Tensor, step: int
    ) -> torch.Tensor:
        """Return what to add to the autoencoder's loss, and measure for the next step's weight.

        The adversarial gradient is taken at the reconstructions, where the autoencoder ends and
        the discriminator begins, and goes on from there: the discriminator's own weights get none.

        Args:
            reconstructions: `(B, C, H, W)`, with their graph.
            fidelity: reconstruction and perceptual loss, a scalar with its graph.
            step: the training's.

        Returns:
            A scalar whose gradient is the weight times the adversarial loss's; 0 while the
            discriminator does not play.
        """
        if not self.measures(step):
            return torch.zeros_like(fidelity)
        leaf = reconstructions.detach().requires_grad_()
        adversarial = generator_hinge_loss(self.discriminator(as_seen(leaf)))
        # Half precision would lose a mean's gradient, and overflow on a sum's.
        scale = math.sqrt(reconstructions.numel())
        (at_output,) = torch.autograd.grad(adversarial * scale, leaf)
        measured = [
            torch.autograd.grad(loss, self.last_layer, gradient, retain_graph=True)[0]
            for loss, gradient in ((fidelity * scale, None), (reconstructions, at_output))
        ]
        parts = self.config.gradient_accumulation_steps
        self._gradients += torch.stack([x.float().flatten() for x in measured]) / (scale * parts)
        weight = self.weight if self.plays(step) else 0.0
        return weight * (reconstructions * (at_output / scale)).sum()

    def loss(self, images: torch.Tensor, reconstructions: torch.Tensor) -> torch.Tensor:
        """Return the discriminator's own loss; the autoencoder gets no gradient of it.

        Args:
            images: `(B, C, H, W)` float in [-1, 1].
            reconstructions: `(B, C, H, W)`, with or without a graph.

        Returns:
            A scalar.
        """
        both = as_seen(torch.cat([images, reconstructions.detach()]))
        real, fake = self.wrapped[0](both).chunk(2)
        self.logits = real.detach().mean(), fake.detach().mean()
        return discriminator_hinge_loss(real, fake)

    def finish_step(self, step: int) -> None:
        """Weigh what all micro-steps of all processes measured, for the next step.

        Args:
            step: the training's.
        """
        if not self.measures(step):
            return
        gradients = self.accelerator.reduce(self._gradients, "mean")
        if gradients.isfinite().all():
            self.weight = self.config.discriminator_weight * adaptive_weight(*gradients)
        else:
            self.accelerator.print(
                f"step {step + 1}: the gradients that weigh the adversarial loss are not finite; "
                f"its weight stays {self.weight:g}"
            )
        self._gradients.zero_()

    def figures(self) -> dict[str, float]:
        """Return what there is to watch once it plays: the last batch's logits, and the weight."""
        if self.logits is None:
            return {}
        real, fake = (logit.item() for logit in self.logits)
        return {
            "discriminator_real_logit": real,
            "discriminator_fake_logit": fake,
            "adversarial_weight": self.weight,
        }

    def state(self) -> dict[str, float]:
        """Return what a checkpoint keeps beside the weights."""
        return {"adversarial_weight": self.weight}

    def load_state(self, state: dict[str, float]) -> None:
        """Go on from a checkpoint's `state`."""
        self.weight = state["adversarial_weight"]
