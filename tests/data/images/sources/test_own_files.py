import io

import datasets
import huggingface_hub
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict, Features, Image
from PIL import Image as PILImage

from hf_latent.data.images.open import ImagesConfig, open_images
from hf_latent.data.images.sources import open_source
from hf_latent.data.images.sources.own_files import hub_folders
from hf_latent.errors import UserError


def png(value):
    buffer = io.BytesIO()
    PILImage.fromarray(np.full((4, 4), value, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def private(tmp_path):
    """An image that no data set may read."""
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "a.png").write_bytes(png(9))
    return str(tmp_path / "private" / "a.png")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The caches of the Hub, and what `load_dataset` returns for `owner/name`."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(datasets.config, "DOWNLOADED_DATASETS_PATH", tmp_path / "downloads")
    rows = []
    monkeypatch.setattr(
        datasets,
        "load_dataset",
        lambda _data: DatasetDict(
            train=Dataset.from_dict({"image": rows}, features=Features({"image": Image()}))
        ),
    )
    return rows


def write_parquet(file, cells):
    file.parent.mkdir(exist_ok=True)
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    pq.write_table(pa.table({"image": pa.array(cells, kind)}), file)


def assert_refused(data, row, path):
    with pytest.raises(UserError, match=f"row {row} holds no image but the path") as caught:
        open_source(data)
    assert repr(path) in str(caught.value) and "embed" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [None, b""])
@pytest.mark.parametrize("file", ["train.parquet", "test.parquet"])
def test_parquet_must_embed_its_images(tmp_path, private, content, file):
    cells = [{"bytes": png(1), "path": private}, None, {"bytes": content, "path": private}]
    for name in ("train.parquet", "test.parquet"):
        write_parquet(tmp_path / "data" / name, cells if name == file else cells[:1])
    assert_refused(str(tmp_path / "data"), 2, private)
    assert_refused(str(tmp_path / "data" / file), 2, private)


def test_saved_data_sets_must_embed_their_images(tmp_path, private):
    cells = [{"bytes": png(1), "path": None}, {"bytes": None, "path": private}]
    features = Features(
        {"image": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}}
    )
    Dataset.from_dict({"image": cells}, features=features).save_to_disk(tmp_path / "saved")
    assert_refused(str(tmp_path / "saved"), 1, private)


def test_save_to_disk_embeds_as_the_message_says(tmp_path, private):
    rows = Dataset.from_dict({"image": [private]}, features=Features({"image": Image()}))
    rows.to_parquet(tmp_path / "rows.parquet")
    assert_refused(str(tmp_path / "rows.parquet"), 0, private)
    rows.save_to_disk(tmp_path / "saved")
    assert open_source(str(tmp_path / "saved")).train[0]["image"]["bytes"] == png(9)


def test_hub_data_may_name_its_own_downloads(tmp_path, hub):
    for number, folder in enumerate(hub_folders("owner/name")):
        (folder / "snapshots").mkdir(parents=True)
        (folder / "blob").write_bytes(png(number))
        (folder / "snapshots" / "a.png").symlink_to("../blob")
        hub.append({"bytes": None, "path": str(folder / "snapshots" / "a.png")})
    splits = open_images(ImagesConfig(data="owner/name", resolution=4))
    assert len(splits.train) + len(splits.validation) == 2


def test_hub_data_may_name_no_other_file(tmp_path, hub, private):
    own = hub_folders("owner/name")[0]
    own.mkdir(parents=True)
    (own / "link.png").symlink_to(private)
    for path in (
        private,
        str(own / "link.png"),
        str(own / ".." / ".." / "private" / "a.png"),
        str(own) + "-other/a.png",
        "https://example.com/a.png",
    ):
        hub[:] = [{"bytes": png(1), "path": None}, {"bytes": None, "path": path}]
        assert_refused("owner/name", 1, path)


def test_image_folders_may_link_to_where_the_files_are(tmp_path, private):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").symlink_to(private)
    assert len(open_source(str(tmp_path / "images")).train) == 1
