import math

import pytest

from hf_latent.evaluation.inspection.verdict import RULES, choose_verdict

GOOD = {
    "layout_agreement": 0.99,
    "edge_agreement": 0.9,
    "noise_survival": 0.1,
    "latent_std_largest": 1.1,
    "bicubic_advantage_db": -4.0,
    "chroma_r2": 0.9,
    "live_latent_std_smallest": 0.9,
    "latent_mean_largest": 0.1,
    "dead_channel_share": 0.0,
}


def test_a_good_autoencoder_is_fine_and_the_reason_says_why():
    verdict, reasons = choose_verdict(GOOD)
    assert verdict == "fine"
    assert "90% of added pixel noise does not" in reasons[0]


@pytest.mark.parametrize(
    ("figures", "expected", "words"),
    [
        ({"layout_agreement": 0.1}, "broken", "do not even keep the layout"),
        ({"layout_agreement": math.nan}, "broken", "layout"),
        ({"dead_channel_share": 1.0}, "broken", "posterior collapsed"),
        ({"latent_std_largest": 5.5}, "badly scaled", "deviation is 5.50, at most 2"),
        ({"live_latent_std_smallest": 0.1}, "badly scaled", "deviation is 0.10, at least 0.5"),
        ({"latent_mean_largest": 0.8}, "badly scaled", "0.80 from 0"),
        ({"bicubic_advantage_db": 0.7}, "under-trained", "is 0.7 dB better; train it for longer"),
        ({"chroma_r2": 0.03}, "under-trained", "R2 of chroma 0.03, at least 0.5"),
        ({"bicubic_advantage_db": 0.7, "edge_agreement": 0.4}, "under-trained", "0.7 dB better"),
        ({"layout_agreement": 0.8}, "over-compressed", "layout is lost"),
        ({"edge_agreement": 0.4}, "over-compressed", "edges are lost"),
        ({"noise_survival": 0.9}, "under-compressed", "90% of it survives"),
        ({"dead_channel_share": 0.25}, "under-compressed", "25% of the latent channels"),
    ],
)
def test_each_rule_has_its_verdict(figures, expected, words):
    verdict, reasons = choose_verdict(GOOD | figures)
    assert verdict == expected
    assert any(words in reason for reason in reasons)


def test_the_first_failed_rule_decides_and_all_reasons_are_given():
    verdict, reasons = choose_verdict(GOOD | {"layout_agreement": 0.1, "latent_std_largest": 9.0})
    assert verdict == "broken"
    assert len(reasons) == 3  # layout fails two rules


def test_a_collapsed_autoencoder_is_not_called_badly_scaled():
    figures = {k: v for k, v in GOOD.items() if k != "live_latent_std_smallest"}
    verdict, reasons = choose_verdict(figures | {"dead_channel_share": 1.0})
    assert verdict == "broken"
    assert not any("unit variance" in reason for reason in reasons)


def test_every_rule_names_a_figure_of_the_report():
    assert {rule.figure for rule in RULES} == set(GOOD)
