import pytest

from hf_latent.evaluation.limit import RULES, describe_limit, name_limit

GOOD = {
    **{"fd": 1.2, "floor_fd": 1.1, "real_fd": 1.0},
    **{"recall": 0.68, "floor_recall": 0.69, "real_recall": 0.7},
    **{"label_agreement": 0.94, "floor_label_agreement": 0.94},
    "label_agreement_judge_real_accuracy": 0.95,
}
# Photographs of 32 pixels whose autoencoder was trained for six minutes.
GREY = {"fd": 25.5, "floor_fd": 22.0, "recall": 0.12, "floor_recall": 0.2}


@pytest.mark.parametrize(
    ("figures", "expected"),
    [
        ({}, "neither"),
        ({"fd": 0.1, "recall": 0.9, "label_agreement": 1.0}, "neither"),  # better than real ones
        (GREY, "autoencoder"),
        ({"fd": 25.5, "floor_fd": 3.0}, "denoiser"),
        ({"recall": 0.1, "floor_recall": 0.68}, "denoiser"),
        ({"label_agreement": 0.4, "floor_label_agreement": 0.5}, "autoencoder"),
        # A floor that is better than real images costs nothing.
        ({"label_agreement": 0.4, "floor_label_agreement": 0.99}, "denoiser"),
        # The mean of the shares decides: 0.9 and 0.2.
        ({"fd": 11, "floor_fd": 10, "recall": 0.2, "floor_recall": 0.6}, "autoencoder"),
        ({"fd": 11, "floor_fd": 8, "recall": 0.2, "floor_recall": 0.65}, "denoiser"),
    ],
)
def test_the_model_that_loses_more_is_the_limit(figures, expected):
    limit, reasons = name_limit(GOOD | figures)
    assert limit == expected
    assert len(reasons) == len(RULES)
    assert expected in describe_limit(limit, reasons)[0]


def test_a_reason_has_all_figures_and_the_share():
    assert name_limit(GOOD | GREY)[1] == [
        "FD 25.50, of real images 1.00, with a perfect denoiser 22.00: 86% of the loss is the "
        "autoencoder's",
        "recall 0.12, of real images 0.70, with a perfect denoiser 0.20: 86% of the loss is the "
        "autoencoder's",
        "label agreement 0.94, of real images 0.95",
    ]


def test_what_was_not_measured_is_left_out():
    without = {k: v for k, v in (GOOD | GREY).items() if "label" not in k}
    assert name_limit(without)[0] == "autoencoder"
    assert name_limit({"fd": 25.5, "real_fd": 1.0}) == ("neither", [])
