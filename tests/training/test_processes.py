import json
import os
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests import forked

SCRIPT = Path(__file__).with_name("both_trainings.py")
ROOT = Path(__file__).parents[2]


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
