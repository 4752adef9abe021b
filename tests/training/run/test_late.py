import torch

from hf_latent.training.run.late import LateValues


def test_values_are_read_one_call_later():
    late = LateValues(torch.device("cpu"))
    first, second, third = torch.tensor([1.0, 2.0]), torch.tensor([3.0]), torch.ones(2, 3)
    assert late.take() is None
    assert late.exchange(first) is None
    assert late.exchange(second) is first
    assert late.take() is second
    assert late.take() is None
    assert late.exchange(third) is None
