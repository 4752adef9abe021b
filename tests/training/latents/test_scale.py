from types import SimpleNamespace

import torch

from hf_latent.data.images.open import open_images
from hf_latent.models.fold import measure_latents, sum_latents
from hf_latent.training.latents import scale as latent_scale
from hf_latent.training.latents.scale import measure_latent_scale
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
