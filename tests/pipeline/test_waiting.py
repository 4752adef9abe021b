"""A sampling step does not wait for the device: a GPU would idle until it gets its next work."""

import json
import os
import sys
from pathlib import Path

from tests import forked

ROOT = Path(__file__).parents[2]
SAMPLE = """
import json, torch
from hf_latent.models.presets import create_scheduler
from hf_latent.pipeline import LatentDiffusionPipeline
from hf_latent.pipeline.samplers import compatible_samplers
from tests.conftest import make_autoencoder, make_denoiser
from tests.standin_device import DEVICE, waits

def count(pipeline, i, t, tensors):
    counted.append(waits.total())
    waits.clear()

vae, found = make_autoencoder(), {}
for objective in ("flow", "epsilon"):
    scheduler = create_scheduler(objective)
    pipeline = LatentDiffusionPipeline(vae, make_denoiser(vae), scheduler).to(DEVICE)
    pipeline.set_progress_bar_config(disable=True)
    for sampler in compatible_samplers(scheduler):
        pipeline.use_sampler(sampler)
        counted = []
        pipeline(
            [0, 1], num_inference_steps=4, guidance_interval=(0, 0.8), callback_on_step_end=count
        )
        found[f"{objective} {sampler}"] = max(counted[1:])
print(json.dumps(found))
"""
# Stock schedulers that compare values of the device in their step, or copy values to it.
WAITING = {"flow unipc", "epsilon unipc", "epsilon ddim"}


def test_a_sampling_step_waits_for_nothing():
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = forked.run([sys.executable, "-c", SAMPLE], environment, ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert {f"flow {x}" for x in ("euler", "heun", "dpm++", "unipc")} < found.keys()
    assert {name for name, waits in found.items() if waits} == WAITING
