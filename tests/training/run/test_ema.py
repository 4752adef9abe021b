import pytest
import torch
from diffusers.training_utils import EMAModel

from hf_latent.training.run.ema import ema_weights


def test_averaged_weights_come_in_and_go_out_again():
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
