"""Which latent to choose: the Pareto front of a sweep, and a recommendation with its reasons.

All functions are pure, and take the pairs of report.json. A pair whose figures are not numbers
(null there) is never chosen.
"""

from dataclasses import dataclass
from typing import Any

# Above this share of what generated images are worse than real ones by, the autoencoder's own part
# is called the limit.
LIMITING_SHARE = 0.5


@dataclass(frozen=True)
class Choice:
    """A recommendation.

    Attributes:
        name: of the pair.
        reason: why it, in a sentence.
        warnings: what speaks against trusting it too far, a sentence each.
    """

    name: str
    reason: str
    warnings: list[str]


def measured(pairs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the pairs whose distortion and generated FD are numbers."""
    keys = ("reconstruction_psnr_db", "generated_fd")
    return [pair for pair in pairs if all(pair[key] is not None for key in keys)]


def pareto_front(pairs: list[dict[str, Any]]) -> list[str]:
    """Return the names of the pairs that no other beats in both distortion and generation.

    One beats another if its PSNR is at least as high and its generated FD at least as low, and one
    of them better. Of equal pairs none beats the other.

    Args:
        pairs: `name`, `reconstruction_psnr_db` and `generated_fd` of each.

    Returns:
        Names, the lowest PSNR first.
    """

    def beats(one: dict[str, Any], other: dict[str, Any]) -> bool:
        gain_db = one["reconstruction_psnr_db"] - other["reconstruction_psnr_db"]
        gain_fd = other["generated_fd"] - one["generated_fd"]
        return gain_db >= 0 and gain_fd >= 0 and (gain_db > 0 or gain_fd > 0)

    known = measured(pairs)
    front = [pair for pair in known if not any(beats(other, pair) for other in known)]
    return [pair["name"] for pair in sorted(front, key=lambda x: x["reconstruction_psnr_db"])]


def _as_good(pair: dict[str, Any], best: dict[str, Any]) -> bool:
    """Tell whether two pairs' FDs are nearer than either moves from seed to seed."""
    spread = max(pair["generated_fd_spread"], best["generated_fd_spread"])
    return pair["generated_fd"] - best["generated_fd"] <= spread


def recommend(pairs: list[dict[str, Any]], real_against_real_fd: float) -> Choice | None:
    """Choose a latent.

    The lowest generated FD wins. Pairs that are no further from it than the FD moves with the
    seed are as good: the highest PSNR decides between them, and then the fastest sampling.

    Args:
        pairs: of the report.
        real_against_real_fd: of as many real images.

    Returns:
        The choice; None where nothing was measured.
    """
    known = measured(pairs)
    if not known:
        return None
    best = min(known, key=lambda x: x["generated_fd"])
    equal = [pair for pair in known if _as_good(pair, best)]
    chosen = max(
        equal, key=lambda x: (x["reconstruction_psnr_db"], x["sampling_images_per_second"])
    )
    fd, psnr = f"{chosen['generated_fd']:.2f}", f"{chosen['reconstruction_psnr_db']:.2f} dB"
    if len(known) == 1:
        reason = f"it is the only pair that was measured; its generated FD is {fd}"
    elif len(equal) == 1:
        reason = f"it has the lowest generated FD, {fd}, by more than the FD moves with the seed"
    elif chosen is best:
        others = ", ".join(pair["name"] for pair in equal if pair is not best)
        reason = (
            f"it has the lowest generated FD, {fd}, and of those that come as near to it as the "
            f"FD moves with the seed ({others}) none has a higher PSNR than its {psnr}"
        )
    else:
        reason = (
            f"its generated FD, {fd}, is as good as the lowest ({best['generated_fd']:.2f} of "
            f"{best['name']}) within what the FD moves with the seed, and its PSNR, {psnr}, is "
            "the highest of those"
        )
    warnings = [*_edges(chosen, known), *_limits(chosen, real_against_real_fd)]
    return Choice(chosen["name"], reason, warnings)


def _edges(chosen: dict[str, Any], pairs: list[dict[str, Any]]) -> list[str]:
    """Say where the chosen pair lies at the edge of what was tried."""
    warnings = []
    for key, name, smallest in (
        ("factor", "factor", 2),
        ("latent_channels", "number of channels", 1),
    ):
        tried, value = sorted({pair[key] for pair in pairs}), chosen[key]
        if len(tried) == 1:
            warnings.append(f"no other {name} than {value} was tried")
            continue
        for edge, more in ((tried[0], "smaller"), (tried[-1], "larger")):
            if value == edge and (more == "larger" or value > smallest):
                warnings.append(f"it is at the edge of what was tried: try a {more} {name} too")
    return warnings


def _limits(chosen: dict[str, Any], real_against_real_fd: float) -> list[str]:
    """Say whether the autoencoder or the denoiser keeps the FD up."""
    floor, generated = chosen["floor_fd"], chosen["generated_fd"]
    excess = generated - real_against_real_fd
    if floor is None or excess <= 0:
        return []
    share = (floor - real_against_real_fd) / excess
    if share >= LIMITING_SHARE:
        return [
            f"the autoencoder is the limit: with a perfect denoiser the FD would still be "
            f"{floor:.2f}; train it longer, or give it more channels or a smaller factor"
        ]
    return []
