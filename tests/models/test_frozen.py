import torch

from hf_latent.models.frozen import freeze, hash_weights
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
