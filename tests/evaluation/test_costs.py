import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from hf_latent.evaluation.costs import count_operations, count_peak_bytes

MB = 2**20


@pytest.fixture(params=["real", "fake"], autouse=True)
def tensors(request):
    if request.param == "real":
        yield
    else:
        with FakeTensorMode():
            yield


def test_a_convolution_and_its_gradients_are_counted():
    layer, images = nn.Conv2d(3, 8, 3, padding=1), torch.randn(2, 3, 16, 16, requires_grad=True)
    forward = 2 * (2 * 16 * 16) * (3 * 3 * 3) * 8  # products with sums, at every output
    assert count_operations(lambda: layer(images)) == forward
    assert count_operations(lambda: layer(images).sum().backward()) == 3 * forward


def test_attention_is_counted_as_its_two_products():
    heads = torch.randn(3, 2, 4, 64, 8)  # query, key, value: images, heads, positions, channels
    product = 2 * (2 * 4) * 64 * 64 * 8
    attend = torch.nn.functional.scaled_dot_product_attention
    assert count_operations(lambda: attend(*heads)) == 2 * product
    heads.requires_grad_()
    # The backward pass computes the attention again, and four products of gradients.
    assert count_operations(lambda: attend(*heads).sum().backward()) == (2 + 5) * product


def test_the_peak_is_of_tensors_held_at_once():
    ones = torch.ones(MB // 4)

    def call() -> None:
        first = ones + 1
        del first
        second, third = ones + 2, ones + 3  # noqa: F841

    assert count_peak_bytes(call, ones) == 2 * MB


def test_weights_gradients_and_the_optimizer_do_not_count():
    layer, values = nn.Linear(512, 512, bias=False), torch.ones(4, 512)
    optimizer = torch.optim.AdamW(layer.parameters(), fused=True)

    def step() -> None:
        layer(values).sum().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)

    step()
    # A new gradient is held beside the one that it is added to; the rest are small.
    assert MB <= count_peak_bytes(step, layer, optimizer, values) < 1.1 * MB


def test_a_frozen_module_is_measured_and_stays_frozen():
    layer, values = nn.Linear(512, 512, bias=False).requires_grad_(False), torch.ones(512, 512)
    with torch.no_grad():
        assert count_peak_bytes(lambda: layer(values), layer, values) == MB
    assert not layer.weight.requires_grad
