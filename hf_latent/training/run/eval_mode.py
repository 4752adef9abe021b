"""Use a model that trains for something else than a training step."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode, without dropout and compilation; afterwards restore its mode.

    `torch.compile` takes minutes for every shape, and again without gradients. So only training
    steps, which all have one shape, use what it makes.

    Args:
        model: changed in place.
    """
    training = model.training
    model.eval()
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        model.train(training)
