import pytest
import torch

from hf_latent.models.frozen import FrozenWeights, freeze, hash_autoencoder, hash_weights
from tests.conftest import make_autoencoder


def test_every_change_of_a_weight_changes_the_hash(vae):
    before = hash_weights(vae)
    assert before == hash_weights(make_autoencoder())
    assert len(before) == 64
    with torch.no_grad():
        weight = vae.decoder.conv_out.weight
        weight[0, 0, 0, 0] = torch.nextafter(weight[0, 0, 0, 0], torch.tensor(9.0))
    assert hash_weights(vae) != before


def test_the_dtype_changes_the_hash(vae):
    assert hash_weights(vae.to(torch.bfloat16)) != hash_weights(make_autoencoder())


def test_freeze(vae):
    frozen = freeze(vae.train())
    assert frozen is vae
    assert not vae.training
    assert not any(parameter.requires_grad for parameter in vae.parameters())


def test_frozen_weights_accept_only_their_own_model():
    vae = make_autoencoder()
    state = FrozenWeights(vae).state()
    FrozenWeights(make_autoencoder()).load_state(state)
    with torch.no_grad():
        vae.quant_conv.bias[0] += 1e-6
    with pytest.raises(ValueError, match="not the one"):
        FrozenWeights(vae).load_state(state)


def test_an_autoencoders_hash_depends_on_weights_and_latent_scale():
    before = hash_autoencoder(make_autoencoder())
    assert before == hash_autoencoder(make_autoencoder().to(torch.float32))
    for change in ({"scaling_factor": 0.5}, {"shift_factor": 0.1}, {"latents_mean": [0.0] * 4}):
        vae = make_autoencoder()
        vae.register_to_config(**change)
        assert hash_autoencoder(vae) != before, change
    vae = make_autoencoder()
    with torch.no_grad():
        vae.quant_conv.bias[0] += 1
    assert hash_autoencoder(vae) != before


def test_an_autoencoders_hash_survives_a_save_and_ignores_the_image_size(tmp_path):
    vae = make_autoencoder()
    vae.save_pretrained(tmp_path)
    assert hash_autoencoder(type(vae).from_pretrained(tmp_path)) == hash_autoencoder(vae)
    assert hash_autoencoder(make_autoencoder(sample_size=64)) == hash_autoencoder(vae)


def test_entries_with_default_values_do_not_change_the_hash():
    vae = make_autoencoder(mid_block_add_attention=True)
    before = hash_autoencoder(vae)
    config = {k: v for k, v in vae.config.items() if k != "mid_block_add_attention"}
    vae._internal_dict = type(vae.config)(config)
    assert hash_autoencoder(vae) == before
