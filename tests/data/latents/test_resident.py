import pytest
import torch

from hf_latent.data.latents import resident
from hf_latent.data.latents.cache import LatentCache
from hf_latent.data.latents.resident import ResidentSplit, fits_on_device
from tests.data.latent_caches import assert_same_batch, write_latents

CPU = torch.device("cpu")


@pytest.mark.parametrize("block_bytes", [1, 2000, 2**26])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("mirrored", "classes"), [(True, True), (False, False)])
def test_resident_latents_are_those_of_the_files(
    tmp_path, monkeypatch, block_bytes, dtype, mirrored, classes
):
    monkeypatch.setattr(resident, "READ_BYTES", block_bytes)
    write_latents(tmp_path / "cache", mirrored=mirrored, classes=classes, dtype=dtype)
    split = LatentCache(tmp_path / "cache").train
    found = ResidentSplit(split, CPU)
    assert {found.tensors[name].dtype for name in ("mean", "std")} == {dtype}
    indices = torch.tensor([22, 0, 7, 7, 19])
    flips = torch.tensor([True, False, True, False, True]) if mirrored else None
    assert_same_batch(found.read(indices, flips), split.read(indices, flips))


def test_a_cache_stays_on_the_disk_on_a_cpu_and_if_a_gpu_has_no_room(tmp_path, monkeypatch):
    write_latents(tmp_path / "cache")
    split = LatentCache(tmp_path / "cache").train
    files = (tmp_path / "cache").glob("train-*")
    assert split.stored_bytes == sum(path.stat().st_size for path in files)
    assert not fits_on_device(split, CPU)
    for free, fits in ((3 * split.stored_bytes, True), (3 * split.stored_bytes - 1, False)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, 0))
        assert fits_on_device(split, torch.device("cuda")) is fits
