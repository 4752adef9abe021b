"""Weights that are not finite, and an autoencoder that overflows in float16."""

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file

from hf_latent.errors import UserError
from hf_latent.evaluation.images.sampling import load_pipeline
from hf_latent.models.frozen import hash_weights
from hf_latent.models.load import load_autoencoder, load_denoiser
from hf_latent.pipeline import LatentDiffusionPipeline
from hf_latent.pipeline.weights import check_weights
from tests.conftest import make_guide


@pytest.fixture
def overflowing(pipeline):
    """A float16 autoencoder whose activations exceed 65,504 at both ends and cancel again."""
    with torch.no_grad():
        for convolution in (pipeline.vae.encoder.conv_in, pipeline.vae.decoder.conv_in):
            convolution.weight.mul_(1.5e5)
    pipeline.vae.half()
    return pipeline


@pytest.mark.parametrize("force_upcast", [True, False])
def test_force_upcast_prevents_overflow_and_keeps_the_weights(overflowing, force_upcast):
    overflowing.vae.register_to_config(force_upcast=force_upcast)
    before = hash_weights(overflowing.vae)
    images = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents = overflowing.encode_images(images, sample_posterior=False)
    decoded = overflowing.decode_latents(torch.ones(2, 4, 4, 4))
    assert latents.dtype == decoded.dtype == overflowing.vae.dtype == torch.float16
    assert hash_weights(overflowing.vae) == before
    for found in (latents, decoded):
        assert found.isfinite().all().item() == force_upcast


def test_upcast_results_equal_those_of_float32(overflowing):
    overflowing.vae.register_to_config(force_upcast=True)
    latents = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0)).half()
    found = overflowing.decode_latents(latents)
    overflowing.vae.float()
    assert torch.equal(found, overflowing.decode_latents(latents).half())


@pytest.mark.parametrize("component", ["vae", "unet", "guide_unet"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_refused(pipeline, tmp_path, component, value):
    """Made, saved and loaded, by us and by plain diffusers."""
    pipeline.guide_unet = make_guide(pipeline.vae)
    pipeline.save_pretrained(tmp_path / "good")
    (file,) = (tmp_path / "good" / component).glob("*.safetensors")
    weights = load_file(file)
    weights["conv_out.bias" if component != "vae" else "quant_conv.bias"][0] = value
    save_file(weights, file, metadata={"format": "pt"})
    folder = str(tmp_path / "good")
    spoiled = getattr(pipeline, component)
    spoiled.load_state_dict(weights)
    message = f"1 weights of the {component} are not finite .*conv.*bias"
    for use in (
        lambda: LatentDiffusionPipeline(**pipeline.components),
        lambda: pipeline.save_pretrained(tmp_path / "again"),
        lambda: LatentDiffusionPipeline.from_pretrained(folder),
        lambda: DiffusionPipeline.from_pretrained(folder, trust_remote_code=True),
        lambda: load_pipeline(folder),
    ):
        with pytest.raises(ValueError, match=message):
            use()
    load, name = (load_autoencoder, folder) if component == "vae" else (load_denoiser, folder)
    if component != "guide_unet":
        with pytest.raises(UserError, match=message):
            load(name)
    assert not (tmp_path / "again").exists()


def test_large_weights_of_half_precision_are_finite():
    layer = torch.nn.Linear(8, 8).half()
    torch.nn.init.constant_(layer.weight, 60000.0)  # their sum is not a float16
    check_weights("layer", layer)
