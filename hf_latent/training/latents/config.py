"""The settings of encoding images into a latent cache."""

from dataclasses import dataclass
from typing import Literal

from jsonargparse.typing import NonNegativeInt, PositiveInt

from hf_latent.data.images.config import ImagesConfig
from hf_latent.errors import UserError


@dataclass(frozen=True, kw_only=True)
class EncodeConfig(ImagesConfig):
    """Encode images into a latent cache: posteriors on disk, for any number of denoisers.

    If it is killed, run the same command to continue. Several processes share the work and write
    the same files as one.

    Attributes:
        vae: The autoencoder, or a pipeline that contains it: its folder or that of the run that
            trained it, the name of a released one, or an id on the Hub.
        output_dir: The cache's folder.
        encode_batch_size: Number of images to encode at once.
        dtype: Type of the stored values. float16 halves the files and rounds to 3 digits.
        shard_rows: Images per file. By default files of about 32 MB, or smaller ones so that there
            are 16. A stream needs a file for each process and worker.
        dataloader_num_workers: Number of processes that read images.
        max_validation_samples: Number of held-out images to encode, evenly spaced. By default all.
    """

    vae: str
    output_dir: str
    encode_batch_size: PositiveInt = 64
    dtype: Literal["float32", "float16"] = "float32"
    shard_rows: PositiveInt | None = None
    dataloader_num_workers: NonNegativeInt = 0
    max_validation_samples: PositiveInt | None = None

    def __post_init__(self) -> None:
        """Check the values; errors name the flag."""
        super().__post_init__()
        if self.crop == "random":
            raise UserError(
                "--crop random does not go with latents that are encoded once: use center, or "
                "train with --encode_every_step true"
            )
