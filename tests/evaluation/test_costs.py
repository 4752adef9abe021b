from functools import partial

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker
from torch.utils.flop_counter import FlopCounterMode

from hf_latent.evaluation.costs import Costs
from tests.conftest import make_autoencoder

MB = 2**20


@pytest.fixture(params=["real", "fake"], autouse=True)
def tensors(request):
    if request.param == "real":
        yield
    else:
        with FakeTensorMode():
            yield


def count(call) -> Costs:
    with Costs() as costs:
        call()
    return costs


def test_a_convolution_and_its_gradients_are_counted():
    layer, images = nn.Conv2d(3, 8, 3, padding=1), torch.randn(2, 3, 16, 16, requires_grad=True)
    forward = 2 * (2 * 16 * 16) * (3 * 3 * 3) * 8  # products with sums, at every output
    assert count(partial(layer, images)).operations == forward
    assert count(lambda: layer(images).sum().backward()).operations == 3 * forward


def test_attention_is_counted_as_its_two_products():
    heads = torch.randn(3, 2, 4, 64, 8)  # query, key, value: images, heads, positions, channels
    product = 2 * (2 * 4) * 64 * 64 * 8
    attend = torch.nn.functional.scaled_dot_product_attention
    assert count(lambda: attend(*heads)).operations == 2 * product
    heads.requires_grad_()
    # The backward pass computes the attention again, and four products of gradients.
    assert count(lambda: attend(*heads).sum().backward()).operations == (2 + 5) * product


def test_the_peak_is_of_tensors_held_at_once():
    ones = torch.ones(MB // 4)

    def call() -> None:
        first = ones + 1
        del first
        second, third = ones + 2, ones + 3  # noqa: F841
        ones[1:].mul_(2)

    assert count(call).peak_bytes == 2 * MB


def test_weights_gradients_and_the_optimizer_do_not_count():
    layer, values = nn.Linear(512, 512, bias=False), torch.ones(4, 512)
    optimizer = torch.optim.AdamW(layer.parameters(), fused=True)

    def step() -> None:
        layer(values).sum().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)

    step()
    # A new gradient is held beside the one that it is added to; the rest are small.
    assert MB <= count(step).peak_bytes < 1.1 * MB


def test_a_frozen_module_is_measured():
    layer, values = nn.Linear(512, 512, bias=False).requires_grad_(False), torch.ones(512, 512)
    with torch.no_grad():
        assert count(partial(layer, values)).peak_bytes == MB


def test_a_model_costs_what_torch_counts():
    vae, images = make_autoencoder(sample_size=32), torch.zeros(2, 1, 32, 32)

    def call() -> None:
        vae(images).sample.mean().backward()
        vae.zero_grad()

    costs = count(call)
    with FlopCounterMode(display=False) as counter:
        call()
    assert costs.operations == counter.get_total_flops()
    tracker = MemTracker()
    tracker.track_external(vae, images)
    before = sum(x["Total"] for x in tracker.get_tracker_snapshot("current").values())
    with tracker:
        call()
    peak = sum(x["Total"] for x in tracker.get_tracker_snapshot("peak").values())
    assert costs.peak_bytes == pytest.approx(peak - before, rel=0.01)
