import math
from typing import Any

import pytest

from hf_latent.evaluation.inspection.comparison import OWN
from hf_latent.evaluation.inspection.ranking import RULES, rank
from hf_latent.output import read_json
from tests.docs.pages import ROOT

GOOD: dict[str, Any] = {
    "verdict": "fine",
    "floor_fd": 10.0,
    "latent_values": 256,
    "psnr_db": 30.0,
    "decode_images_per_second": 100.0,
}


def order(*changes: dict[str, Any]) -> tuple[str, list[str]]:
    """Return the names in order, which are letters, and the reasons."""
    rows = [{"name": "abc"[i]} | GOOD | change for i, change in enumerate(changes)]
    ranking = rank(rows)
    return "".join(x["name"] for x in ranking), [x["reason"] for x in ranking]


@pytest.mark.parametrize(
    ("worse", "reason"),
    [
        ({"verdict": "over-compressed"}, "verdict fine against over-compressed (a)"),
        ({"verdict": "broken"}, "verdict fine against broken (a)"),
        ({"floor_fd": 15.1}, "FD floor 10.00 against 15.10 (a)"),
        ({"floor_fd": math.nan}, "FD floor 10.00 against nan (a)"),
        ({"floor_fd": None}, "FD floor 10.00 against - (a)"),
        ({"floor_fd": 14.9, "latent_values": 1024}, "latent values 256 against 1,024 (a)"),
        ({"psnr_db": 29.6}, "PSNR 30.00 dB against 29.60 dB (a)"),
        (
            {"psnr_db": 29.8, "decode_images_per_second": 99.0},
            "images decoded in a second 100.0 against 99.0 (a)",
        ),
    ],
)
def test_each_rule_tells_two_apart(worse, reason):
    assert order(worse, {}) == ("ba", [reason, "all others are before it"])


def test_an_earlier_rule_decides_and_all_that_told_are_given():
    names, reasons = order(
        {"floor_fd": 20.0, "latent_values": 64}, {"latent_values": 512, "psnr_db": 40.0}, {}
    )
    assert names == "cba"
    assert reasons[0] == ("FD floor 10.00 against 20.00 (a); latent values 256 against 512 (b)")
    assert reasons[1] == "FD floor 10.00 against 20.00 (a)"


def test_equal_ones_keep_their_order():
    assert order({}, {})[1] == ["no figure tells it from the next", "all others are before it"]


def test_a_rule_without_figures_is_skipped():
    rows = [{"name": "a", "psnr_db": 20.0}, {"name": "b", "psnr_db": 30.0, "floor_fd": 1.0}]
    assert [x["name"] for x in rank(rows)] == ["b", "a"]


def test_every_rule_names_a_figure_of_a_row():
    assert {rule.figure for rule in RULES} <= {*OWN, "decode_images_per_second"}


def test_the_ranking_of_the_documented_sweep_begins_with_the_best_generated_fd():
    """The tolerance of the floor was chosen on an earlier sweep of the same images."""
    report = read_json(ROOT / "docs" / "reports" / "sweep" / "fashion-mnist" / "report.json")
    rows = [
        {
            "name": pair["name"],
            "floor_fd": pair["floor_fd"],
            "latent_values": math.prod(pair["latent_shape"]),
            "psnr_db": pair["reconstruction_psnr_db"],
        }
        for pair in report["pairs"]
    ]
    assert rank(rows)[0]["name"] == min(report["pairs"], key=lambda x: x["generated_fd"])["name"]
