"""The settings of an autoencoder's training."""

from dataclasses import dataclass
from typing import Any, Literal

from jsonargparse.typing import NonNegativeFloat, NonNegativeInt, PositiveInt

from hf_latent.errors import UserError
from hf_latent.evaluation.features.networks import FeatureNetworkName
from hf_latent.models.presets import Preset
from hf_latent.training.run.accelerator import ImageTrainingConfig, TrainingDefaults

# Of tiny as measured, see the guide "training"; of the others by general experience.
DEFAULTS: dict[Preset, TrainingDefaults] = {
    "tiny": TrainingDefaults(learning_rate=3e-3, train_batch_size=16),
    "small": TrainingDefaults(learning_rate=1e-3, train_batch_size=16),
    "base": TrainingDefaults(learning_rate=1e-4, train_batch_size=16),
    "base-fast": TrainingDefaults(learning_rate=1e-3, train_batch_size=16),
    "ldm-f4": TrainingDefaults(learning_rate=1e-4, train_batch_size=8),
    "ldm-f8": TrainingDefaults(learning_rate=1e-4, train_batch_size=8),
}
PRETRAINED = TrainingDefaults(learning_rate=5e-5, train_batch_size=8)


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig(ImageTrainingConfig):
    """Train an autoencoder on your images.

    Attributes:
        preset: Configuration of a new autoencoder, for images of so many pixels: tiny (f=4, 0.2 M
            weights, for 32 to 64 on CPU cores), small (f=4, 3.5 M weights, for 64 to 128), base
            (f=8, 21 M weights, for 256), base-fast (f=8, 2.7 M weights, for 256 in less time), or
            LDM's published ldm-f4 (f=4, 55 M weights, for 256) and ldm-f8 (f=8, 84 M weights, for
            256 to 512). The guide "planning" has their memory and images a second.
        latent_channels: Number of latent channels. By default the preset's: 8 of tiny and small (4
            for grey images), 3 of ldm-f4, 4 of the others.
        block_out_channels: Channels of each level. n levels give a downsampling factor of
            2^(n-1). By default the preset's.
        layers_per_block: Residual blocks per level. By default the preset's.
        pretrained_vae: Start from this AutoencoderKL, or from that of a pipeline, instead of a new
            one: its folder or that of the run that trained it, the name of a released one, or an id
            on the Hub.
        train_decoder_only: Keep the encoder of pretrained_vae unchanged, so that its latents and
            the denoisers trained on them stay valid.
        initialization: Start of a new autoencoder. components: nearly as a linear one, whose
            latents are the principal components of the images' patches; it has their colours at
            once. random: torch's random weights.
        reconstruction_loss: l2 (squared error, higher PSNR) or l1 (absolute error).
        kl_weight: Weight of the KL divergence, which is measured in nats per latent value.
        equivariance_weight: Weight of the error of images decoded from turned and smaller latents,
            compared with images turned and made smaller. 0 turns it off.
        perceptual_weight: Weight of the perceptual distance. 0 turns it off.
        perceptual_network: Network that measures the perceptual distance: efficientnet-lite0 (extra
            `features`), dinov2 (from the Hub) or lpips (extra `lpips`). If perceptual_weight is 0,
            only held-out images are measured. By default the distance is not measured.
        discriminator_weight: Weight of the adversarial loss, multiplied by LDM's adaptive weight. 0
            trains without a discriminator.
        discriminator_start: First step, counted from 0, that trains the discriminator and uses the
            adversarial loss.
        discriminator_base_channels: Channels of the discriminator's first layer.
        discriminator_num_layers: Number n of the discriminator's layers with stride 2. Each doubles
            the patch that one logit sees. Images need at least 3 * 2^n pixels a side.
        fold_samples: Number of training images, evenly spaced, that measure the latent scale. null
            takes all. The time for it is part of max_train_minutes.
    """

    adam_weight_decay: NonNegativeFloat = 1e-4
    preset: Preset = "tiny"
    latent_channels: PositiveInt | None = None
    block_out_channels: list[PositiveInt] | None = None
    layers_per_block: PositiveInt | None = None
    pretrained_vae: str | None = None
    train_decoder_only: bool = False
    initialization: Literal["components", "random"] = "components"
    reconstruction_loss: Literal["l2", "l1"] = "l2"
    kl_weight: NonNegativeFloat = 3e-4
    equivariance_weight: NonNegativeFloat = 0.0
    perceptual_weight: NonNegativeFloat = 0.0
    perceptual_network: FeatureNetworkName | None = None
    discriminator_weight: NonNegativeFloat = 0.0
    discriminator_start: NonNegativeInt = 0
    discriminator_base_channels: PositiveInt = 64
    discriminator_num_layers: PositiveInt = 3
    # The error of a mean over so many images is at most 0.023 of the deviation.
    fold_samples: PositiveInt | None = 2000

    def __post_init__(self) -> None:
        """Check values that depend on each other."""
        super().__post_init__()
        if self.caption_column is not None:
            raise UserError("--caption_column is not for autoencoders: leave it out")
        if self.perceptual_weight and self.perceptual_network is None:
            raise UserError("--perceptual_weight needs a --perceptual_network")
        if self.train_decoder_only and self.pretrained_vae is None:
            raise UserError("--train_decoder_only needs a --pretrained_vae, whose encoder it keeps")
        counts_steps = self.max_train_minutes is None
        never_starts = counts_steps and self.discriminator_start >= self.max_train_steps
        if self.discriminator_weight and never_starts:
            raise UserError(
                f"--discriminator_start {self.discriminator_start} must be below --max_train_steps "
                f"{self.max_train_steps}"
            )
        if self.pretrained_vae and self.architecture():
            names = ", ".join(f"--{name}" for name in self.architecture())
            raise UserError(f"{names} cannot change a --pretrained_vae: remove one of them")

    def training_defaults(self) -> TrainingDefaults:
        """Return those of the preset, or of a pretrained autoencoder."""
        return PRETRAINED if self.pretrained_vae else DEFAULTS[self.preset]

    def architecture(self) -> dict[str, Any]:
        """Return the settings that replace the preset's."""
        names = ("latent_channels", "block_out_channels", "layers_per_block")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}
