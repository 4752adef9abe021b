"""The settings of the second training."""

from dataclasses import dataclass

from hf_latent.command import check_ranges
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
        timestep_logit_mean: mean of the noise level's logit (flow); larger: noisier.
        timestep_logit_std: deviation of the noise level's logit (flow).
    """

    vae: str
    preset: Preset = "tiny"
    objective: Objective = "flow"
    conditional: bool = True
    label_dropout: float = 0.1
    timestep_logit_mean: float = 0.0
    timestep_logit_std: float = 1.0

    def __post_init__(self) -> None:
        """Refuse values that cannot work, naming the flag."""
        super().__post_init__()
        check_ranges(self, not_negative=("timestep_logit_std",), share=("label_dropout",))
