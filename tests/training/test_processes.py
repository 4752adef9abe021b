import json
import os
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hf_latent.command import dump_config
from tests import forked
from tests.conftest import make_autoencoder

SCRIPT = Path(__file__).with_name("both_trainings.py")
ROOT = Path(__file__).parents[2]
SMALL = "from hf_latent.cli import main; from tests.small import *\nwith small_trainings(): main()"
DIVERGING = {
    "learning_rate": 1e15,
    "lr_warmup_ratio": 0.0,
    "max_train_steps": 3,
    "validation_steps": 99,
}


def logged(run: Path, name: str) -> list[float]:
    lines = [json.loads(line) for line in (run / "logs" / "losses.jsonl").open()]
    return [line[name] for line in lines if name in line]


def first_gradients(run: Path, model: str, step: int, beta1: float) -> dict[str, torch.Tensor]:
    """AdamW's first moment after its first step is (1 - beta1) times the gradient."""
    moments = load_file(run / f"checkpoint-{step}" / f"{model}_optimizer.safetensors")
    assert {float(x) for name, x in moments.items() if name.endswith(".step")} == {1.0}
    return {
        name: moment / (1 - beta1) for name, moment in moments.items() if name.endswith(".exp_avg")
    }


@pytest.mark.slow
def test_two_processes_give_the_curves_of_one(tmp_path):
    environment = os.environ | {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(ROOT)  # the script imports the tests
    for name, count in (("one", 1), ("two", 2)):
        command = [sys.executable, SCRIPT, tmp_path / name, 8 // count]
        processes = forked.start_ranks(command, count, environment)
        ended = [process.communicate() for process in processes]
        for process, (_, errors) in zip(processes, ended, strict=True):
            assert process.returncode == 0, errors[-2000:]
        printed = "".join(output for output, _ in ended)
        assert printed.count("autoencoder: ") == 1, "only the main process prints"
    counted = {
        name: sorted(path.name for path in (tmp_path / name).glob("process-*"))
        for name in ("one", "two")
    }
    assert counted == {"one": ["process-0-of-1"], "two": ["process-0-of-2", "process-1-of-2"]}

    for part, figure, steps, tolerance in (
        ("vae", "train_loss", 10, 1e-5),
        ("vae", "validation_loss", 10, 1e-4),
        ("vae", "adversarial_weight", 8, 1e-4),
        ("unet", "train_loss", 4, 1e-5),
        ("unet", "validation_loss", 4, 1e-4),
        ("student", "train_loss", 3, 1e-4),
        ("student", "distance_to_teacher", 3, 1e-4),
    ):
        one, two = (logged(tmp_path / name / part, figure) for name in ("one", "two"))
        assert len(one) == len(two) == steps
        assert max(one) - min(one) > 1e-3
        assert two == pytest.approx(one, abs=tolerance), f"{figure} of {part}"

    # The discriminator takes its first step in the training's third.
    for model, step, beta1 in (("vae", 1, 0.9), ("discriminator", 3, 0.5)):
        one, two = (
            first_gradients(tmp_path / name / "vae", model, step, beta1) for name in ("one", "two")
        )
        assert two.keys() == one.keys()
        assert max(gradient.abs().max() for gradient in one.values()) > 1e-2
        for name, gradient in two.items():
            torch.testing.assert_close(gradient, one[name], rtol=0, atol=1e-5, msg=name)


@pytest.mark.parametrize(
    ("command", "changes", "message"),
    [
        ("autoencoder", DIVERGING, "the held-out loss is nan after step 3: the training diverged"),
        ("denoiser", {**DIVERGING, "validation_steps": 2}, "the held-out loss is nan after step 2"),
        ("denoiser", {**DIVERGING, "max_train_steps": 9}, "the loss was not finite in 5 steps in"),
        (
            "autoencoder",
            {"resume_from_checkpoint": "other"},
            "--resume_from_checkpoint other is no",
        ),
    ],
)
def test_an_error_ends_all_processes_and_the_first_one_prints_it(
    autoencoder_config, denoiser_config, tmp_path, command, changes, message
):
    make_autoencoder(sample_size=32).save_pretrained(tmp_path / "autoencoder" / "model")
    configs = {"autoencoder": autoencoder_config, "denoiser": denoiser_config}
    config = configs[command](**changes, output_dir=str(tmp_path / "run"))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(dump_config(config))
    environment = os.environ | {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-c", SMALL, f"train-{command}", "--config", recipe]
    processes = forked.start_ranks(words, env=environment)
    first, second = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [2, 2], (first, second)
    errors = [line for line in first[1].splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and errors[0].startswith(f"error: {message}"), first
    assert second == ("", "")
    assert not (tmp_path / "run" / "model").exists()
