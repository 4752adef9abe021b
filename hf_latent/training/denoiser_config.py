"""The settings of the second training."""

from dataclasses import dataclass

from hf_latent.command import check_ranges
from hf_latent.errors import UserError
from hf_latent.models.presets import Objective, Preset
from hf_latent.training.run import TrainingConfig


@dataclass(frozen=True, kw_only=True)
class DenoiserConfig(TrainingConfig):
    """Train a denoiser in the latent space of a trained autoencoder.

    Attributes:
        vae: the autoencoder: a folder or Hub id, of an autoencoder or of a whole pipeline.
        preset: the denoiser's configuration: tiny, small, base, or LDM's published ldm-f4 and
            ldm-f8. Its channels and size come from the autoencoder.
        objective: what the denoiser predicts.
        conditional: use the images' classes, where they have any.
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
        timestep_logit_mean: mean of the noise level's logit (flow); larger: noisier.
        timestep_logit_std: deviation of the noise level's logit (flow).
    """

    vae: str
    preset: Preset = "tiny"
    objective: Objective = "flow"
    conditional: bool = True
    label_dropout: float = 0.1
    latents: str | None = None
    latents_revision: str | None = None
    stream_latents: bool = False
    stream_lanes: int = 8
    stream_buffer_rows: int = 65_536
    encode_every_step: bool = False
    timestep_logit_mean: float = 0.0
    timestep_logit_std: float = 1.0

    def __post_init__(self) -> None:
        """Refuse values that cannot work, naming the flag."""
        super().__post_init__()
        check_ranges(
            self,
            positive=("stream_lanes", "stream_buffer_rows"),
            not_negative=("timestep_logit_std",),
            share=("label_dropout",),
        )
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
