import numpy as np
import pytest
import torch
from PIL import Image

from hf_latent.data.images.config import ImagesConfig
from hf_latent.data.images.dataset import ImageDataset
from hf_latent.data.images.open import open_images
from hf_latent.evaluation.inspection.yardsticks import (
    _compress_within,
    compare_yardsticks,
    compress_within,
    measure_yardsticks,
    overhead_bytes,
    resample,
)
from hf_latent.evaluation.measures.reconstruction import image_psnr, reconstruct


@pytest.fixture(scope="module")
def dataset() -> ImageDataset:
    splits = open_images(ImagesConfig(resize_mode="pad", max_train_samples=100))
    return splits.validation.evenly_spaced(8)


@pytest.fixture(scope="module")
def clothes(dataset) -> torch.Tensor:
    """Eight real images, `(8, 1, 32, 32)` in [0, 1]."""
    return dataset.read() / 2 + 0.5


@pytest.mark.parametrize("file_format", ["JPEG", "WEBP"])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_larger_budget_gives_a_smaller_error(clothes, file_format, channels):
    array = (clothes[0].expand(channels, -1, -1).permute(1, 2, 0) * 255).round().byte().numpy()
    errors = []
    for budget in (100, 200, 400):
        decoded, size = compress_within(array, file_format, budget)
        assert decoded.shape == array.shape
        assert 0 < size <= budget
        errors.append(np.square(decoded.astype(float) - array).mean())
    assert errors[0] > errors[1] > errors[2]


def test_an_image_that_does_not_fit_has_the_lowest_quality(clothes):
    array = (clothes[0].permute(1, 2, 0) * 255).round().byte().numpy()
    _, size = compress_within(array, "JPEG", 1)
    assert size > 1
    found = measure_yardsticks(clothes, 256, 1.0)
    assert [x.fits_share for x in found] == [0.0, 0.0, 1.0]


def test_headers_are_not_counted():
    flat = np.full((32, 32, 1), 128, np.uint8)
    assert overhead_bytes("JPEG", flat.shape, 50) > 150
    assert compress_within(flat, "JPEG", 0)[1] == 0


def test_resampling_keeps_as_many_values_and_no_more(clothes):
    assert torch.equal(resample(clothes, 1024), clothes)
    psnr = [image_psnr(resample(clothes, n), clothes).mean() for n in (16, 64, 256, 900)]
    assert psnr[0] < psnr[1] < psnr[2] < psnr[3]
    flat = torch.full((1, 3, 16, 24), 0.4)
    torch.testing.assert_close(resample(flat, 20), flat)


def test_the_table_starts_with_the_autoencoder_and_has_equal_measures(vae, dataset, clothes):
    table = compare_yardsticks(vae, dataset, 64, 150.0, batch_size=3)
    assert [row["name"] for row in table] == ["autoencoder", "JPEG", "WebP", "bicubic"]
    assert "bytes_per_image" not in table[3]
    compared = clothes[:, :, 3:, 3:]
    bicubic = image_psnr(resample(compared, round(64 * (29 / 32) ** 2)), compared).mean().item()
    assert table[3]["psnr_db"] == pytest.approx(bicubic, abs=1e-4)
    assert table[0]["bytes_per_image"] == pytest.approx(150)
    assert table[1]["bytes_per_image"] <= 150
    decoded = reconstruct(vae, clothes * 2 - 1).clamp(-1, 1)[:, :, 3:, 3:] / 2 + 0.5
    own = image_psnr(decoded, compared)
    assert table[0]["psnr_db"] == pytest.approx(own.mean().item(), abs=1e-3)


def test_a_colour_jpeg_has_the_better_of_two_colour_resolutions():
    generator = torch.Generator().manual_seed(0)
    low = torch.rand(1, 3, 16, 16, generator=generator)
    array = torch.nn.functional.interpolate(low, (64, 64), mode="nearest")[0]
    array = (array.permute(1, 2, 0) * 255).byte().numpy()
    for budget in (500, 3000):
        decoded, size = compress_within(array, "JPEG", budget)
        errors = {}
        for subsampling in (0, 2):
            options = {"subsampling": subsampling}
            other, taken = _compress_within(array, "JPEG", budget, options)
            if taken <= budget:
                errors[subsampling] = np.square(other.astype(float) - array).mean()
        assert size <= budget
        assert np.square(decoded.astype(float) - array).mean() == min(errors.values())


def test_a_jpeg_is_not_compressed_on_its_own_grid(vae, clothes, tmp_path):
    for number, image in enumerate(clothes):
        array = (image[0] * 255).round().byte().numpy()
        Image.fromarray(array).save(tmp_path / f"{number}.jpg", quality=60)
    config = ImagesConfig(data=str(tmp_path), resolution=32, validation_fraction=0.5)
    jpegs = open_images(config).validation
    originals = jpegs.read() / 2 + 0.5
    arrays = [(x.permute(1, 2, 0) * 255).round().byte().numpy() for x in originals]
    decoded = np.stack([compress_within(x, "JPEG", 900)[0] for x in arrays])
    on_grid = image_psnr(torch.from_numpy(decoded).permute(0, 3, 1, 2) / 255, originals).mean()
    found = compare_yardsticks(vae, jpegs, 64, 900, batch_size=8)[1]["psnr_db"]
    assert found < on_grid - 3
