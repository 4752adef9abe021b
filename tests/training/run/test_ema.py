import pytest
import torch
from diffusers.training_utils import EMAModel

from hf_latent.training.run.ema import ema_weights


def test_ema_weights_restores_the_trained_weights():
    model = torch.nn.Linear(2, 2)
    ema = EMAModel(model.parameters())
    average = model.weight.detach().clone()
    with torch.no_grad():
        model.weight += 1
    trained = model.weight.detach().clone()
    with pytest.raises(RuntimeError), ema_weights(ema, model):
        assert torch.equal(model.weight, average)
        raise RuntimeError
    assert torch.equal(model.weight, trained)
