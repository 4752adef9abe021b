"""The settings of a denoiser's training."""

from abc import ABC
from dataclasses import dataclass, fields
from typing import Any, Literal

from jsonargparse.typing import NonNegativeFloat, PositiveFloat, PositiveInt

from hf_latent.command import Share
from hf_latent.errors import UserError
from hf_latent.evaluation.config import parse_interval
from hf_latent.models.presets import Objective, Preset
from hf_latent.training.losses import TimestepSampling
from hf_latent.training.run.accelerator import (
    ImageTrainingConfig,
    TrainingConfig,
    TrainingDefaults,
)

# The batch of tiny as measured, see the guide "performance"; the others by general experience.
DEFAULTS: dict[Preset, TrainingDefaults] = {
    "tiny": TrainingDefaults(learning_rate=2e-3, train_batch_size=32),
    "small": TrainingDefaults(learning_rate=3e-4, train_batch_size=64),
    "base": TrainingDefaults(learning_rate=1e-4, train_batch_size=32),
    "base-fast": TrainingDefaults(learning_rate=1e-4, train_batch_size=32),
    "ldm-f4": TrainingDefaults(learning_rate=1e-4, train_batch_size=32),
    "ldm-f8": TrainingDefaults(learning_rate=1e-4, train_batch_size=32),
}
PRETRAINED = TrainingDefaults(learning_rate=1e-4, train_batch_size=32)


@dataclass(frozen=True, kw_only=True)
class DenoiserTrainingConfig(TrainingConfig, ABC):
    """Settings that the trainings of a denoiser share.

    Attributes:
        label_dropout: Share of the class labels and captions, below 1, that training replaces by
            the null label and the empty caption. Guidance needs some, and so do images of neither.
        save_dtype: Dtype of the saved denoiser and its guide. float16 rounds the weights and halves
            the files. Loading gives float32 weights.
        ema_snapshot_steps: Steps between snapshots of two power-function averages of the weights.
            synthesize_ema makes an average of any length from them (Karras et al. 2024). Each
            snapshot is two files as large as the denoiser. The last step saves one too. By default
            there are none.
    """

    label_dropout: Share = 0.1
    save_dtype: Literal["float32", "float16"] = "float32"
    ema_snapshot_steps: PositiveInt | None = None


CAPTION_LENGTH = 24


@dataclass(frozen=True, kw_only=True)
class DenoiserConfig(DenoiserTrainingConfig, ImageTrainingConfig):
    """Train a denoiser in the latent space of a trained autoencoder.

    Attributes:
        vae: The autoencoder, or a pipeline that contains it: its folder or that of the run that
            trained it, the name of a released one, or an id on the Hub.
        preset: Configuration of a new denoiser: tiny, small, base (base-fast is the same), or
            LDM's published ldm-f4 and ldm-f8. Its channels and size come from the autoencoder.
            Ignored with pretrained_unet.
        block_out_channels: Channels of each level of a new denoiser. n levels halve the latents n-1
            times. By default the preset's.
        attention: For each level, whether it has self-attention: true or false. By default the
            preset's.
        pretrained_unet: Start from this UNet2DModel or pipeline instead of a new one; it is named
            like the autoencoder. It must have the latents, classes and objective of this run.
        objective: What the denoiser predicts: flow (noise - latents), epsilon (the noise),
            v_prediction (a mixture of both) or sample (the latents).
        conditional: Train with class labels, if the images have any.
        latents: Latent cache written by encode_latents.py: a folder or a Hub data set id. The
            images are then not opened. resolution, resize_mode and the like must match the cache.
            By default the images are encoded once into output_dir/latents.
        latents_revision: Branch, tag or commit of a latent cache on the Hub. By default main.
        stream_latents: Read the cache as a stream of shuffled shards: for a cache larger than the
            memory or, on the Hub, than the disk.
        stream_lanes: Number of places in the cache that a stream reads at once. More mix better. It
            must be a multiple of processes times workers, and must divide the global batch.
        stream_buffer_rows: Number of images that a stream shuffles together.
        latents_on_device: Keep all latents in the memory of the device that trains. auto: on a GPU,
            if they take at most a third of its free memory.
        encode_every_step: Encode the images again at every step and keep no latents. Random crops
            need this.
        timestep_sampling: Distribution of the noise levels in training: logit_normal (mostly middle
            levels, flow only) or uniform. By default logit_normal for flow, uniform otherwise.
        timestep_logit_mean: Mean of the noise level's logit for logit_normal. A larger mean trains
            noisier levels.
        timestep_logit_std: Standard deviation of the noise level's logit for logit_normal.
        snr_gamma: Limit the loss weight of low noise levels (min-SNR, Hang et al. 2023, who use 5).
            Not for flow. By default all noise levels have the same weight.
        zero_terminal_snr: End the noise schedule with pure noise, from which sampling starts (Lin
            et al. 2024). Only for v_prediction and sample. With snr_gamma the last noise level has
            weight 0.
        contrastive_weight: Weight of contrastive flow matching (Stoica et al. 2025, who use 0.05):
            how far each target is pushed away from that of another image of this process's batch.
            Only for flow. 0 turns it off.
        text_encoder: A text encoder for captions, which stays frozen: minilm (from pip), a folder,
            or an id on the Hub. The denoiser is then a UNet2DConditionModel. By default captions
            are not used.
        caption_length: Number of tokens of every caption; longer ones are cut.
        guidance_scale: Guidance scale of the sample pictures, and the saved model's default. By
            default 2 with classes, captions or a guide, else off.
        guidance_interval: Lowest and highest noise level that are guided, from 0 (no noise) to 1
            (only noise), such as 0,0.8; also the saved model's default. By default all.
        guide: A weaker denoiser for autoguidance, such as one trained for fewer steps on the same
            latents. The sample pictures are guided by it, and it is saved with the model. It is
            named like the autoencoder.
    """

    vae: str
    preset: Preset = "tiny"
    block_out_channels: list[PositiveInt] | None = None
    attention: list[bool] | None = None
    pretrained_unet: str | None = None
    objective: Objective = "flow"
    conditional: bool = True
    latents: str | None = None
    latents_revision: str | None = None
    stream_latents: bool = False
    stream_lanes: PositiveInt = 8
    stream_buffer_rows: PositiveInt = 65_536
    latents_on_device: bool | Literal["auto"] = "auto"
    encode_every_step: bool = False
    timestep_sampling: TimestepSampling | None = None
    timestep_logit_mean: float = 0.0
    timestep_logit_std: NonNegativeFloat = 1.0
    snr_gamma: PositiveFloat | None = None
    zero_terminal_snr: bool = False
    contrastive_weight: Share = 0.0
    text_encoder: str | None = None
    caption_length: PositiveInt = CAPTION_LENGTH
    guidance_scale: NonNegativeFloat | None = None
    guidance_interval: str | None = None
    guide: str | None = None

    def __post_init__(self) -> None:
        """Check values that depend on each other."""
        super().__post_init__()
        if self.crop == "random" and not self.encode_every_step:
            raise UserError(
                "--crop random does not go with latents that are encoded once: use center, or "
                "pass --encode_every_step true"
            )
        if self.encode_every_step and self.latents:
            raise UserError("--encode_every_step reads no --latents: remove one of them")
        if self.latents_on_device is True and (self.encode_every_step or self.stream_latents):
            other = "--encode_every_step" if self.encode_every_step else "--stream_latents"
            raise UserError(f"--latents_on_device does not go with {other}: remove one of them")
        if self.stream_latents and not self.latents:
            raise UserError("--stream_latents needs the cache to read: pass --latents")
        if self.latents and self.max_train_samples is not None:
            raise UserError("--max_train_samples does not go with --latents: encode fewer images")
        if self.pretrained_unet and self.architecture():
            names = ", ".join(f"--{name}" for name in self.architecture())
            raise UserError(f"{names} cannot change a --pretrained_unet: remove one of them")
        if self.text_encoder is None and self.caption_column is not None:
            raise UserError("--caption_column needs --text_encoder, such as minilm: pass both")
        if self.text_encoder is not None and not (self.caption_column or self.latents):
            raise UserError("--text_encoder needs --caption_column, such as auto: pass both")
        if self.text_encoder is None and self.caption_length != CAPTION_LENGTH:
            raise UserError("--caption_length is for --text_encoder: pass both, or leave it out")
        _ = self.guidance
        self._check_objective()

    def training_defaults(self) -> TrainingDefaults:
        """Return those of the preset, or of a pretrained denoiser."""
        return PRETRAINED if self.pretrained_unet else DEFAULTS[self.preset]

    def architecture(self) -> dict[str, Any]:
        """Return the settings that replace the preset's."""
        own = {"block_out_channels": self.block_out_channels, "attention": self.attention}
        return {name: tuple(value) for name, value in own.items() if value is not None}

    @property
    def guidance(self) -> dict[str, Any] | None:
        """The saved model's default guidance; raises UserError if the interval is not valid."""
        interval = parse_interval(self.guidance_interval)
        own = {"guidance_scale": self.guidance_scale, "guidance_interval": interval}
        return {name: value for name, value in own.items() if value is not None} or None

    def _check_objective(self) -> None:
        """Reject settings that are undefined for the objective, or have no effect."""
        # Min-SNR is not defined for flow, whose schedule always ends with pure noise. From pure
        # noise, epsilon predicts nothing about the image.
        for name, fit in (
            ("snr_gamma", ["epsilon", "v_prediction", "sample"]),
            ("zero_terminal_snr", ["v_prediction", "sample"]),
            ("contrastive_weight", ["flow"]),
        ):
            if getattr(self, name) and self.objective not in fit:
                raise UserError(
                    f"--{name} does not go with --objective {self.objective}: remove it, or choose "
                    f"{' or '.join(fit)}"
                )
        flow = self.objective == "flow"
        if not flow and self.timestep_sampling == "logit_normal":
            raise UserError(
                f"--timestep_sampling logit_normal does not go with --objective {self.objective}: "
                "remove it, or choose flow"
            )
        uniform = not flow or self.timestep_sampling == "uniform"
        logit = [field for field in fields(self) if field.name.startswith("timestep_logit_")]
        changed = [field.name for field in logit if getattr(self, field.name) != field.default]
        if uniform and changed:
            raise UserError(
                f"--{changed[0]} has no effect on uniform timesteps: remove it, or choose "
                "--objective flow with --timestep_sampling logit_normal"
            )
