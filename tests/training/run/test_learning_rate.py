import pytest
import torch
from diffusers.optimization import get_cosine_schedule_with_warmup
from transformers import get_wsd_schedule

from hf_latent.training.run.learning_rate import constant_with_decay, cosine_with_warmup


@pytest.fixture
def optimizer() -> torch.optim.Optimizer:
    return torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1.0)


@pytest.mark.parametrize(("warmup", "steps"), [(5, 40), (0, 10), (10, 1000)])
def test_cosine_equals_diffusers(optimizer, warmup, steps):
    schedule = get_cosine_schedule_with_warmup(optimizer, warmup, steps).lr_lambdas[0]
    for step in range(steps + 1):
        assert cosine_with_warmup(step / steps, warmup / steps) == pytest.approx(schedule(step))


@pytest.mark.parametrize(("warmup", "decay", "steps"), [(5, 8, 40), (0, 10, 10), (10, 0, 1000)])
def test_constant_with_decay_equals_transformers(optimizer, warmup, decay, steps):
    schedule = get_wsd_schedule(optimizer, warmup, decay, steps, decay_type="1-sqrt").lr_lambdas[0]
    for step in range(steps):
        found = constant_with_decay(step / steps, warmup / steps, decay / steps)
        assert found == pytest.approx(schedule(step), abs=1e-9)
