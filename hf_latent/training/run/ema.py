"""The moving average of the weights, in and out of the model."""

from collections.abc import Iterator
from contextlib import contextmanager

from diffusers.training_utils import EMAModel
from torch import nn


@contextmanager
def ema_weights(ema: EMAModel, model: nn.Module) -> Iterator[None]:
    """Put the averaged weights into a model for a while, and the trained ones back after.

    Args:
        ema: the average of the model's parameters.
        model: changed in place.

    Yields:
        Nothing; inside, the model has the averaged weights.
    """
    ema.store(model.parameters())
    ema.copy_to(model.parameters())
    try:
        yield
    finally:
        ema.restore(model.parameters())
