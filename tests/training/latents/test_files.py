import pytest
import torch

from hf_latent.data.shards import write_shard
from hf_latent.errors import UserError
from hf_latent.models.fold import measure_latents
from hf_latent.training.latents.files import finish_folder, start_folder, sum_file
from tests.data.latent_caches import read_json, write_latents

NAME = "train-000001.safetensors"


@pytest.fixture
def folder(tmp_path):
    write_latents(tmp_path / "cache", rows=12, shard_rows=5)
    return tmp_path / "cache"


def begun(folder) -> dict:
    manifest = read_json(folder)
    del manifest["shards"]
    return manifest


def test_the_sums_of_a_file_include_all_its_views(tmp_path):
    generator = torch.Generator().manual_seed(0)
    mean, std = torch.randn(2, 3, 2, 4, 5, 6, generator=generator)
    write_shard(tmp_path / NAME, {"mean": mean, "std": std})
    sums = torch.tensor(sum_file(tmp_path / NAME), dtype=torch.float64)
    axes = (0, 1, 3, 4)
    expected = [
        torch.full((4,), 3.0 * 2 * 5 * 6, dtype=torch.float64),
        mean.double().sum(axes),
        mean.double().square().sum(axes),
        std.double().square().sum(axes),
    ]
    torch.testing.assert_close(sums, torch.stack(expected), rtol=1e-6, atol=1e-6)


def test_the_statistics_follow_from_the_sums_in_7_digits(tmp_path):
    sums = torch.rand(2, 4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 1
    sums[:, 2] += 9
    shards = {NAME: {"rows": 1, "bytes": 2, "sha256": "3"}}
    finish_folder(tmp_path, {"format": "f"}, shards, sums.tolist())
    written = read_json(tmp_path)
    expected = measure_latents(sums.sum(0))
    assert written["latents_mean"] == [float(f"{x:.7g}") for x in expected.mean.tolist()]
    assert written["latents_std"] == [float(f"{x:.7g}") for x in expected.std.tolist()]
    assert written["shards"] == shards


def test_a_new_folder_has_a_manifest(tmp_path):
    start_folder(tmp_path / "new" / "cache", {"format": "f"})
    assert read_json(tmp_path / "new" / "cache") == {"format": "f"}


def test_a_damaged_manifest_is_refused_or_replaced(folder):
    manifest = begun(folder)
    (folder / "manifest.json").write_text("{")
    with pytest.raises(UserError, match=r"manifest.json is damaged"):
        start_folder(folder, manifest)
    start_folder(folder, manifest, replace_other=True)
    assert [path.name for path in folder.iterdir()] == ["manifest.json"]
    assert read_json(folder) == manifest


def test_a_killed_removal_of_another_cache_is_continued(folder, monkeypatch):
    other = begun(folder) | {"dtype": "float16"}
    unlink, count = type(folder).unlink, [0]

    def killed(path, **arguments):
        count[0] += 1
        if count[0] == 3:
            raise KeyboardInterrupt
        unlink(path, **arguments)

    with monkeypatch.context() as patch:
        patch.setattr(type(folder), "unlink", killed)
        with pytest.raises(KeyboardInterrupt):
            start_folder(folder, other, replace_other=True)
    assert len(list(folder.iterdir())) == 4
    start_folder(folder, other, replace_other=True)
    assert read_json(folder) == other
    assert len(list(folder.iterdir())) == 1
