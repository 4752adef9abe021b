"""The order of several autoencoders: a table of rules, each with its tolerance."""

import math
from typing import Any, NamedTuple, get_args

from hf_latent.evaluation.inspection.verdict import Quality


class Rule(NamedTuple):
    """A figure by which autoencoders are told apart.

    Attributes:
        name: in a reason.
        figure: its key in a row.
        form: of its value in a reason.
        tolerance: figures that are worse than the best by no more than this share of it are tied.
        higher_is_better: whether more is better.
    """

    name: str
    figure: str
    form: str
    tolerance: float
    higher_is_better: bool

    def badness(self, row: dict[str, Any]) -> float:
        """Return a number that is lower if a row is better; a figure without a value is worst."""
        value = row[self.figure]
        if self.figure == "verdict":
            value = get_args(Quality).index(value)
        if value is None or math.isnan(value):
            return math.inf
        return -value if self.higher_is_better else value

    def divide(self, rows: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], ...]:
        """Return the rows that are tied with the best one, and the others."""
        best = min(map(self.badness, rows))
        limit = best + self.tolerance * abs(best) if math.isfinite(best) else best
        tied = [row for row in rows if self.badness(row) <= limit]
        return tied, [row for row in rows if self.badness(row) > limit]

    def describe(self, chosen: dict[str, Any], others: list[dict[str, Any]]) -> str:
        """Return what tells a row from others."""

        def shown(row: dict[str, Any]) -> str:
            return "-" if row[self.figure] is None else self.form.format(row[self.figure])

        against = ", ".join(f"{shown(row)} ({row['name']})" for row in others)
        return f"{self.name} {shown(chosen)} against {against}"


# The tolerance of the FD floor was chosen on a sweep of Fashion-MNIST: among latents whose floor
# is near the lowest one, the denoiser learns the smaller ones better in equal time.
RULES = (
    Rule("verdict", "verdict", "{}", 0.0, True),
    Rule("FD floor", "floor_fd", "{:.2f}", 0.5, False),
    Rule("latent values", "latent_values", "{:,}", 0.0, False),
    Rule("PSNR", "psnr_db", "{:.2f} dB", 0.01, True),
    Rule("images decoded in a second", "decode_images_per_second", "{:.1f}", 0.0, True),
)  # fmt: skip


def rank(rows: list[dict[str, Any]]) -> list[dict[str, str]]:
    """Order autoencoders by the rules, the best one first.

    Each rule keeps those that are tied with its best one; the next rule chooses among them. The one
    that is left has the next place, and the same is done with the others. A rule is skipped if a
    row lacks its figure.

    Args:
        rows: `name` and figures of each.

    Returns:
        `name` and `reason` of each, in order. The reason is what told it from those after it.
    """
    rules = [rule for rule in RULES if all(rule.figure in row for row in rows)]
    left, ranking = list(rows), []
    while left:
        tied, told = left, []
        for rule in rules:
            tied, others = rule.divide(tied)
            if others:
                told.append((rule, others))
        chosen = tied[0]
        left = [row for row in left if row is not chosen]
        reason = "; ".join(rule.describe(chosen, others) for rule, others in told)
        nothing = "no figure tells it from the next" if left else "all others are before it"
        ranking.append({"name": chosen["name"], "reason": reason or nothing})
    return ranking
