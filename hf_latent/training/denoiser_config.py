"""The settings of the second training."""

from dataclasses import dataclass, fields
from typing import Any, Literal

from jsonargparse.typing import NonNegativeFloat, PositiveFloat, PositiveInt

from hf_latent.command import Share
from hf_latent.errors import UserError
from hf_latent.evaluation.config import parse_interval
from hf_latent.models.presets import Objective, Preset
from hf_latent.training.losses import TimestepSampling
from hf_latent.training.run.accelerator import TrainingConfig


@dataclass(frozen=True, kw_only=True)
class DenoiserConfig(TrainingConfig):
    """Train a denoiser in the latent space of a trained autoencoder.

    Attributes:
        vae: the autoencoder: a folder or Hub id, of an autoencoder or of a whole pipeline.
        preset: the denoiser's configuration: tiny, small, base, or LDM's published ldm-f4 and
            ldm-f8. Its channels and size come from the autoencoder. With pretrained_unet it is
            ignored.
        pretrained_unet: start from this UNet2DModel instead of a new one: a folder or Hub id, of a
            denoiser or of a whole pipeline; of the same latents, classes and objective.
        objective: what the denoiser predicts.
        conditional: use the images' classes, if they have any.
        label_dropout: how often a label is dropped in training, for guidance.
        latents: a latent cache of encode_latents.py: a folder, or a data set id on the Hub. The
            images are then not opened; resolution, resize_mode and the like must be those of the
            cache. Unset, the images are encoded once into output_dir/latents.
        latents_revision: of the cache on the Hub.
        stream_latents: read the cache as a stream of shuffled shards, for one larger than memory
            or, on the Hub, than the disk.
        stream_lanes: places of the cache that a stream reads at once; more mix better. Processes
            times workers must divide it, and it the global batch.
        stream_buffer_rows: images that a stream shuffles together.
        encode_every_step: keep no latents, and encode the images of every step; the only way that
            goes with random crops.
        timestep_sampling: how often which noise level is trained: logit_normal (flow only; most
            often the middle ones) or uniform; unset, logit_normal for flow, uniform otherwise.
        timestep_logit_mean: mean of the noise level's logit (logit_normal); larger: noisier.
        timestep_logit_std: deviation of the noise level's logit (logit_normal).
        snr_gamma: bound the weight of little noise in the loss (min-SNR, Hang et al. 2023; 5 there;
            not for flow); unset, all noise levels weigh the same.
        zero_terminal_snr: end the noise schedule with noise only, as sampling starts (Lin et al.
            2024; v_prediction and sample); with snr_gamma that last noise level weighs nothing.
        guidance_scale: of the pictures, and from then on what the saved model draws with if no
            other is asked for; unset, 2 with classes or a guide, else off.
        guidance_interval: the same of the noise levels that are guided, such as 0,0.8; unset, all.
        save_dtype: of the saved denoiser, rounded at the end: float16 halves the file; loaded, its
            weights are float32 all the same.
        ema_snapshot_steps: steps between snapshots of two power-function averages, from which
            synthesize_ema makes an average of any length (Karras et al. 2024); each is as large as
            the denoiser, and the last step makes one too. Unset, none is kept.
    """

    vae: str
    preset: Preset = "tiny"
    pretrained_unet: str | None = None
    objective: Objective = "flow"
    conditional: bool = True
    label_dropout: Share = 0.1
    latents: str | None = None
    latents_revision: str | None = None
    stream_latents: bool = False
    stream_lanes: PositiveInt = 8
    stream_buffer_rows: PositiveInt = 65_536
    encode_every_step: bool = False
    timestep_sampling: TimestepSampling | None = None
    timestep_logit_mean: float = 0.0
    timestep_logit_std: NonNegativeFloat = 1.0
    snr_gamma: PositiveFloat | None = None
    zero_terminal_snr: bool = False
    guidance_scale: NonNegativeFloat | None = None
    guidance_interval: str | None = None
    save_dtype: Literal["float32", "float16"] = "float32"
    ema_snapshot_steps: PositiveInt | None = None

    def __post_init__(self) -> None:
        """Refuse values that cannot work, naming the flag."""
        super().__post_init__()
        if self.crop == "random" and not self.encode_every_step:
            raise UserError(
                "--crop random does not go with latents that are encoded once: use center, or "
                "pass --encode_every_step true"
            )
        if self.encode_every_step and self.latents:
            raise UserError("--encode_every_step reads no --latents: pass one of both")
        if self.stream_latents and not self.latents:
            raise UserError("--stream_latents needs the cache to read: pass --latents")
        if self.latents and self.max_train_samples is not None:
            raise UserError("--max_train_samples does not go with --latents: encode fewer images")
        _ = self.guidance
        self._check_objective()

    @property
    def guidance(self) -> dict[str, Any] | None:
        """What the saved model guides with; UserError if the interval is none."""
        interval = parse_interval(self.guidance_interval)
        own = {"guidance_scale": self.guidance_scale, "guidance_interval": interval}
        return {name: value for name, value in own.items() if value is not None} or None

    def _check_objective(self) -> None:
        """Refuse what is not defined for the objective, or would have no effect."""
        flow = self.objective == "flow"
        if flow and self.snr_gamma is not None:
            raise UserError(
                "--snr_gamma does not go with --objective flow, for which it is not defined: leave "
                "it out, or choose epsilon, v_prediction or sample"
            )
        if flow and self.zero_terminal_snr:
            raise UserError(
                "--zero_terminal_snr does not go with --objective flow, which always ends with "
                "noise only: leave it out"
            )
        if self.objective == "epsilon" and self.zero_terminal_snr:
            raise UserError(
                "--zero_terminal_snr does not go with --objective epsilon, which says nothing of "
                "the image where there is only noise: choose v_prediction or sample"
            )
        if not flow and self.timestep_sampling == "logit_normal":
            raise UserError(
                f"--timestep_sampling logit_normal does not go with --objective {self.objective}: "
                "leave it out, or choose flow"
            )
        uniform = not flow or self.timestep_sampling == "uniform"
        logit = [field for field in fields(self) if field.name.startswith("timestep_logit_")]
        changed = [field.name for field in logit if getattr(self, field.name) != field.default]
        if uniform and changed:
            raise UserError(
                f"--{changed[0]} has no effect on uniform timesteps: leave it out, or choose "
                "--objective flow with --timestep_sampling logit_normal"
            )
