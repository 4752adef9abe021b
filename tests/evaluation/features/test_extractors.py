import copy

import pytest
import torch
from diffusers import AutoencoderTiny
from torch import nn
from torch.nn import functional as F
from transformers import Dinov2Config, Dinov2Model

from hf_latent.errors import UserError
from hf_latent.evaluation.features import networks as features
from hf_latent.evaluation.features.extractors import (
    Dinov2Vectors,
    InceptionVectors,
    LatentVectors,
    as_rgb_pixels,
    load_feature_extractor,
)
from hf_latent.evaluation.features.networks import load_feature_network
from hf_latent.models.load import load_autoencoder
from hf_latent.pipeline.encode import encode_images
from tests.conftest import make_autoencoder


def pixels(channels: int, *size: int, count: int = 3, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, channels, *size), generator=generator, dtype=torch.uint8)


class TinyInception(nn.Module):
    """Like `torch_fidelity.FeatureExtractorInceptionV3`: from 8-bit RGB to a tuple."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Conv2d(3, 5, 4)

    def forward(self, images):
        assert images.dtype == torch.uint8 and images.shape[1] == 3
        return (self.layer(images / 255).mean((2, 3)),)


def make_dinov2() -> Dinov2Vectors:
    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=16, num_hidden_layers=3, num_attention_heads=2, patch_size=14, image_size=56
    )
    return Dinov2Vectors(Dinov2Model(config).requires_grad_(False).eval(), "tiny")


EXTRACTORS = {
    "efficientnet": lambda: load_feature_extractor("efficientnet-lite0"),
    "dinov2": make_dinov2,
    "inception": lambda: InceptionVectors(TinyInception()).requires_grad_(False),
}


@pytest.fixture(scope="module", params=EXTRACTORS)
def extractor(request):
    return EXTRACTORS[request.param]()


def equal(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(96, 96), (104, 136)])
def test_efficientnet_vectors_are_the_mean_of_the_published_networks_maps(channels, size):
    images = pixels(channels, *size)
    network = load_feature_network("efficientnet-lite0").model
    maps = network.extract_features((images / 127.5 - 1).expand(-1, 3, -1, -1))
    found = load_feature_extractor("efficientnet-lite0")(images)
    assert (found.shape, found.dtype) == ((3, 1280), torch.float32)
    assert found.std() > 0.01
    equal(found, torch.stack([image.flatten(1).mean(1) for image in maps]))


def test_efficientnet_sees_small_images_enlarged_to_96_pixels():
    extractor, images = load_feature_extractor("efficientnet-lite0"), pixels(3, 16, 40)
    maps = extractor.network.model.extract_features(
        F.interpolate(images / 127.5 - 1, (96, 240), mode="bilinear", antialias=True)
    )
    equal(extractor(images), maps.mean((2, 3)))


def test_dinov2_is_the_class_token_at_224_pixels_on_imagenets_scale():
    extractor, images = make_dinov2(), pixels(3, 32, 48)
    resized = F.interpolate(images / 255, (224, 224), mode="bicubic", antialias=True).clamp(0, 1)
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    states = extractor.model(pixel_values=(resized - mean) / std).last_hidden_state
    assert extractor(images).shape == (3, 16)
    equal(extractor(images), states[:, 0])


def test_inception_vectors_are_the_models_first_output_for_8_bit_rgb():
    extractor, images = InceptionVectors(TinyInception()), pixels(1, 20, 20)
    with torch.no_grad():
        found = extractor(images)
        assert torch.equal(found, extractor.model(images.expand(-1, 3, -1, -1))[0])


def test_every_8_bit_level_reaches_inception_unchanged_and_rgba_rounded():
    levels, seen = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16), []
    model = TinyInception()
    model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    InceptionVectors(model)(levels)
    assert torch.equal(seen[0], levels.expand(-1, 3, -1, -1))
    rgba = torch.tensor([200, 100, 0, 50], dtype=torch.uint8).view(1, 4, 1, 1)
    InceptionVectors(model)(rgba.expand(1, 4, 8, 8))
    assert seen[1][0, :, 0, 0].tolist() == [244, 225, 205]  # on white: 244.2, 224.6, 205.0


def test_rgba_is_shown_on_white():
    images = torch.tensor([[200, 100, 0, 255], [200, 100, 0, 0], [200, 100, 0, 51]]).byte()
    shown = as_rgb_pixels(images.view(3, 4, 1, 1)).flatten(1) * 255
    expected = torch.tensor([[200, 100, 0], [255, 255, 255], [244, 224, 204]])
    torch.testing.assert_close(shown, expected.float(), rtol=0, atol=1e-3)


def test_grey_is_seen_as_rgb_and_transparency_as_white(extractor):
    grey = pixels(1, 32, 32)
    equal(extractor(grey), extractor(grey.expand(-1, 3, -1, -1)))
    rgba = pixels(4, 32, 32)
    opaque, clear = rgba.clone(), rgba.clone()
    opaque[:, 3], clear[:, 3] = 255, 0
    equal(extractor(opaque), extractor(rgba[:, :3]))
    white = extractor(torch.full((1, 3, 32, 32), 255, dtype=torch.uint8))
    equal(extractor(clear), white.expand(3, -1))
    assert (extractor(rgba) - extractor(opaque)).abs().max() > 1e-3


@pytest.mark.parametrize("channels", [1, 4])
def test_a_vector_does_not_depend_on_the_batch(extractor, channels):
    images = pixels(channels, 32, 32, count=7)
    together = extractor(images)
    equal(torch.cat([extractor(part) for part in images.split(3)]), together)
    equal(extractor(images.flip(0)), together.flip(0))
    assert (together.std(0) > 1e-4).any()


def test_the_preprocessing_is_one_line_and_names_network_and_weights():
    lines = [make().preprocessing for make in EXTRACTORS.values()]
    assert len(set(lines)) == 3 and not any("\n" in line for line in lines)
    other = make_dinov2().model
    other.layernorm.bias.data += 1
    assert Dinov2Vectors(other, "tiny").preprocessing != lines[1]


def test_a_loaded_extractor_is_frozen_and_in_eval_mode():
    extractor = load_feature_extractor("efficientnet-lite0")
    assert not any(module.training for module in extractor.modules())
    assert not any(parameter.requires_grad for parameter in extractor.parameters())


@pytest.mark.parametrize("vae", [make_autoencoder(), AutoencoderTiny(1, 1).eval()])
def test_latent_vectors_are_the_mean_latents_flattened(vae):
    extractor, images = LatentVectors(vae.requires_grad_(False)), pixels(1, 16, 16)
    expected = encode_images(vae, images / 127.5 - 1, sample_posterior=False)
    found = extractor(images)
    assert torch.equal(found, expected.reshape(3, -1))
    assert torch.equal(extractor(images), found)
    equal(extractor(images[1:2]), found[1:2])


def test_latent_vectors_of_other_weights_have_another_preprocessing():
    vae = load_autoencoder("fashion-mnist-f4")
    before = LatentVectors(vae).preprocessing
    assert LatentVectors(load_autoencoder("fashion-mnist-f4")).preprocessing == before
    vae.quant_conv.bias.data += 1e-3
    assert LatentVectors(vae).preprocessing != before


def test_dinov2_that_cannot_be_downloaded_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(features, "DINOV2", str(tmp_path / "nowhere"))
    with pytest.raises(UserError) as error:
        load_feature_extractor("dinov2")
    assert "nowhere cannot be downloaded from the Hub" in str(error.value)
    assert "\n" not in str(error.value)


def test_latents_on_another_scale_are_not_comparable(vae):
    before = LatentVectors(vae).preprocessing
    for changes in ({"scaling_factor": 0.18215}, {"shift_factor": 0.1}, {"latents_std": [2.0] * 4}):
        other = copy.deepcopy(vae)
        other.register_to_config(**changes)
        assert LatentVectors(other).preprocessing != before
