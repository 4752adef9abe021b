import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("both_trainings.py")


def held_out_losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "logs" / "losses.jsonl").open()]
    return [line["validation_loss"] for line in lines if "validation_loss" in line]


@pytest.mark.slow
def test_two_processes_give_one_processs_curves(tmp_path):
    environment = os.environ | {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    for name, launcher, batch_size in (("one", [sys.executable], 8), ("two", torchrun, 4)):
        command = [*launcher, str(SCRIPT), str(tmp_path / name), str(batch_size)]
        process = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert process.returncode == 0, process.stderr[-2000:]
        assert process.stdout.count("autoencoder: ") == 1, "only the first process speaks"
    for part in ("vae", "unet"):
        one, two = (
            held_out_losses(tmp_path / "one" / part),
            held_out_losses(tmp_path / "two" / part),
        )
        assert len(one) == len(two) == 4
        assert max(one) - min(one) > 1e-3
        assert two == pytest.approx(one, abs=1e-4)
