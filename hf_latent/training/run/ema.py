"""Use a model with its averaged weights."""

from collections.abc import Iterator
from contextlib import contextmanager

from diffusers.training_utils import EMAModel
from torch import nn


@contextmanager
def ema_weights(ema: EMAModel, model: nn.Module) -> Iterator[None]:
    """Give a model its averaged weights inside the context, and its trained ones after it.

    Args:
        ema: the average of the model's parameters.
        model: changed in place.
    """
    ema.store(model.parameters())
    ema.copy_to(model.parameters())
    try:
        yield
    finally:
        ema.restore(model.parameters())
