import mmap
import re
import sys
from pathlib import Path

import pytest
import torch

from hf_latent.evaluation.machine import anonymous_memory_mb, machine_figures, shown_name


def test_machine_figures():
    machine = machine_figures()
    assert machine["torch_threads"] == torch.get_num_threads()
    assert machine["torch_version"] == torch.__version__
    assert machine["device_name"].strip()
    if sys.platform == "linux":
        status = Path("/proc/self/status").read_text()
        peak_kb = int(re.search(r"VmHWM:\s+(\d+) kB", status).group(1))
        assert machine["peak_memory_mb"] == pytest.approx(peak_kb / 1024, rel=0.05)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has /proc/self/status")
def test_anonymous_memory_grows_with_allocations():
    before = anonymous_memory_mb()
    # Use mmap: torch might reuse memory that this process already has.
    kept = mmap.mmap(-1, 2**28, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    torch.frombuffer(kept, dtype=torch.uint8).fill_(1)
    assert 240 < anonymous_memory_mb() - before < 272
    assert kept[-1] == 1


def test_shown_name_has_no_path_and_differs_from_built_in_names(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for name in ("clothes", "fashion_mnist", "fashion_mnist_full"):
        (tmp_path / name).mkdir()
    assert shown_name(str(tmp_path / "clothes")) == shown_name("~/clothes") == "clothes"
    assert shown_name(".") == tmp_path.name
    for given in ("./fashion_mnist", "~/fashion_mnist", str(tmp_path / "fashion_mnist")):
        assert shown_name(given) == "./fashion_mnist"
    # As in open_source, the name alone means the built-in images, even if a folder has it.
    assert shown_name("fashion_mnist_full") == "fashion_mnist_full"
    assert shown_name("owner/set") == "owner/set"
    assert shown_name("/no/such/images") == "images"
