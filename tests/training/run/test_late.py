import torch

from hf_latent.training.run.late import LateValues


def test_values_are_read_one_call_later():
    late = LateValues(torch.device("cpu"))
    assert late.take() is None
    assert late.exchange(torch.tensor([1.0, 2.0])) is None
    assert late.exchange(torch.tensor([3.0])) == [1.0, 2.0]
    assert late.take() == [3.0]
    assert late.take() is None
    assert late.exchange(torch.tensor([4.0])) is None
