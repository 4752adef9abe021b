import pytest
import torch

from hf_latent.models.frozen import FrozenWeights, freeze, hash_weights
from tests.conftest import make_autoencoder


def test_hash_tells_every_change_of_a_weight(vae):
    before = hash_weights(vae)
    assert before == hash_weights(make_autoencoder())
    assert len(before) == 64
    with torch.no_grad():
        weight = vae.decoder.conv_out.weight
        weight[0, 0, 0, 0] = torch.nextafter(weight[0, 0, 0, 0], torch.tensor(9.0))
    assert hash_weights(vae) != before


def test_hash_of_other_dtypes(vae):
    assert hash_weights(vae.to(torch.bfloat16)) != hash_weights(make_autoencoder())


def test_freeze(vae):
    frozen = freeze(vae.train())
    assert frozen is vae
    assert not vae.training
    assert not any(parameter.requires_grad for parameter in vae.parameters())


def test_frozen_weights_know_their_model_again_and_no_other():
    vae = make_autoencoder()
    state = FrozenWeights(vae).state()
    FrozenWeights(make_autoencoder()).load_state(state)
    with torch.no_grad():
        vae.quant_conv.bias[0] += 1e-6
    with pytest.raises(ValueError, match="not the one"):
        FrozenWeights(vae).load_state(state)
