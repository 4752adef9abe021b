import time

import pytest

from hf_latent import messages
from hf_latent.evaluation.stages import Stages


def test_each_stage_is_timed_and_their_sum_is_the_total():
    stages = Stages(3)
    with stages.stage("setup"):
        time.sleep(0.05)
    with stages.stage("real vectors", 10) as bar:
        time.sleep(0.1)
        bar.update(10)
    report = stages.figures()
    assert list(report) == ["setup_seconds", "real_vectors_seconds", "total_seconds"]
    assert report["setup_seconds"] >= 0.05 and report["real_vectors_seconds"] >= 0.1
    stage_seconds = report["setup_seconds"] + report["real_vectors_seconds"]
    assert report["total_seconds"] == pytest.approx(stage_seconds)


def test_bars_say_which_stage_of_how_many_and_how_many_images(capsys, monkeypatch):
    monkeypatch.setattr(messages, "SECONDS_BETWEEN_LINES", 0)
    stages = Stages(2)
    with stages.stage("sampling", 7) as bar:
        bar.update(7)
    with stages.stage("pictures"):
        pass
    error = capsys.readouterr().err
    assert "1/2 sampling: 100%" in error
    assert "7/7" in error
    assert "2/2 pictures" in error


def test_a_stage_that_fails_is_not_in_the_report():
    stages = Stages(2)
    with pytest.raises(KeyError), stages.stage("setup"):
        raise KeyError
    assert stages.figures() == {"total_seconds": 0}
