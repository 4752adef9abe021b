"""The command `report`: a page of one run, and of several side by side."""

from pathlib import Path

import pytest

from hf_latent.cli import main
from hf_latent.training.autoencoder import train_autoencoder
from hf_latent.training.run.log import read_lines
from tests import small
from tests.training.conftest import short_autoencoder
from tests.training.page.reading import Page


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[str]:
    """The folders of two trainings with other settings."""
    folder = tmp_path_factory.mktemp("side_by_side")
    changes = {"first": {"kl_weight": 0.01}, "<b>second": {"max_train_steps": 2, "seed": 1}}
    with small.small_trainings():
        for name, changed in changes.items():
            train_autoencoder(short_autoencoder(folder / name, **changed))
    return [str(folder / name / "autoencoder") for name in changes]


def test_several_runs_stand_side_by_side(runs, tmp_path, capsys):
    output = tmp_path / "page.html"
    main(["report", "--run", *runs, "--output", str(output)])
    assert capsys.readouterr().out == f"a page of first, <b>second: {output}\n"
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]
    shown, logs = Page(output.read_text("utf-8")), [read_lines(Path(run)) for run in runs]
    assert shown.texts["h1"] == ["first, <b>second"]
    figures, settings = shown.tables[:2]
    assert settings == [
        ["setting", "first", "<b>second"],
        ["seed", "0", "1"],
        ["max_train_steps", "4", "2"],
        ["kl_weight", "0.01", "0.0003"],
    ]
    assert figures[0] == ["figure", "first", "<b>second"]
    (row,) = (row for row in figures if row[0] == "psnr_db")
    assert row[1:] == [f"{lines[-1]['psnr_db']:.5g}" for lines in logs]
    assert list(map(len, shown.points("Loss"))) == [1, 1, 2, 1]  # each figure of each run
    assert shown.colours("Loss") == ["#1f77b4", "#ff7f0e"] * 2
    tags = [tag for tag, _ in shown.tags]
    assert tags.count("input") == 2 and tags.count("img") == 3


def test_a_page_of_one_run_is_as_the_training_wrote_it(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main(["report", "--run", runs[0]])
    with small.small_trainings():
        made = Page(Path("report.html").read_text("utf-8"))
    written = Page((Path(runs[0]) / "report.html").read_text("utf-8"))
    assert made.texts["p"][1:] == written.texts["p"][1:]
    assert (made.tables, made.pictures()) == (written.tables, written.pictures())
