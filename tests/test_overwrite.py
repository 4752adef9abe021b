"""A second run of each command replaces the first one's results, and no file of anybody else."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from hf_latent.command import run_command
from hf_latent.data.images import sources
from hf_latent.evaluation.config import EvaluateConfig
from hf_latent.evaluation.inspect import InspectConfig, inspect_autoencoders
from hf_latent.experiments import quickstart
from hf_latent.experiments.benchmark import loop
from hf_latent.experiments.evaluate_model import evaluate_model
from hf_latent.experiments.generate import GenerateConfig, generate
from hf_latent.experiments.quickstart import QuickstartConfig, run_quickstart
from hf_latent.hub.export import ExportConfig, export
from hf_latent.training.autoencoder import train_autoencoder
from hf_latent.training.averages.synthesize import SynthesizeEmaConfig, synthesize_ema
from hf_latent.training.denoiser import train_denoiser
from hf_latent.training.latents.config import EncodeConfig
from hf_latent.training.latents.encode import encode_latents
from tests.conftest import ticking_clock
from tests.evaluation.features.short_vectors import ShortVectors
from tests.small import few_images, small_trainings
from tests.training.conftest import short_autoencoder, short_denoiser

OVERWRITE = ("--overwrite_output_dir", "true")
CLOTHES = ("--data", "fashion_mnist", "--resize_mode", "pad")
SHORT = ("--max_train_samples", "40", "--max_train_steps", "2", "--train_batch_size", "8")
SHORT += ("--validation_steps", "2", "--max_validation_samples", "12", "--checkpointing_steps", "1")
FEW_IMAGES = ("--num_images", "20", "--max_train_samples", "60")
MODEL = "diffusion_pytorch_model.safetensors"


@pytest.fixture(autouse=True, scope="module")
def small():
    with small_trainings() as patch:
        patch.setitem(sources.BUILT_IN, "fashion_mnist", few_images)
        patch.setattr(
            "hf_latent.evaluation.evaluate.load_feature_extractor", lambda name: ShortVectors()
        )
        patch.setattr(loop, "benchmark_loop", lambda config: {"rounds": config.rounds})
        patch.setattr(quickstart, "SAMPLES_PER_CLASS", 1)
        yield


@pytest.fixture(scope="module")
def trained(small, tmp_path_factory) -> Path:
    """A folder with an autoencoder's run and a denoiser's; read only."""
    folder = tmp_path_factory.mktemp("trained")
    train_autoencoder(short_autoencoder(folder))
    train_denoiser(short_denoiser(folder, ema_snapshot_steps=1))
    return folder


# By name: configuration, function, flags of both runs, flags of each run, a result that changes.
COMMANDS: dict[str, tuple[type, Callable, tuple, tuple, str]] = {
    "train_autoencoder": (
        *(short_autoencoder.__annotations__["return"], train_autoencoder),
        (*CLOTHES, *SHORT),
        (("--seed", "0"), ("--seed", "1", *OVERWRITE)),
        f"model/{MODEL}",
    ),
    "train_denoiser": (
        *(short_denoiser.__annotations__["return"], train_denoiser),
        (*CLOTHES, *SHORT, "--vae", "{vae}", "--ema_snapshot_steps", "1"),
        # Other images, so that the latent cache is replaced too.
        (("--seed", "0"), ("--seed", "1", "--max_train_samples", "30", *OVERWRITE)),
        "latents/train-000000.safetensors",
    ),
    "synthesize": (
        *(SynthesizeEmaConfig, synthesize_ema),
        ("--run", "{run}"),
        (("--sigma_rel", "0.07"), ("--sigma_rel", "0.08", *OVERWRITE)),
        f"unet/{MODEL}",
    ),
    "export": (
        *(ExportConfig, export),
        ("--model", "{run}/model"),
        ((), ("--model", "fashion-mnist", *OVERWRITE)),
        f"transformer/{MODEL}",
    ),
    "evaluate": (
        *(EvaluateConfig, evaluate_model),
        (*CLOTHES, "--model", "{run}/model", "--num_inference_steps", "1", *FEW_IMAGES),
        (("--seed", "0"), ("--seed", "1", *OVERWRITE)),
        "generated/000000.safetensors",
    ),
    "inspect": (
        *(InspectConfig, inspect_autoencoders),
        (*CLOTHES, "--vae", "{vae}", "--feature_extractor", "none", "--max_images", "4"),
        ((), ("--max_images", "6", *OVERWRITE)),
        "report.json",
    ),
    "encode": (
        *(EncodeConfig, encode_latents),
        (*CLOTHES, "--vae", "{vae}", "--max_train_samples", "40"),
        ((), ()),  # continued
        "",
    ),
    "quickstart": (
        *(QuickstartConfig, lambda config: run_quickstart(config, now=ticking_clock(4))),
        ("--max_minutes", "4", "--evaluation_images", "20", "--num_inference_steps", "1"),
        ((), ("--seed", "1", *OVERWRITE)),
        f"model/unet/{MODEL}",
    ),
    "bench": (
        *(loop.LoopBenchmarkConfig, loop.run),
        ("--steps", "1", "--train_batch_sizes", "[4]"),
        (("--rounds", "1"), ("--rounds", "2", *OVERWRITE)),
        "bench.json",
    ),
}


def add_files(folder: Path) -> dict[Path, bytes]:
    """Put files of somebody else into a folder and into each folder in it."""
    added = {}
    for place in [folder, *(x for x in folder.rglob("*") if x.is_dir())]:
        for name in ("notes.txt", "other.png", ".hidden", f"mine/{MODEL}", "mine/unet/config.json"):
            path = place / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"mine: {path}")
            added[path] = path.read_bytes()
    return added


@pytest.mark.parametrize("name", COMMANDS)
def test_files_that_no_command_wrote_stay(name, trained, tmp_path):
    config, command, flags, runs, result = COMMANDS[name]
    folder = tmp_path / "out"
    places = {"run": trained / "denoiser", "vae": trained / "autoencoder" / "model"}
    added: dict[Path, bytes] = {}
    written = []
    for changes in runs:
        words = [word.format(**places) for word in (*flags, "--output_dir", str(folder), *changes)]
        if name == "evaluate":
            words += ["--cache_dir", str(tmp_path / "cache")]
        run_command(config, command, words)
        written.append((folder / result).read_bytes() if result else b"")
        added = added or add_files(folder)
    assert {path: path.read_bytes() for path in added} == added
    assert written[0] != written[1] or not result
    assert not list(tmp_path.glob(".*"))


def test_a_picture_is_written_beside_others(trained, tmp_path):
    added = add_files(tmp_path)
    for seed in ("0", "1"):
        model = str(trained / "denoiser" / "model")
        flags = ["--model", model, "--num_images", "1", "--num_inference_steps", "1"]
        output = ["--output", str(tmp_path / "samples.png"), "--seed", seed]
        run_command(GenerateConfig, generate, [*flags, *output])
    assert {path: path.read_bytes() for path in added} == added
    assert len(list(tmp_path.iterdir())) == 5


@pytest.mark.parametrize("place", ["{run}", "{run}/model", "{run}/.."])
@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("train_autoencoder", "pretrained_vae"),
        *(("train_denoiser", read) for read in ("vae", "pretrained_unet")),
        *(("synthesize", "run"), ("export", "model"), ("evaluate", "model"), ("evaluate", "guide")),
        *(("inspect", "vae"), ("encode", "vae")),
    ],
)
def test_a_command_does_not_write_into_a_model_that_it_reads(
    name, read, place, trained, tmp_path, capsys
):
    run = shutil.copytree(trained / "denoiser", tmp_path / "runs" / "denoiser")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    config, command, flags, (_, changes), _ = COMMANDS[name]
    places = {"run": run, "vae": trained / "autoencoder" / "model"}
    output = place.format(run=run)
    for given in (run, run / "model"):
        words = [*(word.format(**places) for word in (*flags, *changes)), "--output_dir", output]
        with pytest.raises(SystemExit) as stop:
            run_command(config, command, [*words, f"--{read}", str(given)])
        assert stop.value.code == 2
        assert "which is read: choose another" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
