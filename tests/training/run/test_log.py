import json
from dataclasses import replace
from pathlib import Path

import pytest

from hf_latent.errors import UserError
from hf_latent.training.autoencoder import train_autoencoder
from hf_latent.training.denoiser import train_denoiser
from hf_latent.training.run.clock import TrainingClock
from hf_latent.training.run.log import read_lines
from tests.training.conftest import short_autoencoder, short_denoiser
from tests.training.encoding import save_autoencoder


class Killed(BaseException):
    """Stands for kill -9: nothing is saved or printed."""


class KilledAfter:
    """Kills a training after some steps, or after the last one before the model is saved."""

    def __init__(self, steps: int):
        self.steps = steps

    def defer(self, accelerator) -> None:
        pass

    def requested(self, accelerator) -> bool:
        self.steps -= 1
        if self.steps == 0:
            raise Killed
        return False

    def release(self) -> None:
        raise Killed


def figures(run: Path) -> list[dict]:
    return [
        {name: value for name, value in line.items() if name != "images_per_second"}
        for line in read_lines(run)
    ]


SETTINGS = {
    "max_train_steps": 10,
    "checkpointing_steps": 3,
    "gradient_accumulation_steps": 2,
    "train_batch_size": 2,
    "validation_steps": 6,
    "max_validation_samples": 2,
}
TRAININGS = {
    "autoencoder": (train_autoencoder, short_autoencoder),
    "denoiser": (train_denoiser, short_denoiser),
}


@pytest.fixture(autouse=True, scope="module")
def a_mean_every_eight_steps():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingClock, "LOGGING_STEPS", 8)
        yield


@pytest.fixture(scope="module", params=TRAININGS)
def training(a_mean_every_eight_steps, request, tmp_path_factory):
    """A training, its settings, and the folder of an uninterrupted run."""
    folder = tmp_path_factory.mktemp(request.param)
    save_autoencoder(folder / "autoencoder" / "model")
    train, settings = TRAININGS[request.param]
    config = settings(folder, **SETTINGS)
    train(replace(config, output_dir=str(folder / "whole")))
    return train, config, folder / "whole"


# 10 steps, a logged mean every 8, a checkpoint every 3. 100 kills after the last step.
@pytest.mark.parametrize("kills", [[2, 5], [8, 1], [100], [9]])
def test_a_killed_and_resumed_run_logs_the_same_as_an_uninterrupted_one(training, tmp_path, kills):
    train, config, whole = training
    run = tmp_path / "run"
    config = replace(config, output_dir=str(run), resume_from_checkpoint="latest")
    for steps in kills:
        with pytest.raises(Killed):
            train(config, stop=KilledAfter(steps))
    train(config)
    assert figures(run) == figures(whole)
    steps = [x["step"] for x in figures(whole) if "train_loss" in x]
    assert steps == [3, 6, 8, 9, 10]
    reports = [json.loads((x / "model" / "training.json").read_text()) for x in (run, whole)]
    assert reports[0]["train_loss"] == reports[1]["train_loss"] is not None


@pytest.mark.parametrize("content", [b"\x83\xff\n", b'{"step": \n', bytes(20) + b"\n"])
def test_a_damaged_log_is_one_line_that_names_it(tmp_path, content):
    log = tmp_path / "logs" / "losses.jsonl"
    log.parent.mkdir()
    log.write_bytes(content)
    with pytest.raises(UserError, match=r"losses\.jsonl is damaged .*: move it away"):
        read_lines(tmp_path)
