"""The verdict on an autoencoder, in words: a table of rules, each with its threshold."""

import math
from dataclasses import dataclass
from typing import Any, Literal

Quality = Literal["broken", "badly scaled", "over-compressed", "under-compressed", "fine"]


@dataclass(frozen=True)
class Rule:
    """One way in which an autoencoder can fail.

    Attributes:
        verdict: what it is then.
        figure: the report's key.
        limit: the least, or the most, that is still well.
        is_least: whether `limit` is the least.
        reason: in words; `{value}` and `{limit}` are filled in.
    """

    verdict: Quality
    figure: str
    limit: float
    is_least: bool
    reason: str

    def fails(self, value: float) -> bool:
        """Tell whether a figure is off; one that is not a number is."""
        if math.isnan(value):
            return True
        return value < self.limit if self.is_least else value > self.limit


# The limits were set by looking at small autoencoders of Fashion-MNIST and of emoji: good ones, an
# untrained one and an over-compressed one.
# In order of weight: the verdict is that of the first rule that fails.
RULES = (
    Rule("broken", "layout_agreement", 0.2, True,
         "reconstructions do not even keep the layout: agreement {value:.2f}, at least {limit:g}"),
    Rule("broken", "dead_channel_share", 0.99, False,
         "the posterior collapsed: no latent channel tells of the image; lower the KL's weight"),
    Rule("badly scaled", "latent_std_largest", 2.0, False,
         "latents are not of unit variance: a channel's deviation is {value:.2f}, at most "
         "{limit:g}; fold the scale in, or set scaling_factor"),
    Rule("badly scaled", "live_latent_std_smallest", 0.5, True,
         "latents are not of unit variance: a channel's deviation is {value:.2f}, at least "
         "{limit:g}; fold the scale in, or set scaling_factor"),
    Rule("badly scaled", "latent_mean_largest", 0.5, False,
         "latents are not centred: a channel's mean is {value:.2f} from 0, at most {limit:g}; "
         "fold the scale in, or set shift_factor"),
    Rule("over-compressed", "layout_agreement", 0.95, True,
         "layout is lost: agreement {value:.2f}, at least {limit:g}; take more latent channels or "
         "a smaller f"),
    Rule("over-compressed", "edge_agreement", 0.6, True,
         "edges are lost: agreement {value:.2f}, at least {limit:g}; take more latent channels or "
         "a smaller f"),
    Rule("under-compressed", "noise_survival", 0.5, False,
         "the latent is spent on pixel noise: {value:.0%} of it survives, at most {limit:.0%}; "
         "take fewer latent channels or a larger f"),
    Rule("under-compressed", "dead_channel_share", 0.0, False,
         "{value:.0%} of the latent channels carry nothing: take fewer, or lower the KL's weight"),
)  # fmt: skip


def judge(report: dict[str, Any]) -> tuple[Quality, list[str]]:
    """Judge an autoencoder by its report.

    Args:
        report: with the figures that the rules name; a rule whose figure is absent is passed over.

    Returns:
        The verdict, and a reason for each rule that fails; where none does, what is well.
    """
    rules = [rule for rule in RULES if rule.figure in report]
    failed = [rule for rule in rules if rule.fails(report[rule.figure])]
    if failed:
        reasons = [r.reason.format(value=report[r.figure], limit=r.limit) for r in failed]
        return failed[0].verdict, reasons
    return "fine", [
        f"layout ({report['layout_agreement']:.2f}) and edges ({report['edge_agreement']:.2f}) "
        f"remain, {1 - report['noise_survival']:.0%} of added pixel noise does not, and the "
        "latents have unit variance"
    ]
