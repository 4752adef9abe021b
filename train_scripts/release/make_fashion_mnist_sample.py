"""Make the package's sample of Fashion-MNIST from the four original files.

    python train_scripts/release/make_fashion_mnist_sample.py \
        --source /usr/share/datasets/fashion-mnist --output_dir hf_latent/data/fashion_mnist_sample

Debian's package `dataset-fashion-mnist` installs these files.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hf_latent.command import Settings, run_command
from hf_latent.data.fashion_mnist import read_idx_folder
from hf_latent.data.quiet import quiet_datasets
from hf_latent.errors import UserError
from hf_latent.output import replaced_whole

IMAGES_PER_CLASS = {"train": 1300, "test": 200}


@dataclass(frozen=True, kw_only=True)
class SampleConfig(Settings):
    """Write train.parquet and test.parquet with the first images of each class.

    Attributes:
        source: The folder of the four original idx.gz files.
        output_dir: The folder to write to.
    """

    source: str
    output_dir: str


def first_per_class(labels: np.ndarray, images_per_class: int) -> np.ndarray:
    """Return the sorted row numbers of the first `images_per_class` images of each class."""
    rows = [np.flatnonzero(labels == label)[:images_per_class] for label in np.unique(labels)]
    return np.sort(np.concatenate(rows))


def make_sample(config: SampleConfig) -> None:
    """Write the sample.

    Raises:
        UserError: if the source or one of its files is missing.
    """
    source, output_dir = Path(config.source), Path(config.output_dir)
    if not source.is_dir():
        raise UserError(f"--source {source} is not a folder: install dataset-fashion-mnist")
    with quiet_datasets():
        splits = read_idx_folder(source)
        output_dir.mkdir(parents=True, exist_ok=True)
        for split, dataset in splits.items():
            rows = first_per_class(np.array(dataset["label"]), IMAGES_PER_CLASS[split])
            with replaced_whole(output_dir / f"{split}.parquet") as temporary:
                dataset.select(rows).to_parquet(temporary)


if __name__ == "__main__":
    run_command(SampleConfig, make_sample)
