import re
import sys
from pathlib import Path

import pytest
import torch

from hf_latent.evaluation.machine import anonymous_memory_mb, describe_machine


def test_it_says_what_a_figure_was_measured_with():
    machine = describe_machine()
    assert machine["torch_threads"] == torch.get_num_threads()
    assert machine["torch_version"] == torch.__version__
    if sys.platform == "linux":
        status = Path("/proc/self/status").read_text()
        peak_kb = int(re.search(r"VmHWM:\s+(\d+) kB", status).group(1))
        assert machine["peak_memory_mb"] == pytest.approx(peak_kb / 1024, rel=0.05)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
def test_memory_that_no_file_stands_behind_grows_with_what_is_allocated():
    before = anonymous_memory_mb()
    kept = torch.ones(64, 2**20)  # too large for memory that was given back before
    assert 240 < anonymous_memory_mb() - before < 272
    assert len(kept) == 64
