import random
import signal
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import yaml

from hf_latent.training.denoiser import train_denoiser
from tests.attacks.kills import KILLS
from tests.training.encoding import save_autoencoder
from tests.training.run.test_log import figures
from tests.training.test_resume import MIN_SNR, Launched, assert_same_weights

STEPS = 50


def launch(config, *flags: str) -> Launched:
    run = Path(config.output_dir)
    recipe = run.with_suffix(".yaml")
    recipe.write_text(yaml.safe_dump(asdict(config)))
    module = ("-m", "tests.small", "hf_latent", "train-denoiser")
    return Launched(run, *module, "--config", str(recipe), *flags)


@pytest.mark.slow
def test_a_killed_denoiser_ends_bit_for_bit_as_an_uninterrupted_one(denoiser_config, tmp_path):
    save_autoencoder(tmp_path / "autoencoder" / "model")
    first = replace(
        denoiser_config(objective="v_prediction", max_train_steps=1), output_dir=str(tmp_path / "a")
    )
    config = denoiser_config(
        **MIN_SNR,
        pretrained_unet=str(train_denoiser(first).model_dir),
        max_train_steps=STEPS,
        train_batch_size=4,
        validation_steps=10,
        checkpointing_steps=7,
        ema_snapshot_steps=5,
    )
    whole = launch(replace(config, output_dir=str(tmp_path / "whole")))
    resume = ("--resume_from_checkpoint", "latest")
    seed = random.SystemRandom().randrange(10**6)
    print(f"seed of the random moments: {seed}")  # pytest shows it if the test fails
    moments = random.Random(seed)
    # Number of new files before each kill; at the first kill there is no checkpoint yet.
    for files in (1, *(moments.randint(2, 4) for _ in range(KILLS - 1))):
        training = launch(config, *resume)
        for _ in range(files):
            training.wait_for_new_file()
        time.sleep(moments.uniform(0, 0.1))
        assert training.end(signal.SIGKILL)[0] == -signal.SIGKILL
    assert launch(config, *resume).end()[0] == 0
    assert whole.end()[0] == 0
    for folder in ("model", f"checkpoint-{STEPS}", "ema_snapshots"):
        assert_same_weights(tmp_path / "denoiser" / folder, tmp_path / "whole" / folder)
    assert figures(tmp_path / "denoiser") == figures(tmp_path / "whole")
    assert not list((tmp_path / "denoiser").glob(".*")), "remains of a killed process"
