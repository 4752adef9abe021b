import pytest

from hf_latent.experiments.sweep.choice import pareto_front, recommend


def pair(name, psnr, fd, spread=0.0, floor=1.0, speed=10.0):
    factor, channels = name.split("-")
    return {
        "name": name,
        "factor": int(factor[1:]),
        "latent_channels": int(channels[1:]),
        "reconstruction_psnr_db": psnr,
        "generated_fd": fd,
        "generated_fd_spread": spread,
        "floor_fd": floor,
        "sampling_images_per_second": speed,
    }


# A grid of nine pairs; the middle one is the best.
GRID = [
    pair(f"f{f}-c{c}", 20.0 + c - f, 10.0 + (f != 4) + (c != 4))
    for f in (2, 4, 8)
    for c in (2, 4, 8)
]


def grid(**changes):
    """Return the grid with other figures for the middle pair."""
    return [x | changes if x["name"] == "f4-c4" else x for x in GRID]


def test_the_front_has_the_pairs_that_no_other_beats():
    pairs = [
        pair("f2-c2", 30, 9),
        pair("f2-c4", 31, 12),
        pair("f4-c2", 25, 5),
        pair("f4-c4", 24, 6),  # beaten by f4-c2 in both
        pair("f8-c2", 20, 5),  # as good as f4-c2 in one, beaten in the other
        pair("f8-c4", 31, 13),  # the same
    ]
    assert pareto_front(pairs) == ["f4-c2", "f2-c2", "f2-c4"]


def test_equal_pairs_are_both_on_the_front():
    assert pareto_front([pair("f2-c2", 30, 9), pair("f4-c2", 30, 9)]) == ["f2-c2", "f4-c2"]
    assert pareto_front([]) == []


def test_a_pair_without_figures_is_left_out():
    pairs = [pair("f2-c2", 30, None), pair("f4-c2", None, 2), pair("f8-c2", 20, 9)]
    assert pareto_front(pairs) == ["f8-c2"]
    choice = recommend(pairs, 1.0)
    assert choice["recommended"] == "f8-c2"
    assert choice["reason"] == "it is the only pair that was measured; its generated FD is 9.00"
    assert recommend(pairs[:2], 1.0)["recommended"] is None


def test_the_lowest_fd_wins():
    choice = recommend(GRID, 1.0)
    assert choice["recommended"] == "f4-c4"
    assert "lowest generated FD, 10.00, by more than" in choice["reason"]
    assert choice["warnings"] == []


@pytest.mark.parametrize("whose, expected", [("f4-c4", "f4-c8"), ("f2-c4", "f2-c4")])
def test_the_highest_psnr_wins_within_the_spread_of_either(whose, expected):
    pairs = [x | {"generated_fd_spread": 1.0} if x["name"] == whose else x for x in GRID]
    choice = recommend(pairs, 1.0)
    assert choice["recommended"] == expected
    assert "as good as the lowest (10.00 of f4-c4)" in choice["reason"]
    assert "the highest of such pairs" in choice["reason"]


def test_psnr_does_not_count_just_outside_the_spread():
    assert recommend(grid(generated_fd_spread=0.99), 1.0)["recommended"] == "f4-c4"


def test_the_lowest_fd_can_have_the_highest_psnr_too():
    choice = recommend(grid(generated_fd_spread=1.0, reconstruction_psnr_db=40.0), 1.0)
    assert choice["recommended"] == "f4-c4"
    assert "and a PSNR of 40.00 dB; no pair" in choice["reason"]
    assert "(f2-c4, f4-c2, f4-c8, f8-c4) has a higher PSNR" in choice["reason"]


def test_the_fastest_of_equal_pairs_wins():
    pairs = [pair("f2-c2", 30, 9, speed=1), pair("f4-c2", 30, 9, speed=3), pair("f8-c2", 30, 9)]
    assert recommend(pairs[:2], 1.0)["recommended"] == "f4-c2"
    assert recommend(pairs, 1.0)["recommended"] == "f8-c2"


@pytest.mark.parametrize(
    "name, expected",
    [
        ("f2-c4", []),  # there is no smaller factor
        ("f8-c4", ["larger factor"]),
        ("f4-c2", ["smaller number of channels"]),
        ("f8-c8", ["larger factor", "larger number of channels"]),
    ],
)
def test_a_choice_at_the_edge_of_the_grid_has_a_warning(name, expected):
    pairs = [x | {"generated_fd": 5.0} if x["name"] == name else x for x in GRID]
    warnings = recommend(pairs, 1.0)["warnings"]
    assert warnings == [f"it is at the edge of the grid: try a {x} too" for x in expected]


def test_there_is_no_smaller_number_than_one_channel():
    pairs = [pair("f4-c1", 30, 5), pair("f4-c2", 30, 6), pair("f8-c1", 20, 7), pair("f2-c1", 20, 7)]
    assert recommend(pairs, 1.0)["warnings"] == []


def test_a_factor_or_number_of_channels_without_alternative_has_a_warning():
    warnings = recommend([pair("f4-c4", 30, 5), pair("f8-c4", 30, 6)], 1.0)["warnings"]
    assert warnings == [
        "it is at the edge of the grid: try a smaller factor too",
        "no other number of channels than 4 was tried",
    ]


@pytest.mark.parametrize("floor, is_limit", [(5.4, False), (5.5, True), (None, False)])
def test_the_autoencoder_is_the_limit_if_it_causes_half_of_the_excess(floor, is_limit):
    warnings = recommend(grid(floor_fd=floor), real_against_real_fd=1.0)["warnings"]
    assert [x.startswith("the autoencoder is the limit") for x in warnings] == [True] * is_limit


def test_nothing_is_the_limit_if_samples_are_as_good_as_real_images():
    assert recommend(grid(generated_fd=0.9, floor_fd=0.95), 1.0)["warnings"] == []
