"""An average of any length out of snapshots of others: which weights to sum them with, and the sum.

Karras et al. 2024, "Analyzing and Improving the Training Dynamics of Diffusion Models", section 3.2
and appendix C. A profile says how much every step of a training counts in an average: that of
(t, gamma) is p(tau) = (gamma + 1) tau^gamma / t^(gamma + 1) for tau in [0, t], and 0 after it. An
average is linear in its profile, so the sum of profiles that comes closest to a target's is also
how to sum the averages.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from hf_latent.errors import UserError
from hf_latent.training.averages.power_function import gamma_from_sigma_rel
from hf_latent.training.averages.snapshots import Snapshot

Profile: TypeAlias = tuple[float, float]  # (t, gamma)

# The residual is the distance of the profiles over the target's norm. Of weights that jitter about
# their course independently from step to step, it is the deviation that the fit adds, as a share
# of the deviation that the wanted average has itself: at 0.1 the variance grows by 1%. The nearest
# snapshot alone, taken for the wanted one, has more: that of 0.1 is 0.24 away from 0.07.
MAX_RELATIVE_RESIDUAL = 0.1


def inner_products(first: Sequence[Profile], second: Sequence[Profile]) -> np.ndarray:
    """Integrate the products of profiles, in closed form (Karras et al. 2024, appendix C).

    For t_a <= t_b: (gamma_a + 1) (gamma_b + 1) / (gamma_a + gamma_b + 1) (t_a / t_b)^gamma_b / t_b.

    Args:
        first: m profiles.
        second: n profiles.

    Returns:
        `(m, n)` float64.
    """
    (t1, gamma1), (t2, gamma2) = np.array(first, np.float64).T, np.array(second, np.float64).T
    t1, gamma1 = t1[:, None], gamma1[:, None]
    end = np.maximum(t1, t2)
    overlap = (np.minimum(t1, t2) / end) ** np.where(t1 > t2, gamma1, gamma2)
    # In this order even the largest gamma overflows nothing.
    products: np.ndarray = (gamma1 + 1) * ((gamma2 + 1) / (gamma1 + gamma2 + 1)) * overlap / end
    return products


def synthesis_weights(snapshots: Sequence[Profile], target: Profile) -> np.ndarray:
    """Return the weights of the sum of profiles that comes closest to a target's.

    Least squares (Karras et al. 2024, appendix C): A x = b, with the inner products A of the
    snapshots' profiles and b of those with the target's. Besides, the weights are held to a sum of
    1, by a Lagrange multiplier: the profile of few snapshots would come closer with another sum, by
    some percent, but what all steps have in common, which is most of the weights of a model, would
    be scaled by it.

    Args:
        snapshots: n different profiles.
        target: the wanted profile.

    Returns:
        `(n,)` float64, of sum 1; some are negative.
    """
    count, end = len(snapshots), target[0]
    system = np.ones((count + 1, count + 1))
    system[:count, :count] = end * inner_products(snapshots, snapshots)
    system[count, count] = 0
    right = np.append(end * inner_products(snapshots, [target]), 1)
    weights: np.ndarray = np.linalg.solve(system, right)[:count]
    return weights


def relative_residual(snapshots: Sequence[Profile], weights: np.ndarray, target: Profile) -> float:
    """Return how far a sum of profiles is from a target's, in closed form.

    Args:
        snapshots: n profiles.
        weights: `(n,)` float64, of the sum.
        target: the wanted profile.

    Returns:
        The distance over the target's norm: ||p - sum_i x_i p_i|| / ||p||, 0 at best.
    """
    quadratic = weights @ inner_products(snapshots, snapshots) @ weights
    linear = weights @ inner_products(snapshots, [target])[:, 0]
    square = inner_products([target], [target])[0, 0]
    return math.sqrt(max(0.0, 1 + (quadratic - 2 * linear) / square))


@dataclass(frozen=True)
class Synthesis:
    """How to make an average out of snapshots.

    Attributes:
        snapshots: n of them.
        weights: `(n,)` float64, of their sum.
        relative_residual: see the function of that name.
    """

    snapshots: list[Snapshot]
    weights: np.ndarray
    relative_residual: float


def plan_synthesis(snapshots: Sequence[Snapshot], sigma_rel: float, step: int) -> Synthesis:
    """Choose the snapshots of an average, and the weights of their sum.

    Args:
        snapshots: of a training; those after the average's end are not used.
        sigma_rel: the average's length.
        step: its end.

    Raises:
        UserError: if the snapshots cannot give this average.
    """
    target = (step, gamma_from_sigma_rel(sigma_rel))
    used = [snapshot for snapshot in snapshots if snapshot.step <= step]
    if len(used) < 2:
        raise UserError(
            f"--step {step} has fewer than 2 snapshots up to it: choose a later one, or train with "
            "a smaller --ema_snapshot_steps"
        )
    profiles = [(snapshot.step, gamma_from_sigma_rel(snapshot.sigma_rel)) for snapshot in used]
    weights = synthesis_weights(profiles, target)
    residual = relative_residual(profiles, weights, target)
    if not residual <= MAX_RELATIVE_RESIDUAL:
        raise UserError(
            f"--sigma_rel {sigma_rel} --step {step} cannot be made out of these {len(used)} "
            f"snapshots (relative residual {residual:.2g}, at most {MAX_RELATIVE_RESIDUAL}): "
            f"choose --step {used[-1].step}, or another --sigma_rel, or train with a smaller "
            "--ema_snapshot_steps"
        )
    return Synthesis(used, weights, residual)


def sum_snapshots(
    synthesis: Synthesis, shapes: Mapping[str, torch.Size]
) -> dict[str, torch.Tensor]:
    """Sum snapshots with their weights, in float64, with one tensor of one file in memory a time.

    Args:
        synthesis: which, and the weights.
        shapes: of the model's weights, by name.

    Returns:
        float32 tensors of those shapes, by name, on the CPU.

    Raises:
        UserError: if a snapshot has not exactly these weights.
    """
    sums = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in shapes.items()}
    for snapshot, weight in zip(synthesis.snapshots, synthesis.weights.tolist(), strict=True):
        try:
            with safe_open(snapshot.path, "pt") as file:
                names = file.keys()
                found = {name: tuple(file.get_slice(name).get_shape()) for name in names}
                wrong = dict(found.items() ^ {k: tuple(v) for k, v in shapes.items()}.items())
                if wrong:
                    raise UserError(
                        f"{snapshot.path} has not exactly the weights of the model beside it "
                        f"({len(wrong)} differ, {min(wrong)} first): it is of another training, "
                        "remove it"
                    )
                for name, total in sums.items():
                    total.add_(file.get_tensor(name).double(), alpha=weight)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{snapshot.path} cannot be read ({error}): copy it again") from error
    return {name: total.float() for name, total in sums.items()}
