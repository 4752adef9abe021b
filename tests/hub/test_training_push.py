"""`--push_to_hub` of the two trainings: checks before the training, and failures after it."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate import Accelerator

from hf_latent.errors import UserError
from hf_latent.hub.card.signature import is_unedited
from hf_latent.training.autoencoder_config import AutoencoderConfig
from hf_latent.training.finish.push import prepare_push
from tests.hub.conftest import TOKEN, model_files

IMPORTS = """
from tests.small import few_images, small_trainings
from hf_latent.data.images.sources import BUILT_IN
from hf_latent.command import run_command
from hf_latent.training.autoencoder import AutoencoderConfig, train_autoencoder
from hf_latent.training.denoiser import DenoiserConfig, train_denoiser
"""
SMALL = """
with small_trainings() as patch:
    patch.setitem(BUILT_IN, "fashion_mnist", few_images)
"""
SHORT = shlex.split(
    "--data fashion_mnist --resolution 32 --resize_mode pad --max_train_samples 20 "
    "--max_train_steps 1 --train_batch_size 4 --validation_steps 10 --max_validation_samples 4"
)
WHOLE = "the model is saved in {model}, but not on the Hub ({reason}"


@pytest.fixture
def train(process, tmp_path):
    """Train an autoencoder, or a denoiser, for a step."""

    def run(*flags, what="autoencoder", token=TOKEN, before="", push=True):
        output = tmp_path / f"my-{what}"
        words = [*SHORT, "--output_dir", str(output), *(["--push_to_hub"] if push else []), *flags]
        if what == "denoiser":
            words += ["--vae", "fashion-mnist-f4"]
        config = f"{what.capitalize()}Config"
        training = f"run_command({config}, train_{what}, {words!r})"
        outcome = process.run(f"{before}{IMPORTS}{SMALL}    {training}", token)
        assert TOKEN not in outcome.out + outcome.err
        return outcome

    return run


def without_warnings(outcome) -> list[str]:
    """The lines of stderr, but for those about classes that 20 images lack."""
    return [line for line in outcome.err.splitlines() if not line.startswith("warning: ")]


def last_line(outcome):
    return outcome.err.splitlines()[-1]


@pytest.mark.parametrize(
    ("what", "entry"), [("autoencoder", "config.json"), ("denoiser", "model_index.json")]
)
def test_a_trained_model_is_pushed_with_its_card(hub, train, tmp_path, what, entry):
    outcome = train(what=what)
    assert outcome.status == 0, outcome.err
    assert f"{hub.endpoint}/ada/my-{what}\n" in outcome.out
    sent = model_files(hub, repo_id=f"ada/my-{what}")
    folder = tmp_path / f"my-{what}" / "model"
    assert sent[entry] == (folder / entry).read_bytes()
    weights = [name for name in sent if name.endswith(".safetensors")]
    assert weights and all(sent[name] == (folder / name).read_bytes() for name in weights)
    assert is_unedited(sent["README.md"].decode())
    assert not any("checkpoint" in name for name in sent)
    assert not hub.repos["models", f"ada/my-{what}"].private
    for path in (Path(x) / name for x, _, names in os.walk(tmp_path) for name in names):
        assert TOKEN.encode() not in path.read_bytes(), path


def test_the_name_and_the_privacy_are_flags(hub, train):
    assert train("--hub_model_id", "named", "--hub_private_repo").status == 0
    assert train("--hub_model_id", "ada/other", "--overwrite_output_dir").status == 0
    privacy = {name: repo.private for (_, name), repo in hub.repos.items()}
    assert privacy == {"ada/named": True, "ada/other": False}


def test_nothing_is_asked_of_the_hub_without_the_flag(hub, train):
    assert train(push=False).status == 0
    assert hub.requests == []


@pytest.mark.parametrize(
    ("token", "flags", "says"),
    [
        (None, [], "there is no token for the Hub: run hf auth login, or set HF_TOKEN"),
        ("hf_unknown", [], "the Hub does not know this token"),
        ("hf_reader", [], "this token may not write to ada/my-autoencoder"),
        (TOKEN, ["--hub_model_id", "eve/model"], "this token may not write to eve/model"),
        (TOKEN, ["--hub_model_id", "ada/a b"], "--hub_model_id ada/a b is not of the form"),
        (TOKEN, ["--hub_model_id", "ada/pipe"], "ada/pipe has the model_index.json of Other"),
        (TOKEN, ["--hub_model_id", "ada/open", "--hub_private_repo"], "ada/open is public"),
    ],
)
def test_what_cannot_be_pushed_is_one_line_before_the_training(
    hub, train, tmp_path, token, flags, says
):
    hub.add_token("hf_reader", "ada", "read")
    hub.put("ada/my-autoencoder", {}, kind="models")
    hub.put("eve/model", {}, kind="models")
    hub.put("ada/pipe", {"model_index.json": b'{"_class_name": "Other"}'}, kind="models")
    hub.put("ada/open", {}, kind="models")
    outcome = train(*flags, token=token)
    assert outcome.status == 2
    (line,) = without_warnings(outcome)
    assert line.startswith(f"error: {says}")
    assert not (tmp_path / "my-autoencoder").exists()
    assert not hub.asked("preupload|lfs|commit")


def test_a_hub_that_is_down_before_the_training_is_one_line(hub, train, tmp_path):
    hub.fail(".", times=1000, how=503)
    outcome = train()
    assert outcome.status == 2
    (line,) = without_warnings(outcome)
    assert line.startswith("error: the Hub cannot be reached or is in trouble (503")
    assert not (tmp_path / "my-autoencoder").exists()


def test_a_hub_that_is_down_after_the_training_loses_nothing(hub, train, process, tmp_path):
    hub.fail("auth-check|tree|commit", times=1000, how="drop", after=2)
    outcome = train("--hub_private_repo")
    assert outcome.status == 2
    model = tmp_path / "my-autoencoder" / "model"
    line = last_line(outcome)
    whole = WHOLE.format(model=model, reason="the Hub cannot be reached or is in trouble")
    assert line.startswith(f"error: {whole}")
    command = line.rpartition("to push it: ")[2]
    assert command == (f"hf-latent push --model {model} --repo_id ada/my-autoencoder --private")
    hub.faults.clear()
    assert process.command(*shlex.split(command)[1:], token=TOKEN).status == 0
    sent = model_files(hub, repo_id="ada/my-autoencoder")
    assert json.loads(sent["config.json"])["_class_name"] == "AutoencoderKL"


def test_a_token_that_is_withdrawn_in_between_loses_nothing(hub, train, tmp_path):
    hub.fail("preupload|commit", times=1000, how=403)
    outcome = train()
    assert outcome.status == 2
    model = tmp_path / "my-autoencoder" / "model"
    assert (model / "config.json").is_file()
    assert WHOLE.format(model=model, reason="this token may not write to") in last_line(outcome)


def test_an_interrupted_push_loses_nothing(hub, train, tmp_path):
    interrupt = """
import huggingface_hub.hf_api as api
def create_commit(*arguments, **named):
    raise KeyboardInterrupt
api.HfApi.create_commit = create_commit
"""
    outcome = train(before=interrupt)
    assert outcome.status == 2
    model = tmp_path / "my-autoencoder" / "model"
    assert WHOLE.format(model=model, reason="interrupted)") in last_line(outcome)


def test_the_flags_do_not_hinder_resuming(hub, train):
    assert train("--checkpointing_steps", "1", push=False).status == 0
    flags = ("--resume_from_checkpoint", "latest", "--hub_model_id", "ada/m", "--hub_private_repo")
    outcome = train(*flags)
    assert outcome.status == 0, outcome.err
    assert "resumed from" in outcome.out
    assert "from now on" not in outcome.out
    assert "config.json" in model_files(hub, repo_id="ada/m")


def test_the_runs_folder_is_checked_before_the_hub(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine").touch()
    settings = {"push_to_hub": True, "hub_model_id": "ada/m"}
    config = AutoencoderConfig(output_dir=str(tmp_path / "run"), **settings)
    with pytest.raises(UserError, match=r"--output_dir .*run has files in it: choose another"):
        prepare_push(config, "AutoencoderKL", Accelerator())


def test_a_folder_whose_name_no_repository_can_have_asks_for_one(tmp_path):
    config = AutoencoderConfig(output_dir=str(tmp_path / "my run"), push_to_hub=True)
    with pytest.raises(UserError) as raised:
        prepare_push(config, "AutoencoderKL", Accelerator())
    assert str(raised.value) == (
        f"--output_dir {tmp_path / 'my run'}: a repository on the Hub cannot be called 'my run'; "
        "name one with --hub_model_id"
    )


@pytest.mark.parametrize("flags", [{"hub_model_id": "ada/m"}, {"hub_private_repo": True}])
def test_flags_that_have_no_effect_are_refused(flags):
    with pytest.raises(UserError, match="need --push_to_hub"):
        AutoencoderConfig(output_dir="run", **flags)
    for name in ("ada/a/b", "a--b", "a b", "ada/"):
        with pytest.raises(UserError, match="is not of the form user/name"):
            AutoencoderConfig(output_dir="run", push_to_hub=True, hub_model_id=name)
    AutoencoderConfig(output_dir="run", push_to_hub=True, hub_model_id="m")


@pytest.mark.slow
def test_the_first_of_two_processes_pushes(hub, tmp_path):
    """The one test of a real launcher with two processes; others fork theirs."""
    environment = hub.environment(tmp_path / "hf", TOKEN)
    environment |= {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    # Standalone: at a port of its own, as other tests may do the same at the same time.
    torchrun = [str(Path(sys.executable).with_name("torchrun")), "--standalone"]
    torchrun += ["--nproc_per_node", "2"]
    training = ["-m", "hf_latent", "train-autoencoder", *SHORT, "--push_to_hub"]
    process = subprocess.run(
        [*torchrun, *training, "--output_dir", str(tmp_path / "both")],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr[-2000:]
    assert TOKEN not in process.stdout + process.stderr
    assert "config.json" in model_files(hub, repo_id="ada/both")
    assert len(hub.asked("GET /api/whoami")) == len(hub.asked("POST .*commit/main")) == 1
