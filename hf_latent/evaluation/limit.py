"""Which of the two models limits the generated images: a table of figures with their tolerances."""

from typing import Any, Literal, NamedTuple

Limit = Literal["autoencoder", "denoiser", "neither"]


class Rule(NamedTuple):
    """A figure that both models can spoil.

    Attributes:
        name: in a reason.
        figure: its key in metrics.json; with `floor_` before it, that of a perfect denoiser.
        real: the key of what real images reach.
        tolerance: a generated figure that is worse than the real one by less counts as equal.
        higher_is_better: whether more is better.
    """

    name: str
    figure: str
    real: str
    tolerance: float
    higher_is_better: bool


RULES = (
    Rule("FD", "fd", "real_fd", 0.5, False),
    Rule("recall", "recall", "real_recall", 0.05, True),
    Rule("label agreement", "label_agreement", "label_agreement_judge_real_accuracy", 0.02, True),
)


def name_limit(metrics: dict[str, Any]) -> tuple[Limit, list[str]]:
    """Say which model loses more of what real images have.

    Of each figure the autoencoder loses what a perfect denoiser would lose too, and the denoiser
    the rest. The limit is the model with the larger mean share.

    Args:
        metrics: the content of metrics.json. A figure that was not measured is left out.

    Returns:
        The limit, and a line for each figure.
    """
    shares, reasons = [], []
    for rule in RULES:
        keys = (rule.figure, f"floor_{rule.figure}", rule.real)
        if any(key not in metrics for key in keys):
            continue
        generated, floor, real = (metrics[key] for key in keys)
        sign = -1 if rule.higher_is_better else 1
        lost, by_autoencoder = sign * (generated - real), sign * (floor - real)
        line = f"{rule.name} {generated:.2f}, of real images {real:.2f}"
        if lost > rule.tolerance:
            share = min(max(by_autoencoder / lost, 0.0), 1.0)
            shares.append(share)
            line += f", with a perfect denoiser {floor:.2f}: {share:.0%} of the loss is the "
            line += "autoencoder's"
        reasons.append(line)
    if not shares:
        return "neither", reasons
    return "autoencoder" if sum(shares) / len(shares) >= 0.5 else "denoiser", reasons


def describe_limit(limit: Limit, reasons: list[str]) -> list[str]:
    """Return lines for the terminal: the limit, what to do, and the reasons."""
    advice = {
        "autoencoder": "the autoencoder is the limit: inspect it, train it for longer, or compress "
        "less",
        "denoiser": "the denoiser is the limit: train it for longer, or take a larger one",
        "neither": "neither model is the limit: these figures are those of real images",
    }[limit]
    return [advice, *(f"- {reason}" for reason in reasons)]
