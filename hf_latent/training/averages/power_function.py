"""Power-function averages of the weights.

Karras et al. 2024, "Analyzing and Improving the Training Dynamics of Diffusion Models", section 3.
After t steps, the weights of step tau count in proportion to tau^gamma. So the average's length
grows with the training: its relative length `sigma_rel`, the standard deviation of this profile
over its end t, stays the same.
"""

from collections.abc import Iterable

import numpy as np
from torch import nn

from hf_latent.errors import UserError
from hf_latent.training.run.ema import WeightAverage

MAX_SIGMA_REL = 0.28  # at gamma = 0, if all steps count the same, it is 1 / sqrt(12) = 0.289


def gamma_from_sigma_rel(sigma_rel: float) -> float:
    """Return the exponent gamma, above 0, of the average with a relative length.

    Karras et al. 2024, section 3.1: sigma_rel^2 (gamma + 2)^2 (gamma + 3) = gamma + 1. This is
    solved for u = sigma_rel gamma: as u is about 1 for short averages, no coefficient is large.
    u^3 + 7 sigma_rel u^2 + (16 sigma_rel^2 - 1) u + 12 sigma_rel^3 - sigma_rel = 0.

    Raises:
        UserError: if `sigma_rel` is not above 0 and below 0.28.
    """
    if not 0 < sigma_rel < MAX_SIGMA_REL:
        raise UserError(f"--sigma_rel must be above 0 and below {MAX_SIGMA_REL}, not {sigma_rel}")
    s = sigma_rel
    roots = np.roots([1, 7 * s, 16 * s**2 - 1, 12 * s**3 - s])
    return float(roots.real.max()) / s


class PowerFunctionEMA(WeightAverage):
    """The average of a model's weights over all of its training; later steps count more.

    theta(t) = beta(t) theta(t-1) + (1 - beta(t)) w(t), with beta(t) = (1 - 1/t)^(gamma + 1), t from
    1 (Karras et al. 2024, section 3.1). In theta(t), the share of w(s) is
    (s^(gamma + 1) - (s-1)^(gamma + 1)) / t^(gamma + 1), the integral of the continuous profile
    (gamma + 1) tau^gamma / t^(gamma + 1) from s-1 to s. The initial weights do not count.

    Args:
        parameters: the model's parameters, in the order in which `step` gets them.
        sigma_rel: the relative length, as in `gamma_from_sigma_rel`.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], sigma_rel: float):
        """Start without any step; see the class."""
        super().__init__(parameters, foreach=True)
        self.sigma_rel, self.gamma = sigma_rel, gamma_from_sigma_rel(sigma_rel)

    def get_decay(self, optimization_step: int) -> float:
        """Return beta(t), without EMAModel's warm-up and bounds; t is 1 at the first step."""
        return (1 - 1 / optimization_step) ** (self.gamma + 1)
