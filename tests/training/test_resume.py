import json
import os
import random
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hf_latent.command import dump_config, parse_config
from hf_latent.errors import UserError
from hf_latent.models.load import load_autoencoder
from hf_latent.pipeline.decode import IMAGE_VALUES
from hf_latent.training.autoencoder import train_autoencoder
from hf_latent.training.autoencoder_config import AutoencoderConfig
from hf_latent.training.denoiser import train_denoiser
from hf_latent.training.latents import posteriors
from hf_latent.training.latents.encode import encode_latents
from hf_latent.training.run.clock import TrainingSummary
from tests import forked
from tests.attacks.kills import KILLS
from tests.training.conftest import SHORT, short_autoencoder, short_denoiser
from tests.training.encoding import encode_settings, save_autoencoder
from tests.training.run.test_log import figures

AUTOENCODER = {
    "max_train_steps": 5,
    "checkpointing_steps": 2,
    "checkpoints_total_limit": None,
    "gradient_accumulation_steps": 2,
    "horizontal_flip": True,
    "discriminator_weight": 0.5,
    "discriminator_start": 3,
    "discriminator_base_channels": 8,
    "discriminator_num_layers": 1,
}
DENOISER = {
    "max_train_steps": 5,
    "checkpointing_steps": 5,
    "validation_steps": 3,
    "max_validation_samples": 4,
    "gradient_accumulation_steps": 2,
    "horizontal_flip": True,
    "label_dropout": 0.5,
}


class StopAfter:
    """Asks a training to stop after so many steps."""

    status = 143

    def __init__(self, steps: int):
        self.steps = steps

    def defer(self, accelerator) -> None:
        pass

    def requested(self, accelerator) -> bool:
        self.steps -= 1
        return self.steps == 0


def weights(folder: Path) -> dict[str, bytes]:
    found = {
        str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.safetensors")
    }
    assert found, f"no weights in {folder}"
    return found


def assert_same_weights(found: Path, expected: Path) -> None:
    expected_weights = weights(expected)
    found_weights = weights(found)
    assert found_weights.keys() == expected_weights.keys()
    for name, content in found_weights.items():
        assert content == expected_weights[name], f"{name} differs from the uninterrupted run's"


def log_lines(run: Path, key: str) -> list[dict]:
    lines = [json.loads(line) for line in (run / "logs" / "losses.jsonl").open()]
    return [line for line in lines if key in line]


def assert_each_loss_is_logged_once(run: Path) -> None:
    steps = [line["step"] for line in log_lines(run, "train_loss")]
    assert steps
    assert steps == sorted(set(steps)), "the log has the loss of a step twice"


@pytest.fixture(scope="module")
def whole_autoencoder_run(tmp_path_factory) -> Path:
    """An uninterrupted run; tests change a copy of it."""
    folder = tmp_path_factory.mktemp("whole")
    train_autoencoder(short_autoencoder(folder, **AUTOENCODER))
    return folder / "autoencoder"


@pytest.fixture
def copied_run(whole_autoencoder_run, tmp_path) -> Path:
    return shutil.copytree(whole_autoencoder_run, tmp_path / "autoencoder")


# The adversarial weight is measured from the third step on, the discriminator trained from the
# fourth.
def test_an_interrupted_autoencoder_ends_bit_for_bit_as_an_uninterrupted_one(
    autoencoder_config, whole_autoencoder_run, tmp_path, capsys
):
    config = autoencoder_config(**AUTOENCODER | {"checkpointing_steps": 5})
    for stops in ([1, 1], [3, 1]):
        config = replace(config, output_dir=str(tmp_path / f"interrupted-{stops[0]}"))
        resumed = replace(config, resume_from_checkpoint="latest")
        for after in stops:
            with pytest.raises(SystemExit) as stopped:
                train_autoencoder(resumed, stop=StopAfter(after))
            assert stopped.value.code == 143
            assert "-m hf_latent train-autoencoder --config" in capsys.readouterr().out
        summary = train_autoencoder(resumed)
        assert summary.steps == 5
        run = Path(config.output_dir)
        names = sorted(path.name for path in run.glob("checkpoint-*"))
        done = [f"checkpoint-{sum(stops[: n + 1])}" for n in range(len(stops))]
        assert names == [*done, "checkpoint-5"]
        found = weights(run / "checkpoint-5")
        assert sorted(name.split(os.sep)[0] for name in found) == [
            "discriminator",
            "discriminator_optimizer.safetensors",
            "vae",
            "vae_ema",
            "vae_optimizer.safetensors",
        ]
        for folder in ("model", "checkpoint-5"):
            assert_same_weights(run / folder, whole_autoencoder_run / folder)
        last, whole_last = (
            log_lines(folder, "validation_loss")[-1] for folder in (run, whole_autoencoder_run)
        )
        for name in last.keys() - {"images_per_second"}:
            assert last[name] == whole_last[name], name
        assert_each_loss_is_logged_once(run)


def test_a_lengthened_training_with_decay_equals_one_that_was_long_from_the_start(
    autoencoder_config, tmp_path
):
    decay = AUTOENCODER | {"lr_scheduler": "constant_with_decay", "lr_decay_ratio": 0.5}
    long = autoencoder_config(**decay | {"max_train_steps": 8}, output_dir=str(tmp_path / "long"))
    train_autoencoder(long)
    short = replace(long, max_train_steps=4, output_dir=str(tmp_path / "short"))
    train_autoencoder(short)
    train_autoencoder(replace(short, max_train_steps=8, resume_from_checkpoint="latest"))
    assert_same_weights(tmp_path / "short" / "model", tmp_path / "long" / "model")
    assert_each_loss_is_logged_once(tmp_path / "short")


def test_an_earlier_checkpoint_can_be_named(autoencoder_config, copied_run, whole_autoencoder_run):
    before = weights(copied_run / "checkpoint-2")
    earlier = str(copied_run / "checkpoint-2")
    train_autoencoder(autoencoder_config(**AUTOENCODER, resume_from_checkpoint=earlier))
    assert weights(copied_run / "checkpoint-2") == before
    assert_same_weights(copied_run / "model", whole_autoencoder_run / "model")
    assert_each_loss_is_logged_once(copied_run)


def test_a_finished_run_can_be_resumed_without_change(autoencoder_config, copied_run):
    before = weights(copied_run / "model")
    config = autoencoder_config(**AUTOENCODER, resume_from_checkpoint="latest")
    summary = train_autoencoder(config)
    assert summary.steps == 5
    assert weights(copied_run / "model") == before
    assert_each_loss_is_logged_once(copied_run)


def test_a_log_line_cut_short_by_a_kill_is_ignored(autoencoder_config, copied_run):
    with open(copied_run / "logs" / "losses.jsonl", "a") as log:
        log.write('{"step": 2, "train_lo')
    train_autoencoder(autoencoder_config(**AUTOENCODER, resume_from_checkpoint="latest"))
    assert log_lines(copied_run, "step")[-1]["step"] == 5


def test_another_discriminator_is_refused(autoencoder_config, copied_run):
    wider = AUTOENCODER | {"discriminator_base_channels": 12, "resume_from_checkpoint": "latest"}
    with pytest.raises(UserError, match="checkpoint-5 is damaged or of another training"):
        train_autoencoder(autoencoder_config(**wider))


@pytest.fixture(scope="module")
def whole_denoiser_run(tmp_path_factory) -> Path:
    """An uninterrupted run; read only."""
    folder = tmp_path_factory.mktemp("whole_denoiser")
    save_autoencoder(folder / "autoencoder" / "model")
    train_denoiser(short_denoiser(folder, **DENOISER))
    return folder / "denoiser"


STREAM = {"stream_latents": True, "stream_lanes": 4, "stream_buffer_rows": 16}


@pytest.mark.parametrize(
    "latents", ["of the run", "of a cache", "on the device", "streamed", "of every step"]
)
def test_an_interrupted_denoiser_ends_bit_for_bit_as_an_uninterrupted_one(
    denoiser_config, whole_denoiser_run, tmp_path, monkeypatch, latents
):
    vae = save_autoencoder(tmp_path / "autoencoder" / "model")
    config = denoiser_config(**DENOISER, encode_every_step=latents == "of every step")
    if latents in ("of a cache", "streamed"):
        encode_latents(encode_settings(vae, tmp_path / "cache"))
        config = replace(config, latents=str(tmp_path / "cache"), max_train_samples=None)
    if latents == "streamed":
        config = replace(config, **STREAM)
    whole = whole_denoiser_run
    if latents not in ("of the run", "on the device"):
        whole = tmp_path / "whole"
        train_denoiser(replace(config, output_dir=str(whole)))
    if latents == "on the device":
        config = replace(config, latents_on_device=True)
    for after in (1, 2) if latents == "of the run" else (2,):
        with pytest.raises(SystemExit) as stopped:
            train_denoiser(replace(config, resume_from_checkpoint="latest"), stop=StopAfter(after))
        assert stopped.value.code == 143
        if latents != "of every step":
            monkeypatch.setattr(posteriors, "encode_posteriors", None)  # nothing is encoded twice
    train_denoiser(replace(config, resume_from_checkpoint="latest"))
    for folder in ("model", "checkpoint-5"):
        assert_same_weights(tmp_path / "denoiser" / folder, whole / folder)
    assert_each_loss_is_logged_once(tmp_path / "denoiser")


@pytest.fixture(scope="module")
def first(tmp_path_factory) -> TrainingSummary:
    """A pretrained denoiser; tests change a copy of its model."""
    folder = tmp_path_factory.mktemp("first")
    save_autoencoder(folder / "autoencoder" / "model")
    return train_denoiser(short_denoiser(folder, **DENOISER, seed=1))


def with_dropout(model: Path, copy: Path) -> str:
    """Copy a saved denoiser, with dropout turned on."""
    path = shutil.copytree(model, copy) / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"dropout": 0.3}))
    return str(copy)


def test_validation_does_not_change_a_training_with_dropout(denoiser_config, first, tmp_path):
    save_autoencoder(tmp_path / "autoencoder" / "model")
    config = denoiser_config(**DENOISER, seed=1)
    # The first step has a learning rate of 0, so the weights do not change.
    config = replace(config, pretrained_unet=str(first.model_dir), lr_warmup_ratio=0.5)
    train_denoiser(replace(config, output_dir=str(tmp_path / "without")))
    dropping = with_dropout(first.model_dir, tmp_path / "dropping")
    config = replace(config, pretrained_unet=dropping)
    train_denoiser(replace(config, output_dir=str(tmp_path / "seldom")))
    often = replace(config, validation_steps=1, output_dir=str(tmp_path / "often"))
    losses = train_denoiser(often).validation_losses
    assert losses[1] == first.validation_losses[5], "it is measured without dropout"
    assert_same_weights(tmp_path / "often" / "checkpoint-5", tmp_path / "seldom" / "checkpoint-5")
    assert weights(tmp_path / "seldom" / "model") != weights(tmp_path / "without" / "model")


MIN_SNR = {"objective": "v_prediction", "snr_gamma": 5.0, "zero_terminal_snr": True}


@pytest.mark.parametrize("options", ["min-SNR", "uniform steps, dropout and a warm start"])
def test_a_denoiser_with_options_ends_bit_for_bit_as_an_uninterrupted_one(
    denoiser_config, first, tmp_path, options
):
    save_autoencoder(tmp_path / "autoencoder" / "model")
    config = denoiser_config(**DENOISER)
    if options == "min-SNR":
        config = replace(config, **MIN_SNR)
    else:
        dropping = with_dropout(first.model_dir, tmp_path / "dropping")
        config = replace(config, pretrained_unet=dropping, timestep_sampling="uniform")
    train_denoiser(replace(config, output_dir=str(tmp_path / "whole")))
    resumed = replace(config, resume_from_checkpoint="latest")
    with pytest.raises(SystemExit):
        train_denoiser(resumed, stop=StopAfter(2))
    train_denoiser(resumed)
    for folder in ("model", "checkpoint-5"):
        assert_same_weights(tmp_path / "denoiser" / folder, tmp_path / "whole" / folder)
    last, whole_last = (
        log_lines(tmp_path / name, "validation_loss")[-1] for name in ("denoiser", "whole")
    )
    for name in last.keys() - {"images_per_second"}:
        assert last[name] == whole_last[name], name


def test_settings_that_change_on_resuming_are_printed(denoiser_config, tmp_path, capsys):
    save_autoencoder(tmp_path / "autoencoder" / "model")
    config = denoiser_config(**DENOISER, objective="v_prediction")
    with pytest.raises(SystemExit):
        train_denoiser(config, stop=StopAfter(1))
    train_denoiser(replace(config, **MIN_SNR, resume_from_checkpoint="latest"))
    output = capsys.readouterr().out
    assert "--snr_gamma is 5.0 from now on, None until now" in output
    assert "--zero_terminal_snr is True from now on, False until now" in output


def test_a_resumed_training_keeps_a_measured_value_range_or_says_so(
    autoencoder_config, tmp_path, capsys
):
    (tmp_path / "images").mkdir()
    for number, image in enumerate(np.random.default_rng(0).random((12, 16, 16))):
        np.save(tmp_path / "images" / f"{number}.npy", image.round(3))
    np.save(tmp_path / "images" / "ends.npy", np.linspace(0, 1, 256).reshape(16, 16))
    config = autoencoder_config(
        data=str(tmp_path / "images"), resolution=16, max_train_steps=1, checkpointing_steps=1
    )
    model = train_autoencoder(config).model_dir
    assert load_autoencoder(str(model)).config[IMAGE_VALUES]["range"] == [[0.0, 1.0]]
    np.save(tmp_path / "images" / "bright.npy", np.linspace(0, 9, 256).reshape(16, 16))
    path = tmp_path / "autoencoder" / "config.yaml"
    resume = ["--resume_from_checkpoint", "latest", "--max_train_steps"]
    train_autoencoder(parse_config(AutoencoderConfig, ["--config", str(path), *resume, "2"]))
    assert load_autoencoder(str(model)).config[IMAGE_VALUES]["range"] == [[0.0, 1.0]]
    capsys.readouterr()
    train_autoencoder(replace(config, resume_from_checkpoint="latest", max_train_steps=3))
    assert load_autoencoder(str(model)).config[IMAGE_VALUES]["range"] == [[0.0, 9.0]]
    assert "--value_range is 0.0,9.0 from now on, 0.0,1.0 until now" in capsys.readouterr().out


def test_other_latents_are_refused_and_moved_ones_are_accepted(denoiser_config, tmp_path):
    vae = save_autoencoder(tmp_path / "autoencoder" / "model")
    encode_latents(encode_settings(vae, tmp_path / "cache"))
    encode_latents(encode_settings(vae, tmp_path / "other", max_train_samples=30))
    config = replace(denoiser_config(**DENOISER), max_train_samples=None)
    with pytest.raises(SystemExit):
        train_denoiser(replace(config, latents=str(tmp_path / "cache")), stop=StopAfter(1))
    config = replace(config, resume_from_checkpoint="latest")
    with pytest.raises(UserError, match="the latents are not those that it was trained with"):
        train_denoiser(replace(config, latents=str(tmp_path / "other")))
    (tmp_path / "cache").rename(tmp_path / "moved")
    assert train_denoiser(replace(config, latents=str(tmp_path / "moved"))).steps == 5


def test_more_held_out_images_on_resuming_encode_nothing_again_and_are_told(
    denoiser_config, tmp_path, monkeypatch, caplog
):
    save_autoencoder(tmp_path / "autoencoder" / "model")
    config = denoiser_config(**DENOISER)
    with pytest.raises(SystemExit):
        train_denoiser(config, stop=StopAfter(1))
    monkeypatch.setattr(posteriors, "encode_posteriors", None)
    resumed = replace(config, resume_from_checkpoint="latest", max_validation_samples=6)
    assert train_denoiser(resumed).encoded_images == 0
    folder = Path(config.output_dir) / "latents"
    line = f"--max_validation_samples 6 has no effect: {folder} has 4 held-out images"
    assert [x.getMessage() for x in caplog.records].count(line) == 1


class Launched:
    """A training in a separate process, the leader of a process group."""

    def __init__(self, run: Path, *arguments: str, launcher: Sequence[str] = ()):
        self.run = run
        self.known = self._files()
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        self.process = forked.start([*(launcher or [sys.executable]), *arguments], env=environment)

    def _files(self) -> set[Path]:
        return {*self.run.glob("*checkpoint-*"), *self.run.glob("samples/*.png")}

    def wait_for_new_file(self) -> None:
        """Wait until a picture appears, or a checkpoint is begun or finished."""
        deadline = time.monotonic() + 120
        while not (new := self._files() - self.known):
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline, "it does not train"
            time.sleep(0.002)
        self.known |= new

    def end(self, number: int | None = None) -> tuple[int, str]:
        """Wait for the end, after a signal if one is given; return status and stdout."""
        if number is not None:
            self.process.send_signal(number)
        stdout, stderr = self.process.communicate(timeout=120)
        assert self.process.returncode in (0, 130, 143, -signal.SIGKILL), stderr[-2000:]
        return self.process.returncode, stdout


TRAIN_VAE = Path(__file__).parents[2] / "train_scripts" / "train_vae.py"
# Each kill comes after at most 6 new files, about 9 steps. More kills need a longer training, which
# would otherwise end before the last kill.
STEPS = 24 * max(2, KILLS)
# Apart from signals, only the last step saves a checkpoint.
SAVED_WHEN_STOPPED = ("--checkpointing_steps", str(STEPS), "--validation_steps", "5")


class LaunchedTrainings:
    """A recipe and an uninterrupted run of it."""

    def __init__(self, folder: Path):
        self.recipe, self.whole = folder / "recipe.yaml", folder / "whole"
        settings = {
            **SHORT,
            "output_dir": str(self.whole),
            "block_out_channels": [8, 16],
            "max_train_steps": STEPS,
            "train_batch_size": 4,
            "validation_steps": 25,
            "checkpointing_steps": 3,
            "horizontal_flip": True,
            "discriminator_weight": 0.5,
            "discriminator_start": 5,
            "discriminator_base_channels": 8,
            "discriminator_num_layers": 1,
        }
        self.recipe.write_text(dump_config(AutoencoderConfig(**settings)))
        self.uninterrupted = self.start(self.whole)

    def settings(self, run: Path) -> tuple[str, ...]:
        return ("--config", str(self.recipe), "--output_dir", str(run))

    def start(self, run: Path, *flags: str) -> Launched:
        module = ("-m", "hf_latent", "train-autoencoder")
        return Launched(run, *module, *self.settings(run), *flags)

    def assert_same_end(self, run: Path, folders: list[str]) -> None:
        if self.uninterrupted.process.returncode is None:
            assert self.uninterrupted.end()[0] == 0
        assert "diffusion_pytorch_model.safetensors" in weights(run / "model")
        for folder in folders:
            assert_same_weights(run / folder, self.whole / folder)
        assert not list(run.glob(".*")), "remains of a killed process"
        assert_each_loss_is_logged_once(run)


@pytest.fixture(scope="module")
def launched_trainings(tmp_path_factory):
    trainings = LaunchedTrainings(tmp_path_factory.mktemp("processes"))
    yield trainings
    trainings.uninterrupted.process.kill()


@pytest.mark.slow
def test_an_autoencoder_killed_at_random_moments_ends_bit_for_bit(launched_trainings, tmp_path):
    seed = random.SystemRandom().randrange(10**6)
    print(f"seed of the random moments: {seed}")  # pytest shows it if the test fails
    draw = random.Random(seed)
    run = tmp_path / "killed"
    for _ in range(KILLS):
        training = launched_trainings.start(run, "--resume_from_checkpoint", "latest")
        for _ in range(draw.randint(1, 6)):
            training.wait_for_new_file()
        time.sleep(draw.uniform(0, 0.05))
        assert training.end(signal.SIGKILL)[0] == -signal.SIGKILL
        print(sorted(path.name for path in run.iterdir()))
    last = launched_trainings.start(run, "--resume_from_checkpoint", "latest")
    assert last.end()[0] == 0
    launched_trainings.assert_same_end(
        run, ["model", f"checkpoint-{STEPS - 3}", f"checkpoint-{STEPS}"]
    )
    assert figures(run) == figures(launched_trainings.whole)


@pytest.mark.slow
def test_sigterm_and_ctrl_c_save_a_checkpoint_and_say_how_to_resume(launched_trainings, tmp_path):
    run = tmp_path / "stopped"
    training = Launched(
        run,
        str(TRAIN_VAE),
        *launched_trainings.settings(run),
        *SAVED_WHEN_STOPPED,
        *("--dataloader_num_workers", "1"),
    )
    stopped_at = [0]
    # As on a cluster, the reading process gets SIGTERM too.
    for send, number in ((os.killpg, signal.SIGTERM), (os.kill, signal.SIGINT)):
        training.wait_for_new_file()
        send(training.process.pid, number)
        status, stdout = training.end()
        assert status == 128 + number
        steps = sorted(int(path.name.split("-")[1]) for path in run.glob("checkpoint-*"))
        assert steps[:-1] == stopped_at[1:]
        assert stopped_at[-1] < steps[-1] < STEPS
        stopped_at.append(steps[-1])
        line = stdout.splitlines()[-1]
        said, command = line.split("; to resume: python ")
        assert said == "stopped after saving a checkpoint"
        config = str(run / "config.yaml")
        assert shlex.split(command) == [
            "-m",
            *("hf_latent", "train-autoencoder"),
            "--config",
            config,
            "--resume_from_checkpoint",
            "latest",
        ]
        training = Launched(run, *shlex.split(command), "--dataloader_num_workers", "0")
    status, stdout = training.end()
    assert status == 0
    assert f"resumed from {run / 'checkpoint-'}{stopped_at[-1]}\n" in stdout
    launched_trainings.assert_same_end(run, ["model", f"checkpoint-{STEPS}"])


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a training outlives its launcher")
def test_a_training_saves_a_checkpoint_if_its_launcher_ends(launched_trainings, tmp_path):
    run = tmp_path / "launched"
    one = ("--num_processes", "1", "--num_machines", "1", "--cpu")
    plain = ("--mixed_precision", "no", "--dynamo_backend", "no")
    launcher = Launched(
        run,
        str(TRAIN_VAE),
        *launched_trainings.settings(run),
        *SAVED_WHEN_STOPPED,
        launcher=(str(Path(sys.executable).with_name("accelerate")), "launch", *one, *plain),
    )
    launcher.wait_for_new_file()
    launcher.process.terminate()
    assert launcher.process.wait(timeout=120) == -signal.SIGTERM
    # The training has the other end of this pipe, which closes when the training ends.
    stdout, stderr = launcher.process.communicate(timeout=120)
    assert "stopped after saving a checkpoint; to resume: python -m" in stdout, stderr[-2000:]
    (checkpoint,) = run.glob("checkpoint-*")
    assert 0 < int(checkpoint.name.split("-")[1]) < STEPS
    assert (checkpoint / "state.json").exists()
    assert not (run / "model").exists()
