"""Which latent to choose: the Pareto front of a sweep, and a recommendation with its reasons.

All functions are pure and take the pairs of report.json. A pair without finite figures (null there)
is never chosen.
"""

from typing import Any

# The autoencoder is the limit if it causes at least this share of the FD above real images' FD.
LIMITING_SHARE = 0.5


def measured(pairs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the pairs with a finite PSNR and generated FD."""
    keys = ("reconstruction_psnr_db", "generated_fd")
    return [pair for pair in pairs if all(pair[key] is not None for key in keys)]


def pareto_front(pairs: list[dict[str, Any]]) -> list[str]:
    """Return the names of the pairs that no other pair beats, the lowest PSNR first.

    A pair beats another if its PSNR is at least as high and its generated FD at least as low, and
    one of them is better.

    Args:
        pairs: `name`, `reconstruction_psnr_db` and `generated_fd` of each.
    """

    def beats(one: dict[str, Any], other: dict[str, Any]) -> bool:
        gain_db = one["reconstruction_psnr_db"] - other["reconstruction_psnr_db"]
        gain_fd = other["generated_fd"] - one["generated_fd"]
        return gain_db >= 0 and gain_fd >= 0 and (gain_db > 0 or gain_fd > 0)

    known = measured(pairs)
    front = [pair for pair in known if not any(beats(other, pair) for other in known)]
    return [pair["name"] for pair in sorted(front, key=lambda x: x["reconstruction_psnr_db"])]


def recommend(pairs: list[dict[str, Any]], real_against_real_fd: float) -> dict[str, Any]:
    """Choose a latent.

    The lowest generated FD wins. Pairs whose FD differs from it by no more than the spread over
    seeds are tied: the highest PSNR decides between them, and then the fastest sampling.

    Args:
        real_against_real_fd: FD between equal numbers of real images.

    Returns:
        Entries of the report: `recommended`, the name of the pair, None if no pair has figures;
        `reason`, a sentence or None; `warnings`, a sentence each.
    """
    known = measured(pairs)
    if not known:
        return {"recommended": None, "reason": None, "warnings": []}
    best = min(known, key=lambda x: x["generated_fd"])

    def is_tied(pair: dict[str, Any]) -> bool:
        spread = max(pair["generated_fd_spread"], best["generated_fd_spread"])
        return pair["generated_fd"] - best["generated_fd"] <= spread

    tied = [pair for pair in known if is_tied(pair)]
    chosen = max(tied, key=lambda x: (x["reconstruction_psnr_db"], x["sampling_images_per_second"]))
    fd, psnr = f"{chosen['generated_fd']:.2f}", f"{chosen['reconstruction_psnr_db']:.2f} dB"
    if len(known) == 1:
        reason = f"it is the only pair that was measured; its generated FD is {fd}"
    elif len(tied) == 1:
        reason = f"it has the lowest generated FD, {fd}, by more than the spread over seeds"
    elif chosen is best:
        others = ", ".join(pair["name"] for pair in tied if pair is not best)
        reason = (
            f"it has the lowest generated FD, {fd}, and a PSNR of {psnr}; no pair whose FD is "
            f"within the spread over seeds ({others}) has a higher PSNR"
        )
    else:
        reason = (
            f"its generated FD, {fd}, is as good as the lowest ({best['generated_fd']:.2f} of "
            f"{best['name']}) within the spread over seeds, and its PSNR, {psnr}, is the highest "
            "of such pairs"
        )
    warnings = [*_edge_warnings(chosen, known), *_limit_warnings(chosen, real_against_real_fd)]
    return {"recommended": chosen["name"], "reason": reason, "warnings": warnings}


def _edge_warnings(chosen: dict[str, Any], pairs: list[dict[str, Any]]) -> list[str]:
    """Warn if the chosen pair is at the edge of the grid."""
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
                warnings.append(f"it is at the edge of the grid: try a {more} {name} too")
    return warnings


def _limit_warnings(chosen: dict[str, Any], real_against_real_fd: float) -> list[str]:
    """Warn if the autoencoder, not the denoiser, limits the FD."""
    floor, excess = chosen["floor_fd"], chosen["generated_fd"] - real_against_real_fd
    if floor is None or excess <= 0 or (floor - real_against_real_fd) / excess < LIMITING_SHARE:
        return []
    return [
        f"the autoencoder is the limit: with a perfect denoiser the FD would still be {floor:.2f}; "
        "train it longer, or give it more channels or a smaller factor"
    ]
