import pytest
import torch
from diffusers.training_utils import EMAModel

from hf_latent.training.run.ema import create_ema, ema_weights


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


def test_the_average_is_that_of_diffusers():
    model = torch.nn.Linear(3, 4)
    model.bias.requires_grad_(False)
    average = create_ema(model, 0.6, torch.device("cpu"))  # the decay rises from 0 to 0.6
    reference = EMAModel(model.parameters(), decay=0.6, use_ema_warmup=True, power=0.75)
    for _ in range(6):
        with torch.no_grad():
            model.weight += torch.randn(4, 3)
        for ema in (average, reference):
            ema.step(model.parameters())
        for ours, theirs in zip(average.shadow_params, reference.shadow_params, strict=True):
            torch.testing.assert_close(ours, theirs)
    assert average.cur_decay_value == reference.cur_decay_value == 0.6
    assert not torch.equal(average.shadow_params[0], model.weight)
    assert torch.equal(average.shadow_params[1], model.bias)
