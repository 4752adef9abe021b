"""A training step never waits for the device: a GPU would idle until it gets its next work."""

import json
import os
import sys
from pathlib import Path

import pytest

from tests import forked

ROOT = Path(__file__).parents[2]
ON_STANDIN_DEVICE = Path(__file__).with_name("on_standin_device.py")
READS = """
import json, torch
from tests.standin_device import DEVICE, Event, waits

x = torch.ones(3, 2).to(DEVICE, non_blocking=True)
assert str((x + 1).device) == "standin:0"
counted = [dict(waits)]
for read in (
    lambda: x.sum().item(), lambda: bool((x > 0).all()), lambda: x.cpu(), lambda: x.tolist(),
    lambda: torch.ones(3).to(DEVICE), lambda: x[x > 0],
    lambda: x.nonzero(), lambda: x.copy_(torch.ones(3, 2)), lambda: torch.equal(x, x),
    lambda: (event := Event(DEVICE)).record() or event.synchronize(),
):
    waits.clear()
    read()
    counted.append(dict(waits))
print(json.dumps(counted))
"""
ENCODE = """
import json, torch
from hf_latent.models.frozen import freeze
from hf_latent.training.latents.posteriors import encode_batches
from tests.conftest import make_autoencoder
from tests.standin_device import DEVICE, Event, waits

images = torch.rand(8, 1, 16, 16)

def read(count):
    for step in range(count):
        Event.step = step
        yield images

vae, counted = freeze(make_autoencoder()), []
(expected,) = encode_batches(vae, [images], True, torch.float16)
vae.to(DEVICE)
for count in (0, 1, 2, 9):
    waits.clear()
    encoded = list(encode_batches(vae, read(count), True, torch.float16))
    assert len(encoded) == count
    # The layouts differ, and so does the last bit of float16.
    assert all(torch.allclose(x, expected, rtol=2e-3, atol=1e-3) for x in encoded)
    counted.append(dict(waits))
print(json.dumps(counted))
"""


def run(*words: str) -> list[dict[str, int]]:
    done = forked.run([sys.executable, *words], os.environ | {"PYTHONPATH": str(ROOT)}, ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_the_stand_in_device_counts_what_waits():
    free, *counted = run("-c", READS)
    assert free == {}
    assert all(counted), counted


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("denoiser", {"ema_snapshot_steps": 1000}),
        ("denoiser", {"latents_on_device": True}),
        ("denoiser", {"encode_every_step": True, "objective": "v_prediction", "snr_gamma": 5.0}),
        (
            "autoencoder",
            {
                "discriminator_weight": 0.5,
                "discriminator_num_layers": 1,
                "discriminator_base_channels": 8,
                "gradient_accumulation_steps": 2,
            },
        ),
    ],
)
def test_a_step_waits_for_nothing_but_its_log_line(tmp_path, name, changes):
    first, *counted = run(str(ON_STANDIN_DEVICE), str(tmp_path), name, json.dumps(changes))
    logged = {"copy to the host": 1}
    assert counted == [logged if step % 5 == 0 else {} for step in range(2, 13)]
    assert sum(first.values()) <= 1, "the noise schedule may be copied to the device"


def test_encoding_waits_for_the_last_batch_only():
    last = {"event of this step": 1}
    assert run("-c", ENCODE) == [{}, last, last, last]
