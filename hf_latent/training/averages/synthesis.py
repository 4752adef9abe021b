"""Make an average of any length as a weighted sum of snapshots of other averages.

Karras et al. 2024, "Analyzing and Improving the Training Dynamics of Diffusion Models", section 3.2
and appendix C. The profile of an average says how much each step of the training counts: for
(t, gamma) it is p(tau) = (gamma + 1) tau^gamma / t^(gamma + 1) for tau in [0, t], and 0 after t. An
average is linear in its profile, so a sum of averages has the sum of their profiles.
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

# The relative residual is the distance of the profiles over the target's norm. If the weights have
# independent noise at each step, the fit adds noise whose deviation is this share of the deviation
# in the target average itself: 0.1 adds 1% of the variance. Using the nearest snapshot in place of
# the target adds more: between the sigma_rel 0.1 and 0.07 the residual is 0.24.
MAX_RELATIVE_RESIDUAL = 0.1


def inner_products(first: Sequence[Profile], second: Sequence[Profile]) -> np.ndarray:
    """Return the inner products of m and n profiles, `(m, n)` float64.

    For t_a <= t_b: (gamma_a + 1) (gamma_b + 1) / (gamma_a + gamma_b + 1) (t_a / t_b)^gamma_b / t_b
    (Karras et al. 2024, appendix C).
    """
    (t1, gamma1), (t2, gamma2) = np.array(first, np.float64).T, np.array(second, np.float64).T
    t1, gamma1 = t1[:, None], gamma1[:, None]
    end = np.maximum(t1, t2)
    overlap = (np.minimum(t1, t2) / end) ** np.where(t1 > t2, gamma1, gamma2)
    # In this order even the largest gamma does not overflow.
    products: np.ndarray = (gamma1 + 1) * ((gamma2 + 1) / (gamma1 + gamma2 + 1)) * overlap / end
    return products


def synthesis_weights(snapshots: Sequence[Profile], target: Profile) -> np.ndarray:
    """Return the weights with which a sum of profiles is closest to the target profile.

    Least squares (Karras et al. 2024, appendix C): A x = b, with the inner products A of the
    snapshots' profiles and b of these with the target. In addition, a Lagrange multiplier keeps the
    sum of x at 1, since another sum would scale what all steps have in common, which is most of a
    model's weights.

    Args:
        snapshots: n different profiles.
        target: the target profile.

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
    """Return ||p - sum_i x_i p_i|| / ||p||, the relative distance from a target profile p.

    Args:
        snapshots: n profiles p_i.
        weights: `(n,)` float64, the x_i.
        target: the target profile p.
    """
    quadratic = weights @ inner_products(snapshots, snapshots) @ weights
    linear = weights @ inner_products(snapshots, [target])[:, 0]
    square = inner_products([target], [target])[0, 0]
    return math.sqrt(max(0.0, 1 + (quadratic - 2 * linear) / square))


@dataclass(frozen=True)
class Synthesis:
    """How to make an average from snapshots.

    Attributes:
        snapshots: n snapshots.
        weights: `(n,)` float64, their weights in the sum.
        relative_residual: as the function of this name returns.
    """

    snapshots: list[Snapshot]
    weights: np.ndarray
    relative_residual: float


def plan_synthesis(snapshots: Sequence[Snapshot], sigma_rel: float, step: int) -> Synthesis:
    """Choose the snapshots of an average and their weights.

    Args:
        snapshots: a training's snapshots; those after `step` are not used.
        sigma_rel: the average's relative length.
        step: the average's last step.

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
            f"--sigma_rel {sigma_rel} --step {step} cannot be made from these {len(used)} "
            f"snapshots (relative residual {residual:.2g}, at most {MAX_RELATIVE_RESIDUAL}): "
            f"choose --step {used[-1].step}, or another --sigma_rel, or train with a smaller "
            "--ema_snapshot_steps"
        )
    return Synthesis(used, weights, residual)


def sum_snapshots(
    synthesis: Synthesis, shapes: Mapping[str, torch.Size]
) -> dict[str, torch.Tensor]:
    """Return the weighted sum of snapshots, by name, in float32 on the CPU.

    The sum is made in float64, with one tensor of one file in memory at a time.

    Args:
        synthesis: the snapshots and their weights.
        shapes: shapes of the model's weights, by name.

    Raises:
        UserError: if a snapshot has other weights, or some that are not finite.
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
                        f"{snapshot.path} has other weights than the model of its run "
                        f"({len(wrong)} differ, {min(wrong)} first): it is of another training, "
                        "remove it"
                    )
                for name, total in sums.items():
                    total.add_(file.get_tensor(name).double(), alpha=weight)
                    if not total.sum().isfinite():
                        raise UserError(
                            f"{snapshot.path} has weights that are not finite, {name} first: its "
                            "training diverged; choose an earlier --step"
                        )
        except (OSError, SafetensorError) as error:
            raise UserError(f"{snapshot.path} cannot be read ({error}): copy it again") from error
    return {name: total.float() for name, total in sums.items()}
