"""The settings of encoding images once, before the denoiser trains."""

from dataclasses import dataclass
from typing import Literal

from jsonargparse.typing import NonNegativeInt, PositiveInt

from hf_latent.data.images.config import ImagesConfig
from hf_latent.errors import UserError


@dataclass(frozen=True, kw_only=True)
class EncodeConfig(ImagesConfig):
    """Encode images into a latent cache: posteriors on disk, for any number of denoisers.

    Killed, the same command goes on where it stopped. Several processes share the work, and make
    the same files as one.

    Attributes:
        vae: the autoencoder: a folder or Hub id, of an autoencoder or of a whole pipeline.
        output_dir: the cache's folder.
        encode_batch_size: images at a time.
        dtype: of what is stored; float16 halves the files, and rounds to 3 digits.
        shard_rows: images a file; unset, from the amount of data: about 32 MB a file, and 16
            files where there are images enough. A stream needs a file a process and worker.
        dataloader_num_workers: processes that read images.
        max_validation_samples: so many held-out images, evenly spaced; unset, all.
    """

    vae: str
    output_dir: str
    encode_batch_size: PositiveInt = 64
    dtype: Literal["float32", "float16"] = "float32"
    shard_rows: PositiveInt | None = None
    dataloader_num_workers: NonNegativeInt = 0
    max_validation_samples: PositiveInt | None = None

    def __post_init__(self) -> None:
        """Refuse values that cannot work, naming the flag."""
        super().__post_init__()
        if self.crop == "random":
            raise UserError(
                "--crop random does not go with latents that are encoded once: use center, or "
                "train with --encode_every_step true"
            )
