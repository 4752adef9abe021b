import pytest
import torch
from diffusers import AutoencoderKL

from hf_latent.errors import UserError
from hf_latent.hub.card.weights import read_saved_weights
from hf_latent.models.frozen import hash_weights

FILE = "diffusion_pytorch_model.safetensors"


def test_the_hash_is_that_of_the_model_in_memory(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    for name in ("vae", "unet"):
        model = getattr(pipeline, name)
        saved = read_saved_weights(tmp_path / name)
        assert saved.sha256 == hash_weights(model)
        assert saved.parameters == sum(x.numel() for x in model.parameters())
        assert saved.size_bytes == (tmp_path / name / FILE).stat().st_size
    assert read_saved_weights(tmp_path / "vae") != read_saved_weights(tmp_path / "unet")


def test_one_weight_changes_the_hash(vae, tmp_path):
    vae.save_pretrained(tmp_path / "one")
    with torch.no_grad():
        vae.decoder.conv_out.bias[0] += 1e-3
    vae.save_pretrained(tmp_path / "other")
    one, other = (read_saved_weights(tmp_path / name) for name in ("one", "other"))
    assert one.sha256 != other.sha256
    assert one.parameters == other.parameters


def test_shards_are_one_model_and_a_variant_beside_it_is_not_read(vae, tmp_path):
    vae.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    whole = read_saved_weights(tmp_path)
    assert whole.sha256 == hash_weights(vae)
    assert whole.parameters == sum(x.numel() for x in vae.parameters())
    with torch.no_grad():
        vae.decoder.conv_out.bias[0] += 1
    vae.save_pretrained(tmp_path, variant="fp16")
    assert read_saved_weights(tmp_path) == whole


def test_half_precision_is_hashed_as_it_is_loaded(vae, tmp_path):
    vae.to(torch.float16).save_pretrained(tmp_path)
    loaded = AutoencoderKL.from_pretrained(tmp_path, torch_dtype=torch.float32)
    assert read_saved_weights(tmp_path).sha256 == hash_weights(loaded)


def test_missing_and_damaged_weights_are_named_in_one_line(vae, tmp_path):
    message = f"^{tmp_path / FILE} is missing, cut short or damaged .*: save the model again$"
    with pytest.raises(UserError, match=message):
        read_saved_weights(tmp_path)
    vae.save_pretrained(tmp_path)
    (tmp_path / FILE).write_bytes((tmp_path / FILE).read_bytes()[:1000])
    with pytest.raises(UserError, match=message):
        read_saved_weights(tmp_path)
