"""Every user error is one line with exit status 2, and leaves no files."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from hf_latent.command import run_command
from hf_latent.experiments.quickstart import QuickstartConfig, run_quickstart
from hf_latent.training.autoencoder import AutoencoderConfig, train_autoencoder
from hf_latent.training.denoiser import train_denoiser
from hf_latent.training.denoiser_config import DenoiserConfig
from tests import small

COMMANDS = {
    "autoencoder": (AutoencoderConfig, train_autoencoder),
    "denoiser": (DenoiserConfig, train_denoiser),
    "quickstart": (QuickstartConfig, run_quickstart),
}


@pytest.fixture(autouse=True, scope="module")
def small_trainings():
    with small.small_trainings():
        yield


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working folder with good images, bad images, recipes and a file in the way."""
    for name, count in (("photos", 6), ("one_corrupt", 3), ("empty", 0), ("grey", 3)):
        (tmp_path / name).mkdir()
        for i in range(count):
            mode = "L" if name == "grey" else "RGB"
            Image.new(mode, (40, 40), 40 * i if mode == "L" else (40 * i, 0, 9)).save(
                tmp_path / name / f"{i}.png"
            )
    whole = (tmp_path / "one_corrupt" / "1.png").read_bytes()
    (tmp_path / "one_corrupt" / "1.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "a_file").write_text("in the way")
    (tmp_path / "recipe.yaml").write_text("data: photos\nresolution: 32\nlearning_rat: 0.1\n")
    return tmp_path


CASES = {
    "missing folder": ("autoencoder", "--data nowhere", "nowhere"),
    "empty folder": ("autoencoder", "--data empty", "empty"),
    "one corrupt file": ("autoencoder", "--data one_corrupt", "1.png"),
    "wrong number of channels": ("autoencoder", "--data photos --channels 2", "--channels"),
    "size that does not fit": ("autoencoder", "--data photos --resolution 30", "multiples of"),
    "resolution that is no size": (
        "autoencoder",
        "--data photos --resolution 3,4,5",
        "--resolution",
    ),
    "unknown key in a recipe": ("autoencoder", "--config recipe.yaml", "learning_rat"),
    "missing recipe": ("autoencoder", "--config nowhere.yaml", "nowhere.yaml"),
    "unknown preset": ("autoencoder", "--data photos --preset huge", "--preset"),
    "output folder is a file": ("autoencoder", "--data photos --output_dir a_file", "a_file"),
    "output folder below a file": (
        "autoencoder",
        "--data photos --output_dir a_file/run",
        "cannot be written",
    ),
    "output folder has files": (
        "autoencoder",
        "--data photos --output_dir grey",
        "has files in it",
    ),
    "unknown autoencoder": ("denoiser", "--data photos --vae nowhere/model", "nowhere/model"),
    "images the autoencoder cannot take": (
        "denoiser",
        "--data photos --vae grey_vae",
        "3 channels and the autoencoder takes 1",
    ),
    "size that cannot be denoised": (
        "denoiser",
        "--data grey --vae grey_vae --resolution 36",
        "of 8 to be denoised",
    ),
    "latent channels": ("autoencoder", "--data photos --latent_channels 0", "--latent_channels"),
    "perceptual weight alone": (
        "autoencoder",
        "--data photos --perceptual_weight 1",
        "--perceptual_network",
    ),
    "unknown feature network": (
        "autoencoder",
        "--data photos --perceptual_network vgg",
        "--perceptual_network",
    ),
    "decoder of nothing": (
        "autoencoder",
        "--data photos --train_decoder_only true",
        "--pretrained",
    ),
    "architecture of a pretrained one": (
        "autoencoder",
        "--data grey --pretrained_vae grey_vae --block_out_channels [8,8]",
        "--block_out_channels cannot change a --pretrained_vae",
    ),
    "pretrained one of other channels": (
        "autoencoder",
        "--data photos --pretrained_vae grey_vae",
        "3 channels and the autoencoder takes 1",
    ),
    "no pretrained one": (
        "autoencoder",
        "--data photos --pretrained_vae nowhere/vae",
        "nowhere/vae",
    ),
    "images too small for a patch": (
        "autoencoder",
        "--data photos --resolution 16 --discriminator_weight 0.5",
        "--discriminator_num_layers",
    ),
    "weight decay": ("autoencoder", "--data photos --adam_weight_decay -1", "--adam_weight_decay"),
    "second moment": ("autoencoder", "--data photos --adam_beta2 1", "--adam_beta2"),
    "workers": ("autoencoder", "--data photos --dataloader_num_workers -1", "--dataloader_num"),
    "huge seed": ("autoencoder", "--data photos --seed 99999999999999999999", "--seed"),
    "no learning rate": ("autoencoder", "--data photos --learning_rate null", "--learning_rate"),
    "a picture for a recipe": ("autoencoder", "--config photos/0.png", "--config is not"),
    "label dropout": (
        "denoiser",
        "--data grey --vae grey_vae --label_dropout 2",
        "--label_dropout",
    ),
    "a damaged autoencoder": ("denoiser", "--data grey --vae photos", "no autoencoder found at"),
    "too little time": ("quickstart", "--max_minutes 0.001", "--max_minutes 0.001"),
    "negative time": ("quickstart", "--max_minutes -1", "--max_minutes"),
    "quickstart into a file": ("quickstart", "--output_dir a_file", "a_file"),
}


@pytest.mark.parametrize(("command", "flags", "message"), CASES.values(), ids=CASES)
def test_a_user_error_is_one_line_with_status_2_and_leaves_nothing(
    folder, monkeypatch, capsys, command, flags, message, vae
):
    vae.save_pretrained(folder / "grey_vae")
    monkeypatch.chdir(folder)
    # The time limit is checked after the classifier is trained: use an untrained one.
    monkeypatch.setattr(
        "hf_latent.experiments.quickstart.train_classifier",
        lambda *_: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(1024, 10)),
    )
    before = sorted(folder.rglob("*"))
    arguments = flags.split()
    if "--output_dir" not in arguments:
        arguments += ["--output_dir", "run"]
    config_class, function = COMMANDS[command]
    with pytest.raises(SystemExit) as stop:
        run_command(config_class, function, arguments)
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err
    assert len(captured.err) < 600
    assert sorted(folder.rglob("*")) == before


def test_corrupt_files_can_be_skipped(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    flags = "--data one_corrupt --on_bad_image skip --max_train_steps 1 --train_batch_size 2"
    run_command(AutoencoderConfig, train_autoencoder, [*flags.split(), "--output_dir", "run"])
    assert "1 images that cannot be decoded are left out" in capsys.readouterr().out
    assert "1 left out" in (folder / "run" / "config.yaml").read_text().splitlines()[0]
    assert (folder / "run" / "model" / "diffusion_pytorch_model.safetensors").is_file()
