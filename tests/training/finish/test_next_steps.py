"""A finished training prints commands that the command line accepts as they are."""

import runpy
import shlex

import pytest

from hf_latent import cli
from hf_latent.command import parse_config
from hf_latent.training import autoencoder as autoencoder_module
from hf_latent.training.denoiser_config import DenoiserConfig
from hf_latent.training.finish.next_steps import after_autoencoder, after_denoiser
from tests.docs.pages import ROOT


def parsed(text: str) -> dict:
    """Return the configurations of the printed commands by command."""
    commands = [shlex.split(line) for line in text.splitlines() if line.startswith("  ")]
    assert all(words[0] == "hf-latent" for words in commands)
    found = {}
    for _, name, *flags in commands:
        command = cli.COMMANDS[name]
        module = __import__(command.module, fromlist=[command.config])
        found[name] = parse_config(getattr(module, command.config), flags)
    return found


def test_commands_after_an_autoencoder(autoencoder_config):
    config = autoencoder_config(data="it's a $(test)", resolution=64, horizontal_flip=True)
    lines = after_autoencoder(config).splitlines()
    assert lines[0] == f"the model is in {config.output_dir}/model"
    found = parsed(after_autoencoder(config))
    inspect, denoiser = found["inspect"], found["train-denoiser"]
    for command in (inspect, denoiser):
        assert command.vae == f"{config.output_dir}/model"
        assert (command.data, command.resolution, command.resize_mode) == (
            "it's a $(test)",
            64,
            "pad",
        )
        assert command.max_train_samples == 40
    assert denoiser.horizontal_flip and denoiser.output_dir != config.output_dir


def test_commands_after_a_denoiser(denoiser_config):
    config = denoiser_config(data="a folder", resolution=64, seed=3)
    found = parsed(after_denoiser(config))
    assert list(found) == ["generate", "evaluate", "push"]
    assert {command.model for command in found.values()} == {f"{config.output_dir}/model"}
    assert (found["evaluate"].data, found["evaluate"].resolution) == ("a folder", 64)
    config = DenoiserConfig(output_dir="run", vae="vae", latents="cache")
    assert parsed(after_denoiser(config))["evaluate"].data == "IMAGES"


def test_train_autoencoder_is_a_command_that_ends_with_what_comes_next(
    autoencoder_config, capsys, monkeypatch
):
    monkeypatch.setattr(autoencoder_module, "StopSignal", lambda: None)
    config = autoencoder_config()
    flags = f"--output_dir {config.output_dir} --resize_mode pad --max_train_samples 40"
    short = "--max_train_steps 1 --train_batch_size 2 --max_validation_samples 2"
    cli.main(["train-autoencoder", *flags.split(), *short.split()])
    printed = capsys.readouterr().out
    assert printed.endswith(after_autoencoder(config) + "\n")


@pytest.mark.parametrize(
    ("script", "name"),
    [
        ("train_vae", "train-autoencoder"),
        ("train_unet", "train-denoiser"),
        ("distill_unet", "distill"),
        ("encode_latents", "encode"),
        ("synthesize_ema", "synthesize-ema"),
    ],
)
def test_each_script_is_a_command(script, name, monkeypatch):
    called = []
    monkeypatch.setattr(cli, "main", lambda command: called.append(command))
    runpy.run_path(str(ROOT / "train_scripts" / f"{script}.py"), run_name="__main__")
    assert called == [name] and name in cli.COMMANDS


@pytest.mark.parametrize("module", ["autoencoder", "denoiser", "distillation", "latents.encode"])
def test_each_training_module_is_a_command(module, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["module", "--no_such_flag", "1"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_module(f"hf_latent.training.{module}", run_name="__main__")
    assert stop.value.code == 2
    assert "no_such_flag" in capsys.readouterr().err
