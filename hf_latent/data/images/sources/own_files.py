"""Refuse rows that name files outside their source: a download must not read private images."""

import os
from collections.abc import Sequence
from pathlib import Path

import datasets
import huggingface_hub
import numpy as np
import pyarrow.compute as pc
from datasets import Dataset
from huggingface_hub.file_download import repo_folder_name

from hf_latent.errors import UserError


def hub_folders(repo_id: str) -> list[Path]:
    """Return the folders of a Hub data set's downloaded and extracted files."""
    name = repo_folder_name(repo_id=repo_id, repo_type="dataset")
    return [
        Path(huggingface_hub.constants.HF_HUB_CACHE) / name,
        Path(datasets.config.DOWNLOADED_DATASETS_PATH),
    ]


def check_own_files(dataset: Dataset, data: str, folders: Sequence[Path]) -> None:
    """Check that each image is embedded in its row, or is a file in one of the folders.

    Args:
        dataset: has a column `image` of type `Image(decode=False)`.
        data: name of the source, for the message.
        folders: hold the source's own files; empty if it must embed all images.

    Raises:
        UserError: for the first row that names another file, also through a link.
    """
    column = dataset.data.column("image")
    content, path = (pc.struct_field(column, name) for name in ("bytes", "path"))
    lengths = [pc.fill_null(pc.binary_length(part), 0).to_numpy() for part in (content, path)]
    allowed = [os.path.realpath(folder) for folder in folders]
    for row in np.flatnonzero((lengths[0] == 0) & (lengths[1] > 0)):
        name = path[int(row)].as_py()
        if not any(Path(os.path.realpath(name)).is_relative_to(folder) for folder in allowed):
            raise UserError(
                f"{data}: row {row} holds no image but the path {name!r}, which is not opened: "
                "embed the images (save_to_disk of `datasets` does), or give --data the folder of "
                "image files itself"
            )
