"""Several autoencoders side by side: the whole command, its names, figures and errors."""

import json
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from tqdm import tqdm

from hf_latent.cli import main
from hf_latent.data.images import ImagesConfig, open_images
from hf_latent.data.images.pixels import to_uint8
from hf_latent.errors import UserError
from hf_latent.evaluation import inspect
from hf_latent.evaluation.costs import Costs
from hf_latent.evaluation.inspection import comparison
from hf_latent.evaluation.inspection.comparison import (
    distinct_names,
    measure_costs,
    render_comparison,
)
from hf_latent.evaluation.measures.floor import measure_floor
from hf_latent.evaluation.measures.generation import frechet_distance
from hf_latent.evaluation.measures.interpolation import measure_ifid
from hf_latent.evaluation.measures.reconstruction import reconstruct
from hf_latent.models.load import load_autoencoder
from hf_latent.models.presets import create_autoencoder
from hf_latent.pipeline.decode import decode_latents
from tests.conftest import make_autoencoder
from tests.evaluation.features.short_vectors import ShortVectors

CLOTHES = ["--data", "fashion_mnist", "--resize_mode", "pad", "--max_images", "12"]


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    monkeypatch.setattr(inspect, "load_feature_extractor", lambda name: ShortVectors())
    monkeypatch.setattr(comparison, "time_alternately", lambda x, rounds: {y: [0.5] for y in x})


@pytest.fixture
def models(tmp_path, monkeypatch) -> Path:
    """The working folder, with two runs and a model."""
    make_autoencoder(sample_size=32).save_pretrained(tmp_path / "runs/a/model")
    make_autoencoder(sample_size=32, latent_channels=2).save_pretrained(tmp_path / "runs/b/model")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def compare(*vaes: str, flags: str = "") -> dict:
    main(["inspect", "--vae", *vaes, *CLOTHES, "--output_dir", "out", *flags.split()])
    return json.loads(Path("out/report.json").read_text())


def test_the_table_has_the_figures_of_each_report(models, capsys):
    report = compare("runs/a", "runs/b/model", flags="--seed 3")
    output = capsys.readouterr().out.splitlines()
    assert [row["name"] for row in report["autoencoders"]] == ["a", "b"]
    assert sorted(x.name for x in (models / "out").iterdir()) == [
        *("a", "b", "report.json", "report.md")
    ]
    splits = open_images(ImagesConfig(data="fashion_mnist", resize_mode="pad"))
    held_out, train = (x.evenly_spaced(12) for x in (splits.validation, splits.train))
    extractor, bar = ShortVectors(), tqdm(disable=True)
    real = [[extractor(to_uint8(x.read()))] for x in (held_out, train)]
    for row in report["autoencoders"]:
        own = json.loads((models / "out" / row["name"] / "report.json").read_text())
        assert own["vae"] == row["name"]
        assert {key: row[key] for key in comparison.OWN if key in row}.items() <= own.items()
        assert row["encode_images_per_second"] == row["decode_images_per_second"] == 24
        vae = load_autoencoder(f"runs/{row['name']}").eval()
        decoded = [extractor(to_uint8(reconstruct(vae, held_out.read())))]
        assert row["reconstruction_fd"] == pytest.approx(
            frechet_distance(decoded, real[0]), rel=1e-3
        )
        floor = measure_floor(vae, held_out, real[1], extractor, 32, 3, bar)
        assert row["floor_fd"] == pytest.approx(floor, rel=1e-3)
        ifid = measure_ifid(vae, held_out, train, real[0], extractor, 32, 3, bar)
        assert row["ifid"] == pytest.approx(ifid, rel=1e-3)
        text = (models / "out" / row["name"] / "report.md").read_text()
        assert f"between neighbouring latents | {row['ifid']:.2f} |" in text
    assert report["real_fd"] == pytest.approx(frechet_distance(*real), rel=1e-3)
    text = (models / "out" / "report.md").read_text()
    assert text == render_comparison(report)
    (line,) = (x for x in text.splitlines() if x.startswith("| [b](b/report.md) | 2 x 8 x 8 |"))
    for form, key in (("{:.2f}", "ifid"), ("{:.2f}", "floor_fd"), ("{:g}x", "compression_ratio")):
        assert f"| {form.format(report['autoencoders'][1][key])} |" in line
    places = [f"{i}. {x['name']}: {x['reason']}" for i, x in enumerate(report["ranking"], 1)]
    assert output[-3:-1] == places
    assert "chroma" not in text


def test_a_killed_comparison_keeps_the_finished_reports(models, monkeypatch):
    save_pictures = inspect.save_pictures

    def killed(folder, *arguments):
        if folder.name == "b":
            raise KeyboardInterrupt
        save_pictures(folder, *arguments)

    monkeypatch.setattr(inspect, "save_pictures", killed)
    with pytest.raises(SystemExit):
        compare("runs/a", "runs/b")
    report = models / "out" / "a" / "report.json"
    before = report.stat().st_mtime_ns
    monkeypatch.setattr(inspect, "save_pictures", save_pictures)
    compare("runs/a", "runs/b", flags="--overwrite_output_dir")
    assert report.stat().st_mtime_ns == before
    assert (models / "out" / "b" / "worst.png").exists()
    compare("runs/a", "runs/b", flags="--overwrite_output_dir --seed 1")
    assert report.stat().st_mtime_ns != before


@pytest.mark.parametrize(
    ("given", "names"),
    [
        (["runs/a/model", "runs/b/model"], ["a", "b"]),
        (["runs/a", "runs/b/model", "emoji"], ["a", "b", "emoji"]),
        (["x/f4-c4/autoencoder/model", "x/f4-c8/autoencoder/model"], ["f4-c4", "f4-c8"]),
        (["one/run/model", "two/run", "other"], ["one-run", "two-run", "other"]),
        (["emoji", "runs/emoji"], ["emoji", "runs-emoji"]),
        (["ada/sdxl-vae", "bob/kl-f8"], ["sdxl-vae", "kl-f8"]),
        (["fashion-mnist-f4"], ["fashion-mnist-f4"]),
    ],
)
def test_names_tell_autoencoders_apart(given, names):
    assert distinct_names(given, "vae") == dict(zip(names, given, strict=True))


@pytest.mark.parametrize(
    ("vaes", "flags", "message"),
    [
        ("runs/a runs/a/model", "", "--vae runs/a/model is given twice"),
        ("runs/a nowhere/vae", "", "nowhere/vae"),
        ("runs/a emoji", "", "several sizes: a 32x32, emoji 64x64"),
        ("runs/a emoji", "--resolution 32", "emoji: the images have 1 channels"),
        ("runs/a runs/f8", "--resolution 36", "f8: images of 36x36 do not fit"),
    ],
)
def test_what_does_not_fit_names_its_autoencoder(models, capsys, vaes, flags, message):
    create_autoencoder(
        "tiny", 1, 32, block_out_channels=(4, 4, 4, 4), norm_num_groups=2
    ).save_pretrained(models / "runs/f8")
    with pytest.raises(SystemExit) as stop:
        compare(*vaes.split(), flags=flags)
    assert stop.value.code == 2
    (line,) = (x for x in capsys.readouterr().err.splitlines() if x.startswith("error: "))
    assert message in line
    assert not Path("out").exists()


def test_a_folder_that_holds_one_of_several_is_refused(models):
    with pytest.raises(UserError, match="holds --vae runs/b, which is read"):
        inspect.inspect_autoencoders(
            inspect.InspectConfig(vae=["runs/a", "runs/b"], data="x", output_dir="runs/b")
        )


def test_memory_is_that_of_one_image_without_the_weights():
    vae = make_autoencoder().requires_grad_(False)
    images = torch.zeros(3, 1, 16, 16)
    found = measure_costs({"own": vae}, images)["own"]["decode_activations_mb"]
    with FakeTensorMode(), torch.no_grad():
        vae, latents = make_autoencoder(), torch.zeros(1, 4, 4, 4)
        with Costs() as costs:
            decode_latents(vae, latents)
        expected = costs.peak_bytes
    assert found == pytest.approx(expected / 2**20, rel=0.05)
