"""Images of any number of channels in pictures and in the measures that see RGB only."""

import numpy as np
import pytest
import torch

from hf_latent.data.images.config import ImagesConfig
from hf_latent.data.images.open import open_images
from hf_latent.evaluation.features.networks import as_rgb
from hf_latent.evaluation.inspection.yardsticks import compare_yardsticks
from hf_latent.evaluation.measures.classifier import classifier_input
from hf_latent.evaluation.measures.reconstruction import image_psnr, measure_reconstructions
from hf_latent.evaluation.pictures import composite, image_grid, to_picture
from hf_latent.pipeline.decode import IMAGE_VALUES
from hf_latent.training.losses import as_seen, reconstruction_loss
from tests.conftest import make_autoencoder
from tests.data.images.test_measured import write_folder
from tests.evaluation.features.short_vectors import ShortVectors


def images(channels=6, count=3, size=16):
    return torch.rand(
        count, channels, size, size, generator=torch.Generator().manual_seed(channels)
    )


def test_a_picture_is_the_shown_channels():
    x = images()
    assert torch.equal(to_picture(x, [0, 2, 5]), torch.stack([x[:, 0], x[:, 2], x[:, 5]], 1))
    assert torch.equal(to_picture(x, [4]), x[:, 4:5])
    for channels in (1, 3):
        assert torch.equal(to_picture(images(channels), None), images(channels))
    assert torch.equal(to_picture(images(4), None), composite(images(4), 1.0))


def test_a_grid_shows_the_chosen_channels():
    x = images(size=64)
    chosen = np.asarray(image_grid(x, 3, shown=[5, 0, 2]))
    assert np.array_equal(chosen, np.asarray(image_grid(x[:, [5, 0, 2]], 3)))


def test_four_measured_channels_are_never_composited():
    x = images(4)
    assert torch.equal(composite(x, 1.0, is_measured=True), x)
    assert torch.equal(as_seen(x, is_measured=True), x)
    assert torch.equal(classifier_input(x, is_measured=True), x)
    assert torch.equal(as_rgb(x, is_measured=True)[:3], x[:, :3])
    assert torch.equal(as_rgb(x, is_measured=True)[3:], x[:, 3:].expand(-1, 3, -1, -1))
    other = x.clone()
    other[:, :3] = 1 - other[:, :3]
    loss = reconstruction_loss(other, x, "l2", is_measured=True)
    torch.testing.assert_close(loss, (other - x).square().mean())


@pytest.mark.parametrize("channels", [1, 2, 4, 5, 6])
def test_all_measured_channels_count_and_the_picture_has_the_colours(channels):
    x, y = images(channels), images(channels).flip(0)
    shown = {1: [0], 2: [0, 1, 1]}.get(channels, [3, 0, 1])
    found = measure_reconstructions([(x, y)], shown=shown)
    assert found.psnr_db == pytest.approx(image_psnr(y, x).mean().item(), abs=1e-4)
    assert found.grey_psnr_db is None and found.alpha_psnr_db is None
    if channels == 1:
        assert found.luma_r2 is None
    else:
        colours = measure_reconstructions([(x[:, shown], y[:, shown])])
        assert found.chroma_r2 == pytest.approx(colours.chroma_r2, abs=1e-5)
        assert found.luma_r2 == pytest.approx(colours.luma_r2, abs=1e-5)


def test_feature_networks_see_the_picture():
    pixels = (images() * 255).round().byte()
    extractor, plain = ShortVectors(), ShortVectors()
    extractor.see([5, 0, 2])
    assert torch.equal(extractor(pixels), plain(pixels[:, [5, 0, 2]]))
    assert extractor.preprocessing == "short vectors, channels 5, 0, 2 as colours"
    assert plain.preprocessing == "short vectors"


def test_yardsticks_get_the_share_of_the_shown_channels(tmp_path):
    write_folder(tmp_path, height=19, width=19)
    dataset = open_images(ImagesConfig(data=str(tmp_path), resolution=16)).train.evenly_spaced(4)
    vae = make_autoencoder(6)
    vae.register_to_config(**{IMAGE_VALUES: {"range": [[0, 1]], "dtype": "x", "shown": [1, 0, 2]}})
    rows = {x["name"]: x for x in compare_yardsticks(vae, dataset, 600, 6000.0, 4)}
    assert rows["autoencoder"]["bytes_per_image"] == pytest.approx(6000)
    assert rows["JPEG"]["fits_share"] == 1 and 0 < rows["JPEG"]["bytes_per_image"] <= 6000
