"""The settings of the first training."""

from dataclasses import dataclass
from typing import Any, Literal

from jsonargparse.typing import NonNegativeFloat, NonNegativeInt, PositiveInt

from hf_latent.errors import UserError
from hf_latent.evaluation.features.networks import FeatureNetworkName
from hf_latent.models.presets import Preset
from hf_latent.training.run.accelerator import TrainingConfig


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig(TrainingConfig):
    """Train an autoencoder on your images.

    Attributes:
        preset: a new autoencoder's configuration: tiny (f4), small (f4), base (f8), or LDM's
            published ldm-f4 and ldm-f8.
        latent_channels: channels of the latent; unset, the preset's.
        block_out_channels: widths of the levels, in place of the preset's; n levels make a
            downsampling factor of 2^(n-1).
        layers_per_block: residual blocks a level, in place of the preset's.
        pretrained_vae: start from this AutoencoderKL instead of a new one: a folder or Hub id, of
            an autoencoder or of a whole pipeline.
        train_decoder_only: leave the encoder of pretrained_vae as it is, so that its latents, and
            every denoiser trained on them, stay valid.
        reconstruction_loss: l1 or l2; l2 gives the higher PSNR, l1 the sharper edges.
        kl_weight: weight of the KL divergence in nats per latent value.
        perceptual_weight: weight of the perceptual distance; 0 is off.
        perceptual_network: what the perceptual distance is measured with: efficientnet-lite0
            (extra `features`), dinov2 (from the Hub) or lpips (extra `lpips`). With a weight of 0
            it is measured on held-out images only, and unset not at all.
        discriminator_weight: times LDM's adaptive weight; 0 trains without a discriminator.
        discriminator_start: the step at which the discriminator begins to play.
        discriminator_base_channels: width of its first layer.
        discriminator_num_layers: its layers with stride 2; each doubles what one patch sees.
        fold_samples: measure the latent scale on so many training images, evenly spaced; unset,
            on all.
    """

    preset: Preset = "tiny"
    latent_channels: PositiveInt | None = None
    block_out_channels: list[PositiveInt] | None = None
    layers_per_block: PositiveInt | None = None
    pretrained_vae: str | None = None
    train_decoder_only: bool = False
    reconstruction_loss: Literal["l1", "l2"] = "l1"
    kl_weight: NonNegativeFloat = 1e-3
    perceptual_weight: NonNegativeFloat = 0.0
    perceptual_network: FeatureNetworkName | None = None
    discriminator_weight: NonNegativeFloat = 0.0
    discriminator_start: NonNegativeInt = 0
    discriminator_base_channels: PositiveInt = 64
    discriminator_num_layers: PositiveInt = 3
    fold_samples: PositiveInt | None = None

    def __post_init__(self) -> None:
        """Refuse values that cannot work, naming the flag."""
        super().__post_init__()
        if self.perceptual_weight and self.perceptual_network is None:
            raise UserError("--perceptual_weight needs a --perceptual_network")
        if self.train_decoder_only and self.pretrained_vae is None:
            raise UserError("--train_decoder_only needs a --pretrained_vae to take the encoder of")
        counted = self.discriminator_weight and self.max_train_minutes is None
        if counted and self.discriminator_start >= self.max_train_steps:
            raise UserError(
                f"--discriminator_start {self.discriminator_start} must be below --max_train_steps "
                f"{self.max_train_steps}"
            )
        if self.pretrained_vae and self.architecture():
            names = ", ".join(f"--{name}" for name in self.architecture())
            raise UserError(f"{names} cannot change a --pretrained_vae: leave one of them out")

    def architecture(self) -> dict[str, Any]:
        """Return the entries of the autoencoder's configuration that replace the preset's."""
        names = ("latent_channels", "block_out_channels", "layers_per_block")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}
