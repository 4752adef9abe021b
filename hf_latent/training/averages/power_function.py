"""Averages of the weights whose length grows with the training: power-function averages.

Karras et al. 2024, "Analyzing and Improving the Training Dynamics of Diffusion Models", section 3.
After t steps the weights of step tau count as tau^gamma, so the average forgets the beginning, and
its length is always the same share of the training: `sigma_rel`, the deviation of that profile
over its end t.
"""

from collections.abc import Iterable

import numpy as np
from diffusers.training_utils import EMAModel
from torch import nn

from hf_latent.errors import UserError

MAX_SIGMA_REL = 0.28  # at gamma = 0, where all steps weigh the same, it is 1 / sqrt(12) = 0.289


def gamma_from_sigma_rel(sigma_rel: float) -> float:
    """Return the exponent of the average of a relative length.

    Karras et al. 2024, section 3.1: sigma_rel^2 (gamma + 2)^2 (gamma + 3) = gamma + 1. With
    u = sigma_rel gamma, which is about 1 for short averages, no coefficient grows beyond bounds:
    u^3 + 7 sigma_rel u^2 + (16 sigma_rel^2 - 1) u + 12 sigma_rel^3 - sigma_rel = 0.

    Args:
        sigma_rel: deviation of the profile, as a share of the steps up to its end.

    Returns:
        gamma, above 0.

    Raises:
        UserError: if `sigma_rel` is not above 0 and below 0.28.
    """
    if not 0 < sigma_rel < MAX_SIGMA_REL:
        raise UserError(f"--sigma_rel must be above 0 and below {MAX_SIGMA_REL}, not {sigma_rel}")
    s = sigma_rel
    roots = np.roots([1, 7 * s, 16 * s**2 - 1, 12 * s**3 - s])
    return float(roots.real.max()) / s


class PowerFunctionEMA(EMAModel):
    """The average of a model's weights over all of its training, later steps weighing more.

    theta(t) = beta(t) theta(t-1) + (1 - beta(t)) w(t), with beta(t) = (1 - 1/t)^(gamma + 1), t from
    1 (Karras et al. 2024, section 3.1). In theta(t), w(s) has the weight
    (s^(gamma + 1) - (s-1)^(gamma + 1)) / t^(gamma + 1): just what the continuous profile
    (gamma + 1) tau^gamma / t^(gamma + 1) has between s-1 and s. The weights before the first step
    have none.

    Args:
        parameters: of the model, in the order that `step` will get them.
        sigma_rel: the length, see `gamma_from_sigma_rel`.

    Raises:
        UserError: as of `gamma_from_sigma_rel`.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], sigma_rel: float):
        """Start with the weights as they are; see the class."""
        super().__init__(parameters, foreach=True)
        self.sigma_rel, self.gamma = sigma_rel, gamma_from_sigma_rel(sigma_rel)

    def get_decay(self, optimization_step: int) -> float:
        """Return beta(t), without EMAModel's warm-up and bounds.

        Args:
            optimization_step: t; `step` has counted the step that it adds, so the first has 1.
        """
        return (1 - 1 / optimization_step) ** (self.gamma + 1)
