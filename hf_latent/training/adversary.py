"""Adversarial training: the discriminator's part of an autoencoder's training."""

import logging
import math
from functools import partial

import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL
from torch import nn

from hf_latent.errors import UserError
from hf_latent.pipeline.decode import shown_channels
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
from hf_latent.training.run.late import LateValues

logger = logging.getLogger(__name__)


def check_image_size(num_layers: int, height: int, width: int) -> None:
    """Check that the images are large enough for a discriminator.

    Args:
        num_layers: the discriminator's layers with stride 2.
        height: of the images, in pixels.
        width: of the images, in pixels.

    Raises:
        UserError: if the discriminator would return no logit.
    """
    smallest = 3 * 2**num_layers
    if min(height, width) < smallest:
        raise UserError(
            f"images of {height}x{width} are too small for a discriminator with {num_layers} "
            f"layers, which needs {smallest} pixels: lower --discriminator_num_layers"
        )


class Adversary:
    """The discriminator, its loss, and the adversarial loss of the autoencoder.

    The adversarial loss has LDM's adaptive weight, measured over all micro-steps and processes of
    the previous step. So the weight does not depend on how the batch is split. (LDM measures it on
    each part of the batch separately.) Neither network gets a gradient from the other one's loss.

    Args:
        config: sizes, start and weight. With a weight of 0 there is no discriminator.
        channels: C of the images.
        vae: the autoencoder, at whose last decoder layer the weight is measured.
        state: of the training. The discriminator is added to it.
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
        self._seen = partial(as_seen, is_measured=shown_channels(vae) is not None)
        self.weight = torch.zeros((), device=accelerator.device)
        self._late = LateValues(accelerator.device)
        self.logits: tuple[torch.Tensor, torch.Tensor] | None = None
        self.wrapped: tuple[nn.Module, ...] = ()
        if config.discriminator_weight == 0:
            return
        torch.manual_seed(config.seed)
        self.discriminator = PatchDiscriminator(
            self._seen(torch.zeros(1, channels, 1, 1)).shape[1],
            config.discriminator_base_channels,
            config.discriminator_num_layers,
        )
        # LDM's betas. The opponent changes at every step, so a long first moment would be outdated.
        optimizer = create_optimizer(
            self.discriminator, config.learning_rate, config.adam_weight_decay, (0.5, 0.9)
        )
        wrapped, optimizer = accelerator.prepare(self.discriminator, optimizer)
        self.wrapped = (wrapped,)
        self._gradients = torch.zeros(2, self.last_layer.numel(), device=accelerator.device)
        state.models["discriminator"] = self.discriminator
        state.optimizers["discriminator"] = optimizer
        state.others["adversary"] = self

    def is_active(self, step: int) -> bool:
        """Return whether a step trains the discriminator and uses the adversarial loss."""
        return bool(self.wrapped) and step >= self.config.discriminator_start

    def adversarial_loss(
        self, reconstructions: torch.Tensor, fidelity: torch.Tensor, step: int
    ) -> torch.Tensor:
        """Return the weighted adversarial loss, and measure gradients for the next step's weight.

        Autograd runs from the discriminator to the reconstructions only, so that the
        discriminator's weights get no gradient.

        Args:
            reconstructions: `(B, C, H, W)`, with their graph.
            fidelity: the reconstruction and perceptual loss, a scalar with its graph.
            step: of the training, from 0.

        Returns:
            A scalar that has the gradient of the weighted adversarial loss, but not its value; 0
            before `discriminator_start`.
        """
        if not self.is_active(step + 1):  # the step before the first active one measures too
            return torch.zeros_like(fidelity)
        leaf = reconstructions.detach().requires_grad_()
        adversarial = generator_hinge_loss(self.discriminator(self._seen(leaf)))
        # In half precision the gradient of a mean would underflow, and that of a sum overflow.
        scale = math.sqrt(reconstructions.numel())
        (at_output,) = torch.autograd.grad(adversarial * scale, leaf)
        measured = [
            torch.autograd.grad(loss, self.last_layer, gradient, retain_graph=True)[0]
            for loss, gradient in ((fidelity * scale, None), (reconstructions, at_output))
        ]
        parts = self.config.gradient_accumulation_steps
        self._gradients += torch.stack([x.float().flatten() for x in measured]) / (scale * parts)
        weight = self.weight if self.is_active(step) else 0.0
        return weight * (reconstructions * (at_output / scale)).sum()

    def discriminator_loss(
        self, images: torch.Tensor, reconstructions: torch.Tensor
    ) -> torch.Tensor:
        """Return the loss of the discriminator, a scalar without gradient for the autoencoder.

        Args:
            images: `(B, C, H, W)` float in [-1, 1].
            reconstructions: `(B, C, H, W)`, with or without a graph.
        """
        both = self._seen(torch.cat([images, reconstructions.detach()]))
        real, fake = self.wrapped[0](both).chunk(2)
        self.logits = real.detach().mean(), fake.detach().mean()
        return discriminator_hinge_loss(real, fake)

    def update_weight(self, step: int) -> None:
        """Compute the next step's weight from the gradients of all micro-steps and processes."""
        if not self.is_active(step + 1):
            return
        gradients = self.accelerator.reduce(self._gradients, "mean")
        finite = gradients.isfinite().all()
        weight = self.config.discriminator_weight * adaptive_weight(*gradients)
        self.weight = torch.where(finite, weight, self.weight)
        self._gradients.zero_()
        finite_before = self._late.exchange(finite)
        if finite_before is not None and not finite_before:
            logger.warning(
                f"step {step}: the gradients that weigh the adversarial loss are not finite; its "
                "weight stays as it was"
            )

    def figures(self) -> dict[str, float]:
        """Return the last batch's mean logits and the weight; nothing before the first loss."""
        if self.logits is None:
            return {}
        real, fake, weight = torch.stack([*self.logits, self.weight]).tolist()
        return {
            "discriminator_real_logit": real,
            "discriminator_fake_logit": fake,
            "adversarial_weight": weight,
        }

    def state(self) -> dict[str, float]:
        """Return what a checkpoint keeps besides the weights."""
        return {"adversarial_weight": self.weight.item()}

    def load_state(self, state: dict[str, float]) -> None:
        """Resume from a checkpoint's `state`."""
        self.weight.fill_(state["adversarial_weight"])
