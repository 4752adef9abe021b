"""The settings of `hf-latent evaluate`."""

from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import constants
from jsonargparse.typing import NonNegativeInt, PositiveInt

from hf_latent.errors import UserError
from hf_latent.evaluation.feature_extractors import FeatureExtractorName
from hf_latent.evaluation.images_of_model import ImagesOfModelConfig
from hf_latent.evaluation.sampling_config import SamplingConfig

CACHE_DIR = Path(constants.HF_HOME) / "hf_latent" / "vectors"
LARGEST_DEFAULT = 10_000
FEWEST_IMAGES = 10


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(ImagesOfModelConfig, SamplingConfig):
    """Measure a model: what its autoencoder keeps, how close its images come, whether it copies.

    Attributes:
        model: the folder or Hub id of a model, or the name of a released one.
        output_dir: the folder for metrics.json, pictures and the generated images. A run that was
            killed goes on from what is there.
        overwrite_output_dir: accept a folder with other files in it.
        num_images: generated images, and real ones to compare them with. There must be twice as
            many training images, so that real ones can be compared with real ones; unset, as many
            as there can be, at most 10,000.
        feature_extractor: the network that compares images: efficientnet-lite0 (of the extra
            features), dinov2 (from the Hub) or inception (of the extra inception, for comparison
            with papers).
        batch_size: images at a time.
        dataloader_num_workers: processes that decode images.
        cache_dir: where vectors of real images are kept, to be computed once.
    """

    model: str
    output_dir: str
    overwrite_output_dir: bool = False
    num_images: PositiveInt | None = None
    feature_extractor: FeatureExtractorName = "efficientnet-lite0"
    batch_size: PositiveInt = 100
    dataloader_num_workers: NonNegativeInt = 0
    cache_dir: str = str(CACHE_DIR)

    def count(self, train_images: int) -> int:
        """Return how many images to generate and to compare with.

        Args:
            train_images: how many there are.

        Raises:
            UserError: if there are too few.
        """
        most = train_images // 2
        if most < FEWEST_IMAGES:
            raise UserError(
                f"{train_images} training images are too few to measure anything: at least "
                f"{2 * FEWEST_IMAGES} are needed"
            )
        count = min(most, LARGEST_DEFAULT) if self.num_images is None else self.num_images
        if count > most or count < FEWEST_IMAGES:
            raise UserError(
                f"--num_images {count} does not fit {train_images} training images: it must be "
                f"from {FEWEST_IMAGES} to half of them, {most}"
            )
        return count
