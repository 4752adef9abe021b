import pytest
import torch

from hf_latent.training.discriminator import PatchDiscriminator


def make_discriminator(channels: int = 3, num_layers: int = 3) -> PatchDiscriminator:
    torch.manual_seed(0)
    return PatchDiscriminator(channels, base_channels=8, num_layers=num_layers)


def pixels_seen(discriminator: PatchDiscriminator, size: int = 128) -> tuple[int, int]:
    """Height and width of what one logit in the middle depends on."""
    images = torch.randn(1, discriminator.config.in_channels, size, size, requires_grad=True)
    for layer in discriminator.layers:  # a normalisation would make it depend on all
        if isinstance(layer, torch.nn.GroupNorm):
            layer.forward = lambda x: x
    logits = discriminator(images)
    logits[0, 0, logits.shape[2] // 2, logits.shape[3] // 2].backward()
    seen = images.grad[0].abs().sum(0) > 0
    return int(seen.any(1).sum()), int(seen.any(0).sum())


@pytest.mark.parametrize(("num_layers", "patch"), [(1, 16), (2, 34), (3, 70)])
def test_one_logit_sees_a_patch_as_in_the_paper(num_layers, patch):
    assert pixels_seen(make_discriminator(num_layers=num_layers)) == (patch, patch)


@pytest.mark.parametrize(
    ("num_layers", "size", "expected"),
    [
        (1, (16, 16), (6, 6)),
        (1, (48, 80), (22, 38)),
        (2, (32, 32), (6, 6)),
        (2, (48, 80), (10, 18)),
        (3, (32, 32), (2, 2)),
        (3, (48, 80), (4, 8)),
        (3, (64, 64), (6, 6)),
        (4, (64, 96), (2, 4)),
    ],
)
def test_shape_of_the_logits(num_layers, size, expected):
    logits = make_discriminator(num_layers=num_layers)(torch.randn(2, 3, *size))
    assert logits.shape == (2, 1, *expected)


@pytest.mark.parametrize("channels", [1, 3, 4, 6])
def test_any_number_of_channels_is_used(channels):
    discriminator = make_discriminator(channels)
    images = torch.randn(2, channels, 32, 32, requires_grad=True)
    discriminator(images).square().sum().backward()
    assert (images.grad.abs().amax((2, 3)) > 0).all()


@pytest.mark.parametrize("base_channels", [1, 9, 33, 50, 100])
def test_any_base_width_works(base_channels):
    discriminator = PatchDiscriminator(3, base_channels=base_channels)
    assert discriminator(torch.randn(2, 3, 32, 32)).isfinite().all()
    for module in discriminator.modules():
        if isinstance(module, torch.nn.GroupNorm):
            assert 1 <= module.num_groups <= 32


@pytest.mark.parametrize("num_layers", [1, 2, 3, 5])
def test_nothing_is_normalised_over_the_batch(num_layers):
    modules = list(make_discriminator(num_layers=num_layers).modules())
    assert not [m for m in modules if isinstance(m, torch.nn.modules.batchnorm._NormBase)]
    assert len([m for m in modules if isinstance(m, torch.nn.GroupNorm)]) == num_layers


def test_an_image_gets_the_same_logits_alone_and_in_a_batch():
    discriminator = make_discriminator()
    images = torch.randn(5, 3, 48, 80) * torch.tensor([0.1, 1, 3, 0.5, 9]).view(5, 1, 1, 1)
    logits = discriminator(images)
    assert logits.std() > 1e-3
    for row, image in enumerate(images):
        alone = discriminator(image[None])
        torch.testing.assert_close(logits[row : row + 1], alone, rtol=0, atol=1e-5)


def test_saved_and_loaded_it_is_bit_equal(tmp_path):
    discriminator = make_discriminator(4, num_layers=2)
    discriminator.save_pretrained(tmp_path)
    loaded = PatchDiscriminator.from_pretrained(tmp_path, use_safetensors=True)
    assert dict(loaded.config)["num_layers"] == 2
    weights = discriminator.state_dict()
    assert loaded.state_dict().keys() == weights.keys()
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, weights[name]), name
