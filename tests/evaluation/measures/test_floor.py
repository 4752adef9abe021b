import math
from dataclasses import asdict
from functools import partial

import datasets
import pytest
import torch
from PIL import Image
from tqdm.auto import tqdm

from hf_latent.data.images.config import ImagesConfig
from hf_latent.data.images.open import open_images
from hf_latent.data.images.pixels import to_uint8
from hf_latent.evaluation.features.extractors import LatentVectors, load_feature_extractor
from hf_latent.evaluation.measures.floor import (
    measure_autoencoder,
    measure_floor,
    write_perfect_samples,
)
from hf_latent.evaluation.measures.generation import frechet_distance
from hf_latent.evaluation.measures.reconstruction import measure_reconstructions
from hf_latent.models.load import load_autoencoder
from hf_latent.pipeline.decode import decode_latents
from hf_latent.pipeline.encode import encode_images
from tests.conftest import make_autoencoder


@pytest.fixture(scope="module")
def splits():
    return open_images(ImagesConfig(resize_mode="pad", max_train_samples=300))


def stacked(dataset) -> torch.Tensor:
    return torch.stack([dataset[row]["images"] for row in range(len(dataset))])


@pytest.fixture(scope="module")
def extractor():
    """Short vectors, whose distances are fast to compute."""
    return LatentVectors(make_autoencoder().requires_grad_(False))


def with_wide_posterior(vae):
    """Widen an autoencoder's posterior, so that samples differ from the mean."""
    with torch.no_grad():
        vae.quant_conv.bias[vae.config.latent_channels :] = 0.5
    return vae.requires_grad_(False)


@torch.no_grad()
def test_reconstructions_are_of_the_posteriors_mean(splits, extractor):
    vae, held_out = with_wide_posterior(make_autoencoder()), splits.validation.evenly_spaced(70)
    images = stacked(held_out)
    originals = extractor(to_uint8(images))
    with tqdm(total=70, disable=False) as bar:
        figures = measure_autoencoder(vae, held_out, originals.split(33), extractor, 30, bar)
        assert bar.n == 70
    decoded = decode_latents(vae, encode_images(vae, images, sample_posterior=False))
    pair = (images / 2 + 0.5, decoded / 2 + 0.5)
    whole = asdict(measure_reconstructions([pair]))
    inside = asdict(measure_reconstructions([[x[:, :, 2:30, 2:30] for x in pair]]))
    expected = {f"reconstruction_{k}": v for k, v in whole.items() if v is not None}
    for name in ("psnr_db", "ssim"):
        expected[f"reconstruction_unpadded_{name}"] = inside[name]
        assert inside[name] != pytest.approx(whole[name], rel=1e-2)
    distance = frechet_distance([extractor(to_uint8(decoded))], [originals])
    assert distance > 0.1
    expected["reconstruction_fd"] = distance
    assert figures == pytest.approx(expected, rel=1e-3)
    assert figures["reconstruction_images"] == 70


@torch.no_grad()
def test_the_floor_is_measured_on_posterior_samples(splits, extractor):
    vae = with_wide_posterior(make_autoencoder())
    other, reference = stacked(splits.train)[:120], stacked(splits.train)[120:240]
    vectors = extractor(to_uint8(reference))

    def floor(seed: int, batch_size: int) -> float:
        with tqdm(total=120, disable=False) as bar:
            found = measure_floor(
                vae,
                splits.train.subset(torch.arange(120).numpy()),
                vectors.split(50),
                extractor,
                batch_size,
                seed,
                bar,
            )
            assert bar.n == 120
        return found

    generator = torch.Generator().manual_seed(5)
    decoded = decode_latents(vae, encode_images(vae, other, generator))
    expected = frechet_distance([extractor(to_uint8(decoded))], [vectors])
    assert floor(5, batch_size=120) == pytest.approx(expected, rel=1e-3)
    assert floor(5, 50) == floor(5, 50) != floor(6, 50)
    mean = decode_latents(vae, encode_images(vae, other, sample_posterior=False))
    of_the_mean = frechet_distance([extractor(to_uint8(mean))], [vectors])
    assert abs(of_the_mean - expected) > 0.01 * expected


def test_perfect_samples_are_decoded_posterior_samples_of_their_images(splits, extractor, tmp_path):
    vae = with_wide_posterior(make_autoencoder())
    other = splits.train.subset(torch.arange(120).numpy())
    vectors = extractor(splits.train.read_uint8(torch.arange(120, 240)))
    with tqdm() as bar:
        write = partial(
            write_perfect_samples, vae, other, tmp_path / "perfect", extractor, 50, 5, bar
        )
        perfect = write()
        floor = measure_floor(vae, other, vectors.split(50), extractor, 50, 5, bar)
        before = [path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")]
        write()
    assert [path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")] == before
    assert frechet_distance(perfect.select("features"), vectors.split(50)) == pytest.approx(floor)
    rows = torch.arange(120)
    assert torch.equal(perfect.read("class_labels", rows), other.labels)
    images = perfect.read("images", rows)
    assert images.dtype == torch.uint8 and images.shape == (120, 1, 32, 32)
    assert torch.equal(perfect.read("features", rows), extractor(images))


def test_rgba_has_all_figures(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    generator = torch.Generator().manual_seed(0)
    for number in range(12):
        pixels = torch.randint(256, (16, 16, 4), generator=generator, dtype=torch.uint8).numpy()
        folder = tmp_path / "images" / ("test" if number < 8 else "train")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    held_out = open_images(ImagesConfig(data=str(tmp_path / "images"), resolution=16)).validation
    vae = make_autoencoder(channels=4).requires_grad_(False)
    extractor = LatentVectors(vae)
    vectors = extractor(held_out.read_uint8(torch.arange(8)))
    with tqdm() as bar:
        figures = measure_autoencoder(vae, held_out, [vectors], extractor, 5, bar)
    names = [*("psnr_db", "ssim", "images", "grey_psnr_db", "grey_ssim", "alpha_psnr_db", "fd")]
    names += ["luma_r2", "chroma_r2"]
    assert set(figures) == {f"reconstruction_{name}" for name in names}
    assert all(map(math.isfinite, figures.values()))


def test_the_released_autoencoder_keeps_more_than_chance(splits):
    vae = load_autoencoder("fashion-mnist-f4").requires_grad_(False)
    extractor, held_out = load_feature_extractor("efficientnet-lite0"), splits.validation
    held_out = held_out.evenly_spaced(150)
    originals = extractor(held_out.read_uint8(torch.arange(150)))
    others = extractor(splits.train.read_uint8(torch.arange(150)))
    with tqdm() as bar:
        figures = measure_autoencoder(vae, held_out, [originals], extractor, 100, bar)
        floor = measure_floor(
            vae, splits.train.subset(torch.arange(150).numpy()), [originals], extractor, 50, 0, bar
        )
    assert figures["reconstruction_psnr_db"] > 27
    # Reconstructions are closer to their own images than other images are.
    real = frechet_distance([others], [originals])
    assert 0 < figures["reconstruction_fd"] < 0.7 * real
    assert floor > 0.8 * real
