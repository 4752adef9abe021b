from types import SimpleNamespace

import torch
from accelerate import Accelerator

from hf_latent.data.images import open_images
from hf_latent.encode import encode_images
from hf_latent.models.fold import measure_latents, sum_latents
from hf_latent.training import latents
from hf_latent.training.latents import (
    LatentMoments,
    encode_batch,
    encode_moments,
    measure_latent_scale,
)
from tests.conftest import make_autoencoder


def test_encode_batch_is_on_the_denoisers_scale(images):
    vae = make_autoencoder()
    vae.register_to_config(
        scaling_factor=0.5,
        shift_factor=0.1,
        latents_mean=[0.1, -0.2, 0.3, -0.4],
        latents_std=[1.5, 0.5, 2.0, 3.0],
    )
    mean, std = encode_batch(vae, images)
    torch.testing.assert_close(mean, encode_images(vae, images, sample_posterior=False))
    noise = torch.randn(images.shape[0], 4, 4, 4, generator=torch.Generator().manual_seed(7))
    sample = encode_images(vae, images, torch.Generator().manual_seed(7))
    torch.testing.assert_close(mean + std * noise, sample, rtol=0, atol=1e-5)


def test_every_image_and_its_true_mirror_image(autoencoder_config):
    config = autoencoder_config(train_batch_size=7)
    vae = make_autoencoder(sample_size=32)
    dataset = open_images(config).train
    moments = encode_moments(vae, dataset, Accelerator(), config, mirror=True)
    assert moments.mean.shape == moments.std.shape == (2, 40, 4, 8, 8)
    images = torch.stack([dataset[i]["images"] for i in range(40)])
    mean, std = encode_batch(vae, images)
    torch.testing.assert_close(moments.mean[0], mean, rtol=0, atol=1e-5)
    torch.testing.assert_close(moments.std[0], std, rtol=0, atol=1e-5)
    mirrored, _ = encode_batch(vae, images.flip(3))
    torch.testing.assert_close(moments.mean[1], mirrored, rtol=0, atol=1e-5)
    assert (moments.mean[1] - moments.mean[0].flip(3)).abs().max() > 1e-3
    labels = [int(dataset[i]["class_labels"]) for i in range(40)]
    assert moments.class_labels.tolist() == labels


def test_sampling_is_fresh_and_by_view():
    mean, std = torch.randn(2, 5, 1, 2, 2), torch.rand(2, 5, 1, 2, 2)
    moments = LatentMoments(mean, std, None)
    noise = torch.randn(3, 1, 2, 2)
    indices, mirrored = torch.tensor([4, 0, 4]), torch.tensor([True, False, False])
    sample = moments.sample(indices, mirrored, noise)
    for row, (view, index) in enumerate([(1, 4), (0, 0), (0, 4)]):
        expected = mean[view, index] + std[view, index] * noise[row]
        assert torch.equal(sample[row], expected)


def test_the_scale_is_that_of_all_shares_an_empty_one_too(autoencoder_config, monkeypatch):
    config = autoencoder_config(train_batch_size=2, horizontal_flip=True)
    vae = make_autoencoder(sample_size=32)
    dataset = open_images(config).train.evenly_spaced(3)
    shares: list[list[list[float]]] = []

    def gather(share):
        shares.extend(share)
        return shares

    monkeypatch.setattr(latents, "gather_object", gather)
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
    expected = measure_latents(sum_latents([posterior]))
    torch.testing.assert_close(found.mean, expected.mean, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.std, expected.std, rtol=1e-5, atol=0)
