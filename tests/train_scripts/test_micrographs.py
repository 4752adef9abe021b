"""The recipe of 6-channel micrographs of 16 bits, tiny: from files on disk to files on disk."""

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
import yaml
from PIL import Image

from hf_latent.cli import main
from hf_latent.data.images.open import open_images
from hf_latent.evaluation.pictures import image_grid
from hf_latent.pipeline import LatentDiffusionPipeline
from hf_latent.training.autoencoder_config import AutoencoderConfig
from make_micrographs import PHOTONS, MicrographsConfig, make_micrographs
from tests.evaluation.features.short_vectors import ShortVectors
from tests.small import small_trainings

RECIPE = Path(__file__).parents[2] / "train_scripts" / "recipes" / "micrographs-32"
SHORT = ["--max_train_minutes", "null", "--max_train_steps", "3", "--train_batch_size", "8"]
IMAGES = 60


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A working folder in which the recipe was followed."""
    folder = tmp_path_factory.mktemp("micrographs")
    make_micrographs(MicrographsConfig(output_dir=str(folder / "data"), num_images=IMAGES))
    data, narrow = ["--data", str(folder / "data")], ["--block_out_channels", "[8,8,8]"]
    paths = {name: str(folder / name) for name in ("vae", "cache", "unet", "cached")}
    with small_trainings():
        for command, recipe, name, flags in [
            ("train-autoencoder", "vae.yaml", "vae", [*SHORT, *narrow]),
            ("train-denoiser", "unet.yaml", "unet", [*SHORT, "--vae", paths["vae"]]),
        ]:
            config = ["--config", str(RECIPE / recipe), "--output_dir", paths[name]]
            run(command, *config, *data, *flags)
        run("encode", "--vae", paths["vae"], *data, "--output_dir", paths["cache"])
        cached = ["--latents", paths["cache"], "--vae", paths["vae"], *SHORT]
        run("train-denoiser", *data, *cached, "--output_dir", paths["cached"])
    return folder


def run(*arguments: str) -> None:
    try:
        main([*arguments])
    except SystemExit as stop:
        assert not stop.code


@pytest.fixture(scope="module")
def splits(folder):
    return open_images(AutoencoderConfig(data=str(folder / "data"), output_dir="x"))


def counts(splits, part):
    """The counts in the files of a split, (N, C, H, W)."""
    dataset = getattr(splits, part)
    paths = [dataset.dataset[int(row)]["image"]["path"] for row in dataset.rows]
    return np.stack([tifffile.imread(path) for path in paths])


def test_the_files_are_six_channels_of_sixteen_bits_and_depend_on_the_seed_only(folder, tmp_path):
    make_micrographs(MicrographsConfig(output_dir=str(tmp_path / "few"), num_images=4))
    for path in sorted((tmp_path / "few").rglob("*.tiff")):
        image = tifffile.imread(path)
        assert image.shape == (6, 32, 32) and image.dtype == np.uint16
        same = folder / "data" / path.relative_to(tmp_path / "few")
        assert np.array_equal(image, tifffile.imread(same))
    brightest = image.reshape(6, -1).max(1)
    expected = [*PHOTONS.values()]
    assert ((brightest > np.multiply(expected, 0.5)) & (brightest < np.multiply(expected, 2))).all()


def test_the_autoencoder_has_the_measured_range_and_the_shown_channels(folder, splits):
    config = json.loads((folder / "vae" / "model" / "config.json").read_text())
    used = counts(splits, "train")
    ends = used.min((0, 2, 3)).astype(float), used.max((0, 2, 3)).astype(float)
    assert config["_image_values"] == {
        "range": np.stack(ends, 1).tolist(),
        "dtype": "uint16",
        "shown": [0, 2, 5],
    }
    assert config["in_channels"] == 6


def test_images_from_the_files_come_back_in_their_counts(folder, splits):
    pipeline = LatentDiffusionPipeline.from_pretrained(folder / "unet" / "model")
    used = counts(splits, "validation").astype(np.float64)
    low, high = np.array(pipeline.vae.config["_image_values"]["range"]).T[:, :, None, None]
    images = (used.clip(low, high) - low) / (high - low) * 2 - 1
    assert np.abs(splits.validation.read().numpy() - images).max() < 2 / 65535
    decoded = pipeline.reconstruct(torch.from_numpy(images).float())
    expected = low + decoded.numpy() * (high - low)
    arrays = pipeline.reconstruct(used.transpose(0, 2, 3, 1), "np").transpose(0, 3, 1, 2)
    np.testing.assert_allclose(arrays, expected, rtol=1e-4, atol=0.05)


def test_generated_files_have_the_values_and_the_type_of_the_data(folder, tmp_path):
    model = str(folder / "unet" / "model")
    pipeline = LatentDiffusionPipeline.from_pretrained(model)
    pipeline.set_progress_bar_config(disable=True)
    arrays = pipeline(
        [0, 1, 0],
        generator=[torch.Generator().manual_seed(7 + i) for i in range(3)],
        num_inference_steps=2,
        output_type="np",
    ).images
    low, high = np.array(pipeline.vae.config["_image_values"]["range"]).T
    assert (arrays >= low).all() and (arrays <= high).all() and arrays.max() > 2
    flags = ["--num_inference_steps", "2", "--seed", "7", "--model", model]
    for name, count in (("x.tiff", 3), ("one.ome.tif", 1), ("x.npy", 3), ("x.png", 3)):
        run("generate", *flags, "--num_images", str(count), "--output", str(tmp_path / name))
    with tifffile.TiffFile(tmp_path / "x.tiff") as file:
        assert file.series[0].axes == "TCYX" and file.is_ome
    found = tifffile.imread(tmp_path / "x.tiff")
    assert found.shape == (3, 6, 32, 32) and found.dtype == np.uint16
    assert np.abs(found - arrays.transpose(0, 3, 1, 2)).max() <= 0.5 + 0.05
    one = tifffile.imread(tmp_path / "one.ome.tif")
    assert one.shape == (6, 32, 32) and np.abs(one.astype(int) - found[0]).max() <= 1
    assert np.array_equal(np.load(tmp_path / "x.npy"), found.transpose(0, 2, 3, 1))
    picture = np.asarray(Image.open(tmp_path / "x.png")).astype(int)
    unit = torch.from_numpy((arrays - low) / (high - low)).permute(0, 3, 1, 2)
    rows = np.asarray(
        image_grid(unit[[0, 2, 1]], 2, ["one_nucleus", "two_nuclei"], shown=[0, 2, 5])
    )
    assert picture.shape == rows.shape
    assert np.abs(picture[:64] - rows[:64]).max() <= 1


def test_pictures_show_the_chosen_channels(folder, splits):
    picture = np.asarray(Image.open(folder / "vae" / "model" / "reconstructions.png"))
    first = (splits.validation.read(torch.tensor([0])) / 2 + 0.5)[:, [0, 2, 5]]
    expected = np.asarray(image_grid(first, 1)).astype(int)
    assert np.abs(picture[:64, :64].astype(int) - expected).max() <= 1
    assert list((folder / "unet" / "samples").glob("*.png"))


def test_a_cache_has_the_values_of_the_autoencoder(folder):
    manifest = json.loads((folder / "cache" / "manifest.json").read_text())
    assert manifest["image_shape"] == [6, 32, 32]
    assert " channels, values " in manifest["preprocessing"]
    run_of_images = json.loads((folder / "unet" / "latents" / "manifest.json").read_text())
    assert manifest["splits"]["train"] == run_of_images["splits"]["train"]


def test_inspect_and_evaluate(folder, tmp_path, monkeypatch):
    data = ["--data", str(folder / "data")]
    vae = str(folder / "vae")
    run(
        "inspect",
        "--vae",
        vae,
        *data,
        "--output_dir",
        str(tmp_path / "i"),
        "--max_images",
        "4",
        "--feature_extractor",
        "none",
    )
    report = json.loads((tmp_path / "i" / "report.json").read_text())
    assert report["image_shape"] == [6, 32, 32] and "chroma_r2" in report
    monkeypatch.setattr(
        "hf_latent.evaluation.evaluate.load_feature_extractor", lambda name: ShortVectors()
    )
    run(
        "evaluate",
        "--model",
        str(folder / "unet"),
        *data,
        "--output_dir",
        str(tmp_path / "e"),
        "--num_images",
        "20",
        "--num_inference_steps",
        "1",
        "--cache_dir",
        str(tmp_path / "c"),
        "--update_card",
        "false",
    )
    metrics = json.loads((tmp_path / "e" / "metrics.json").read_text())
    assert "channels 0, 2, 5 as colours" in metrics["preprocessing"]
    assert "label_agreement" in metrics and "reconstruction_chroma_r2" in metrics
    assert (tmp_path / "e" / "samples.png").is_file()


def test_settings_that_the_autoencoder_does_not_have_are_refused(folder, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(
            [
                "encode",
                "--vae",
                str(folder / "vae"),
                "--data",
                str(folder / "data"),
                "--value_range",
                "0,65535",
                "--output_dir",
                str(tmp_path / "c"),
            ]
        )
    assert "--value_range 0,65535 is not that of the autoencoder" in capsys.readouterr().err
    main_flags = ["generate", "--model", "fashion-mnist", "--output", str(tmp_path / "x.npy")]
    with pytest.raises(SystemExit):
        main(main_flags)
    assert "without a value range" in capsys.readouterr().err


def test_the_recipe_names_settings_only():
    for path in RECIPE.glob("*.yaml"):
        assert yaml.safe_load(path.read_text())["data"] == "data/micrographs"
