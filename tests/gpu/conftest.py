"""Tests of a GPU, `pytest -m gpu`. Most also run on the CPU, so that they are tried without one."""

import pytest
import torch
from accelerate.state import AcceleratorState

from tests import small

CUDA = pytest.param("cuda", marks=pytest.mark.gpu)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("no GPU")


@pytest.fixture(params=["cpu", CUDA])
def device(request, monkeypatch) -> str:
    """The device; Accelerate, which keeps device and precision for a process, starts anew."""
    if request.param == "cpu":
        monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", "cpu")
    AcceleratorState._reset_state(reset_partial_state=True)
    yield request.param
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(autouse=True, scope="module")
def small_trainings():
    with small.small_trainings():
        yield
