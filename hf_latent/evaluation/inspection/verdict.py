"""The verdict on an autoencoder: a table of rules, each with its limit."""

import math
from typing import Any, Literal, NamedTuple

Quality = Literal[
    "broken", "badly scaled", "under-trained", "over-compressed", "under-compressed", "fine"
]


class Rule(NamedTuple):
    """One way in which an autoencoder can fail.

    `figure` is the report's key; `limit` is its minimum or its maximum. `{value}` and `{limit}` in
    `reason` are filled in.
    """

    verdict: Quality
    figure: str
    limit: float
    is_minimum: bool
    reason: str

    def fails(self, value: float) -> bool:
        """Return whether a figure is beyond the limit or NaN."""
        if math.isnan(value):
            return True
        return value < self.limit if self.is_minimum else value > self.limit


# The limits were chosen by looking at small autoencoders of Fashion-MNIST and of emoji: good ones,
# an untrained one and an over-compressed one. The most severe rules come first: the verdict is that
# of the first rule that fails.
RULES = (
    Rule("broken", "layout_agreement", 0.2, True,
         "reconstructions do not even keep the layout: agreement {value:.2f}, at least {limit:g}"),
    Rule("broken", "dead_channel_share", 0.99, False,
         "the posterior collapsed: no latent channel depends on the image; lower the KL's weight"),
    Rule("badly scaled", "latent_std_largest", 2.0, False,
         "latents do not have unit variance: a channel's deviation is {value:.2f}, at most "
         "{limit:g}; fold the scale in, or set scaling_factor"),
    Rule("badly scaled", "live_latent_std_smallest", 0.5, True,
         "latents do not have unit variance: a channel's deviation is {value:.2f}, at least "
         "{limit:g}; fold the scale in, or set scaling_factor"),
    Rule("badly scaled", "latent_mean_largest", 0.5, False,
         "latents are not centred: a channel's mean is {value:.2f} from 0, at most {limit:g}; "
         "fold the scale in, or set shift_factor"),
    Rule("under-trained", "bicubic_advantage_db", 0.0, False,
         "bicubic resampling to as many values as a latent has is {value:.1f} dB better; train it "
         "for longer, or lower the KL's weight"),
    Rule("under-trained", "chroma_r2", 0.5, True,
         "colours are not learned: R2 of chroma {value:.2f}, at least {limit:g}; train it for "
         "longer"),
    Rule("over-compressed", "layout_agreement", 0.95, True,
         "layout is lost: agreement {value:.2f}, at least {limit:g}; use more latent channels or "
         "a smaller f"),
    Rule("over-compressed", "edge_agreement", 0.6, True,
         "edges are lost: agreement {value:.2f}, at least {limit:g}; use more latent channels or "
         "a smaller f"),
    Rule("under-compressed", "noise_survival", 0.5, False,
         "the latent is spent on pixel noise: {value:.0%} of it survives, at most {limit:.0%}; "
         "use fewer latent channels or a larger f"),
    Rule("under-compressed", "dead_channel_share", 0.0, False,
         "{value:.0%} of the latent channels carry nothing: use fewer, or lower the KL's weight"),
)  # fmt: skip


def choose_verdict(report: dict[str, Any]) -> tuple[Quality, list[str]]:
    """Judge an autoencoder by its report; a rule is skipped if the report lacks its figure.

    Returns:
        The verdict, and a reason for each rule that fails, or why the autoencoder is fine.
    """
    failed = [x for x in RULES if x.figure in report and x.fails(report[x.figure])]
    if failed:
        reasons = [x.reason.format(value=report[x.figure], limit=x.limit) for x in failed]
        return failed[0].verdict, reasons
    return "fine", [
        f"layout ({report['layout_agreement']:.2f}) and edges ({report['edge_agreement']:.2f}) "
        f"remain, {1 - report['noise_survival']:.0%} of added pixel noise does not, and the "
        "latents have unit variance"
    ]
