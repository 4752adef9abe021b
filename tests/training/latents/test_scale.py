from types import SimpleNamespace

import pytest
import torch

from hf_latent.data.images.open import open_images
from hf_latent.errors import UserError
from hf_latent.models.fold import measure_latents, sum_latents
from hf_latent.training import autoencoder as autoencoder_module
from hf_latent.training.autoencoder import train_autoencoder
from hf_latent.training.latents import scale as latent_scale
from hf_latent.training.latents.scale import measure_latent_scale
from hf_latent.training.run.clock import TrainingClock
from tests.conftest import make_autoencoder


def test_the_scale_is_that_of_all_shares_even_if_one_is_empty(autoencoder_config, monkeypatch):
    config = autoencoder_config(train_batch_size=2, horizontal_flip=True)
    vae = make_autoencoder(sample_size=32)
    dataset = open_images(config).train.evenly_spaced(3)
    shares: list[list[list[float]]] = []

    def gather(share):
        shares.extend(share)
        return shares

    monkeypatch.setattr(latent_scale, "gather_object", gather)
    for index in range(4):
        process = SimpleNamespace(
            process_index=index,
            num_processes=4,
            is_main_process=False,
            device=torch.device("cpu"),
        )
        found = measure_latent_scale(vae, dataset, config, process)
    counts = [share[0] for share in shares]
    assert counts == [[2 * 8 * 8] * 4] * 3 + [[0] * 4], "the fourth process has no image"
    images = torch.stack([dataset.view(False)[i]["images"] for i in range(3)])
    with torch.no_grad():
        posterior = vae.encode(torch.cat([images, images.flip(3)])).latent_dist
    expected = measure_latents(sum_latents(posterior))
    torch.testing.assert_close(found.mean, expected.mean, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.std, expected.std, rtol=1e-5, atol=0)


def test_the_fold_is_inside_the_minutes(autoencoder_config, monkeypatch, capsys):
    """Measuring takes 0.05 seconds an image, and each look at the clock 0.1."""
    seconds = [0.0]

    def now() -> float:
        seconds[0] += 0.1
        return seconds[0]

    def slowly(vae, dataset, config, accelerator):
        seconds[0] += 0.05 * len(dataset)
        return measure_latent_scale(vae, dataset, config, accelerator)

    monkeypatch.setattr(latent_scale, "measure_latent_scale", slowly)
    monkeypatch.setattr(autoencoder_module, "measure_latent_scale", slowly)
    steps, started = TrainingClock.steps, []

    def noted(self, *optimizers):
        started.append(seconds[0])
        return steps(self, *optimizers)

    monkeypatch.setattr(TrainingClock, "steps", noted)
    summary = train_autoencoder(
        autoencoder_config(max_train_minutes=0.1, validation_steps=1000), now=now
    )
    # 40 training images, 12 held out: 2.6 seconds, estimated with a margin of a fifth.
    assert 1.5 < summary.seconds < 6 - 2.6
    assert 5 < seconds[0] - started[0] <= 6
    printed = capsys.readouterr().out
    assert "0.04 minutes of training, then 0.06 to measure the latent scale on 52 images" in printed
    with pytest.raises(UserError, match=r"--max_train_minutes 0\.05 leaves no time to train"):
        train_autoencoder(
            autoencoder_config(max_train_minutes=0.05, overwrite_output_dir=True), now=now
        )
