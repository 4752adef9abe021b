"""The moving average of a model's weights, and the use of a model between two training steps."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from diffusers.training_utils import EMAModel
from torch import nn


class WeightAverage(EMAModel):
    """diffusers' moving average, whose step changes the average in place.

    `EMAModel.step` makes new tensors of the differences, which takes eight times as long on a CPU.
    """

    def step(self, parameters: Iterable[nn.Parameter]) -> None:
        """Add (1 - decay) (weights - average) to the average, after a step of the training."""
        self.optimization_step += 1
        self.cur_decay_value = self.get_decay(self.optimization_step)
        with torch.no_grad():
            torch._foreach_lerp_(self.shadow_params, list(parameters), 1 - self.cur_decay_value)


def create_ema(model: nn.Module, decay: float, device: torch.device) -> WeightAverage:
    """Create the moving average of a model's weights, with diffusers' warm-up for short runs."""
    ema = WeightAverage(
        model.parameters(), decay=decay, use_ema_warmup=True, power=0.75, foreach=True
    )
    ema.to(device)
    return ema


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
