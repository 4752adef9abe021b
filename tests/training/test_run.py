import os

import pytest

from hf_latent.errors import UserError
from hf_latent.training.run import start_accelerator


def test_processes_that_accelerate_does_not_see_are_refused(autoencoder_config, monkeypatch):
    assert start_accelerator(autoencoder_config()).num_processes == int(
        os.environ.get("WORLD_SIZE", "1")
    )
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="2 processes were launched and Accelerate sees 1"):
        start_accelerator(autoencoder_config())
