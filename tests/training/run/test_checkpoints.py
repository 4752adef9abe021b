import json
import random
import shutil
import time
from dataclasses import asdict
from functools import partialmethod
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from diffusers import AutoencoderKL
from safetensors.torch import load_file

from hf_latent.errors import SharedError, UserError
from hf_latent.models.frozen import FrozenWeights
from hf_latent.training.autoencoder_config import AutoencoderConfig
from hf_latent.training.run.accelerator import create_optimizer
from hf_latent.training.run.checkpoints import TrainingState, resume_training, save_checkpoint
from hf_latent.training.run.ema import create_ema
from hf_latent.training.run.folder import find_checkpoint, list_checkpoints, remove_checkpoint
from hf_latent.training.start.autoencoder import TrainableAutoencoder
from tests.conftest import make_autoencoder


def save(config: AutoencoderConfig, state: TrainingState, step: int) -> None:
    limit = config.checkpoints_total_limit
    save_checkpoint(Path(config.output_dir), step, state, asdict(config), limit, Accelerator())


def latest(config: AutoencoderConfig) -> Path | None:
    return find_checkpoint(Path(config.output_dir), "latest")


def resume(config: AutoencoderConfig, state: TrainingState) -> None:
    checkpoint = find_checkpoint(Path(config.output_dir), config.resume_from_checkpoint)
    resume_training(checkpoint, state, asdict(config), Accelerator())


class Steps:
    """A counter with a state."""

    done = 0

    def state(self):
        return {"done": self.done}

    def load_state(self, state):
        self.done = state["done"]


@pytest.fixture
def config(tmp_path):
    return lambda **changes: AutoencoderConfig(**{"output_dir": str(tmp_path), **changes})


def start(config: AutoencoderConfig, decoder_only: bool = False, **changes) -> TrainingState:
    vae = make_autoencoder(**changes).train()
    if decoder_only:
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)
    optimizer = create_optimizer(vae, config.learning_rate, 1e-2, (0.9, 0.99))
    ema = create_ema(vae, config.ema_decay, torch.device("cpu"))
    return TrainingState(
        {"vae": vae}, {"vae": optimizer}, {"vae": {"ema": ema}}, {"steps": Steps()}
    )


def train(state: TrainingState, steps: int) -> TrainingState:
    vae, optimizer, steps_done = state.models["vae"], state.optimizers["vae"], state.others["steps"]
    for _ in range(steps):
        generator = torch.Generator().manual_seed(steps_done.done)
        images = torch.rand(2, 1, 16, 16, generator=generator)
        noise = torch.randn(2, 4, 4, 4, generator=generator)
        reconstructions, *_ = TrainableAutoencoder(vae)(images, noise)
        (reconstructions - images).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        state.averages["vae"]["ema"].step(vae.parameters())
        steps_done.done += 1
    return state


def assert_equal(found: TrainingState, expected: TrainingState) -> None:
    assert found.others["steps"].done == expected.others["steps"].done
    weights = expected.models["vae"].state_dict()
    assert found.models["vae"].state_dict().keys() == weights.keys()
    for name, weight in found.models["vae"].state_dict().items():
        assert torch.equal(weight, weights[name]), name
    averages = [state.averages["vae"]["ema"] for state in (found, expected)]
    assert averages[0].optimization_step == averages[1].optimization_step
    for one, other in zip(averages[0].shadow_params, averages[1].shadow_params, strict=True):
        assert torch.equal(one, other)
    optimizers = [state.optimizers["vae"].state_dict() for state in (found, expected)]
    assert optimizers[0]["param_groups"] == optimizers[1]["param_groups"]
    assert optimizers[0]["state"].keys() == optimizers[1]["state"].keys()
    for index, moments in optimizers[1]["state"].items():
        assert optimizers[0]["state"][index].keys() == moments.keys()
        for name, moment in moments.items():
            assert torch.equal(optimizers[0]["state"][index][name], moment), (index, name)


def spoil(state: TrainingState) -> TrainingState:
    """Overwrite all that a checkpoint restores."""
    with torch.no_grad():
        for parameter in state.models["vae"].parameters():
            parameter.fill_(9)
        for shadow in state.averages["vae"]["ema"].shadow_params:
            shadow.fill_(8)
    return state


@pytest.mark.parametrize("decoder_only", [False, True])
@pytest.mark.parametrize("steps", [0, 2])
def test_a_resumed_training_is_equal_bit_for_bit(config, steps, decoder_only):
    uninterrupted = train(start(config(), decoder_only), steps)
    save(config(), uninterrupted, steps)
    loaded = spoil(start(config(), decoder_only))
    resume(config(resume_from_checkpoint="latest"), loaded)
    assert_equal(loaded, uninterrupted)
    assert_equal(train(loaded, 3), train(uninterrupted, 3))
    moments = loaded.optimizers["vae"].state_dict()["state"]
    trained = [p.requires_grad for p in loaded.models["vae"].parameters()]
    assert sorted(moments) == [index for index, wanted in enumerate(trained) if wanted]


def test_a_model_larger_than_a_shard_is_saved_in_one_file(config, tmp_path, monkeypatch):
    # Diffusers' own size is 10 GB.
    sharded = partialmethod(AutoencoderKL.save_pretrained, max_shard_size="10KB")
    monkeypatch.setattr(AutoencoderKL, "save_pretrained", sharded)
    uninterrupted = train(start(config()), 1)
    uninterrupted.models["vae"].save_pretrained(tmp_path / "in_shards")
    assert len(list((tmp_path / "in_shards").glob("*-of-*.safetensors"))) > 1
    save(config(), uninterrupted, 1)
    loaded = spoil(start(config()))
    resume(config(resume_from_checkpoint="latest"), loaded)
    assert_equal(loaded, uninterrupted)


def test_a_checkpoint_is_safetensors_and_json(config, tmp_path):
    state = train(start(config()), 1)
    save(config(), state, 1)
    files = [path for path in (tmp_path / "checkpoint-1").rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".safetensors", ".json"}
    for path in files:
        load_file(path) if path.suffix == ".safetensors" else json.loads(path.read_text())
    assert sorted(path.name for path in (tmp_path / "checkpoint-1").iterdir()) == [
        "state.json",
        "vae",
        "vae_ema",
        "vae_optimizer.safetensors",
    ]
    values = json.loads((tmp_path / "checkpoint-1" / "state.json").read_text())
    assert values["step"] == 1
    assert values["average_steps"] == {"vae": 1}, "as in older checkpoints"
    assert values["settings"]["learning_rate"] == config().learning_rate


def test_saving_does_not_change_the_training(config):
    state, untouched = train(start(config()), 2), train(start(config()), 2)
    save(config(), state, 2)
    assert_equal(state, untouched)


def test_the_limit_spares_the_checkpoint_before_the_decay(config, tmp_path):
    state = start(config())
    for step in (1, 2, 3, 4):
        save_checkpoint(tmp_path, step, state, {}, 1, Accelerator(), spared=2)
    assert [x.name for x in list_checkpoints(tmp_path)] == ["checkpoint-2", "checkpoint-4"]


@pytest.mark.parametrize(("limit", "kept"), [(1, [10]), (2, [9, 10]), (None, [1, 2, 9, 10])])
def test_the_limit_keeps_the_newest(config, tmp_path, limit, kept):
    state = start(config())
    for step in (1, 2, 9, 10):
        save(config(checkpoints_total_limit=limit), state, step)
    expected = [tmp_path / f"checkpoint-{step}" for step in kept]
    assert list_checkpoints(tmp_path) == expected
    assert sorted(tmp_path.iterdir()) == sorted(expected)


def test_latest_is_the_checkpoint_saved_last_also_after_going_back(config, tmp_path):
    state = start(config())
    for step in (1, 3, 4):
        save(config(checkpoints_total_limit=None), state, step)
    back = config(resume_from_checkpoint=str(tmp_path / "checkpoint-1"), checkpoints_total_limit=2)
    resume(back, state)
    kept = {2: [4, 2], 3: [2, 3], 4: [3, 4]}
    for step in (2, 3, 4):
        save(back, state, step)
        expected = [tmp_path / f"checkpoint-{one}" for one in kept[step]]
        assert list_checkpoints(tmp_path) == expected
        assert sorted(tmp_path.iterdir()) == sorted(expected)
        assert latest(config()) == tmp_path / f"checkpoint-{step}"


def test_a_clock_that_is_set_back_does_not_make_a_new_checkpoint_old(config, tmp_path, monkeypatch):
    state, now = start(config()), time.time()
    for step in (1, 2, 3, 4):
        monkeypatch.setattr(time, "time", lambda step=step: now - 3600 * step)
        save(config(checkpoints_total_limit=2), state, step)
        assert latest(config()) == tmp_path / f"checkpoint-{step}"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-3", "checkpoint-4"]


def test_checkpoints_of_an_older_version_resume_and_are_older(config, tmp_path):
    trained = train(start(config()), 1)
    for step in (5, 9):
        save(config(checkpoints_total_limit=None), trained, step)
        path = tmp_path / f"checkpoint-{step}" / "state.json"
        values = json.loads(path.read_text())
        for key in ("order", "files", "sha256"):
            del values[key]
        path.write_text(json.dumps(values | {"saved_at": 1e9 - step}))
    assert latest(config()) == tmp_path / "checkpoint-5"
    loaded = spoil(start(config()))
    resume(config(resume_from_checkpoint="latest"), loaded)
    assert_equal(loaded, trained)
    save(config(checkpoints_total_limit=2), trained, 2)
    assert latest(config()) == tmp_path / "checkpoint-2"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-2", "checkpoint-5"]


def test_removing_a_checkpoint_leaves_the_files_of_others(config, tmp_path):
    state = start(config())
    for step in (1, 2):
        save(config(checkpoints_total_limit=1), state, step)
        (tmp_path / f"checkpoint-{step}" / "vae" / "notes.txt").write_text("mine")
    save(config(checkpoints_total_limit=1), state, 3)
    left = [path for path in (tmp_path / "checkpoint-2").rglob("*") if path.is_file()]
    assert left == [tmp_path / "checkpoint-2" / "vae" / "notes.txt"]
    assert list_checkpoints(tmp_path) == [tmp_path / "checkpoint-3"]
    save(config(checkpoints_total_limit=1), state, 2)
    assert (tmp_path / "checkpoint-2" / "vae" / "notes.txt").read_text() == "mine"
    assert latest(config()) == tmp_path / "checkpoint-2"


def test_a_half_removed_checkpoint_is_no_checkpoint(config, tmp_path, monkeypatch):
    state = start(config())
    for step in (1, 2):
        save(config(), state, step)

    def die(path):
        (path / "vae_optimizer.safetensors").unlink()
        raise OSError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", die)
        with pytest.raises(OSError, match="killed"):
            remove_checkpoint(tmp_path / "checkpoint-2")
    assert list_checkpoints(tmp_path) == [tmp_path / "checkpoint-1"]
    assert len(list(tmp_path.iterdir())) == 2, "the killed removal leaves a part"
    save(config(), state, 3)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["checkpoint-1", "checkpoint-3"], "the next checkpoint replaces the rest"


def test_a_half_written_checkpoint_is_no_checkpoint(config, tmp_path):
    state = train(start(config()), 1)
    save(config(), state, 1)
    for name in (".checkpoint.tmp", "checkpoint-7", "checkpoint-x"):
        (tmp_path / name).mkdir()
    for name in (".checkpoint.tmp", "checkpoint-x"):
        (tmp_path / name / "state.json").write_text("{}")
    (tmp_path / "checkpoint-7" / "vae_optimizer.safetensors").write_bytes(b"")
    assert list_checkpoints(tmp_path) == [tmp_path / "checkpoint-1"]
    loaded = spoil(start(config()))
    resume(config(resume_from_checkpoint="latest"), loaded)
    assert_equal(loaded, state)
    save(config(), state, 7)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoint-1",
        "checkpoint-7",
        "checkpoint-x",
    ]
    assert latest(config()) == tmp_path / "checkpoint-7"


def test_a_failed_save_leaves_no_checkpoint(config, tmp_path, monkeypatch):
    state = start(config())

    def fill_the_disk(*arguments):
        raise OSError("No space left on device")

    monkeypatch.setattr("hf_latent.training.run.checkpoints.save_file", fill_the_disk)
    with pytest.raises(SharedError, match="No space left"):
        save(config(), state, 3)
    assert list(tmp_path.iterdir()) == []


def test_latest_without_checkpoints_changes_nothing(config):
    state, untouched = start(config()), start(config())
    resume(config(resume_from_checkpoint="latest"), state)
    assert_equal(state, untouched)
    assert find_checkpoint(Path(config().output_dir), None) is None


def test_a_named_checkpoint_is_loaded(config, tmp_path, capsys):
    state = start(config())
    for step in (1, 2):
        save(config(), train(state, 1), step)
    loaded = start(config())
    name = str(tmp_path / "checkpoint-1")
    resume(config(resume_from_checkpoint=name), loaded)
    assert loaded.others["steps"].done == 1
    assert capsys.readouterr().out == f"resumed from {name}\n"


@pytest.mark.parametrize("name", ["checkpoint-9", "", "logs"])
def test_a_folder_that_is_no_checkpoint_is_named(config, tmp_path, name):
    (tmp_path / "logs").mkdir()
    asked = str(tmp_path / name)
    with pytest.raises(UserError, match=f"^--resume_from_checkpoint {asked} is no checkpoint"):
        resume(config(resume_from_checkpoint=asked), start(config()))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


FILES = [
    "vae/diffusion_pytorch_model.safetensors",
    "vae_ema/diffusion_pytorch_model.safetensors",
    "vae_optimizer.safetensors",
    "state.json",
]


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", [truncate, Path.unlink])
def test_a_damaged_checkpoint_is_named(config, tmp_path, file, damage):
    save(config(), train(start(config()), 1), 1)
    damage(tmp_path / "checkpoint-1" / file)
    asked = str(tmp_path / "checkpoint-1")
    with pytest.raises(UserError, match=asked) as raised:
        resume(config(resume_from_checkpoint=asked), start(config()))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", [*FILES, "vae/config.json"])
def test_one_flipped_bit_is_found(config, tmp_path, name):
    trained = train(start(config()), 1)
    for step in (1, 2):
        save(config(), trained, step)
    path = tmp_path / "checkpoint-2" / name
    content = path.read_bytes()
    random_bits = random.Random(name)
    places = random_bits.sample([x for x in range(len(content)) if content[x] not in b"eE"], 10)
    if name == "state.json":  # of its last line, every bit of the key that says it has checksums
        places += range(content.rindex(b'"sha256"'), content.rindex(b'"sha256"') + 8)
    for place in places:
        flipped = bytearray(content)
        flipped[place] ^= 1 << random_bits.randrange(8)
        path.write_bytes(flipped)
        loaded = start(config())
        with pytest.raises(UserError) as raised:
            resume(config(resume_from_checkpoint=str(tmp_path / "checkpoint-2")), loaded)
        assert str(tmp_path / "checkpoint-2") in str(raised.value)
        assert "\n" not in str(raised.value)
        assert_equal(loaded, start(config()))
        if name != "state.json":
            remedy = f"resume from another one ({tmp_path / 'checkpoint-1'})"
            assert str(raised.value).startswith(f"{path} is damaged, its checksum differs")
            assert str(raised.value).endswith(remedy)


@pytest.mark.parametrize(
    "changes", [{"block_out_channels": (8, 8, 16)}, {"latent_channels": 3}, {"layers_per_block": 2}]
)
def test_a_checkpoint_of_another_architecture_is_named(config, tmp_path, changes):
    save(config(), train(start(config()), 1), 1)
    with pytest.raises(UserError, match=f"^{tmp_path / 'checkpoint-1'} is damaged or of") as raised:
        other = start(config(), **changes)
        resume(config(resume_from_checkpoint="latest"), other)
    assert "\n" not in str(raised.value)


def test_a_checkpoint_of_another_training_is_named(config, tmp_path):
    save(config(), start(config()), 1)
    state = start(config())
    other = TrainingState(
        *({"unet": x["vae"]} for x in (state.models, state.optimizers, state.averages)), {}
    )
    with pytest.raises(UserError, match=str(tmp_path / "checkpoint-1")):
        resume(config(resume_from_checkpoint="latest"), other)


def test_changed_settings_are_printed(config, tmp_path, capsys):
    before = config(learning_rate=1e-3, block_out_channels=[8, 8, 8], checkpointing_steps=5)
    save(before, start(before), 1)
    after = config(
        learning_rate=2e-3,
        block_out_channels=[8, 8, 8],
        checkpointing_steps=7,
        kl_weight=1.0,
        resume_from_checkpoint="latest",
        dataloader_num_workers=2,
    )
    resume(after, start(after))
    assert capsys.readouterr().out.splitlines() == [
        "--learning_rate is 0.002 from now on, 0.001 until now",
        "--kl_weight is 1.0 from now on, 0.0003 until now",
        f"resumed from {tmp_path / 'checkpoint-1'}",
    ]


def test_another_number_of_processes_is_printed(config, tmp_path, capsys):
    save(config(), start(config()), 1)
    path = tmp_path / "checkpoint-1" / "state.json"
    values = json.loads(path.read_text())
    assert values["num_processes"] == 1
    again = config(resume_from_checkpoint="latest")
    resume(again, start(config()))
    assert capsys.readouterr().out == f"resumed from {path.parent}\n"
    older = {"saved_at": 1.0}  # without checksums
    path.write_text(json.dumps(values | older | {"num_processes": 4}))
    resume(again, start(config()))
    changed, resumed = capsys.readouterr().out.splitlines()
    assert changed == "--num_processes is 1 from now on, 4 until now"
    assert resumed == f"resumed from {path.parent}"


def test_another_frozen_autoencoder_is_refused(config, tmp_path):
    frozen = make_autoencoder()
    state = start(config())
    state.others["vae"] = FrozenWeights(frozen)
    save(config(), state, 1)
    again = config(resume_from_checkpoint="latest")
    resume(again, state)
    with torch.no_grad():
        frozen.decoder.conv_out.bias[0] += 1e-6
    state.others["vae"] = FrozenWeights(frozen)
    with pytest.raises(UserError, match="not the one that training started with") as raised:
        resume(again, state)
    assert str(tmp_path / "checkpoint-1") in str(raised.value)
    assert "\n" not in str(raised.value)


# Accelerate has a scaler only on a GPU, but the scaler itself also runs on a CPU.
def test_with_a_gradient_scaler_both_models_step_with_unscaled_gradients(config):
    Accelerator()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    models = {name: torch.nn.Linear(3, 2) for name in ("vae", "discriminator")}
    optimizers = {
        name: AcceleratedOptimizer(create_optimizer(model, 1e-3, 1e-2, (0.9, 0.99)), scaler=scaler)
        for name, model in models.items()
    }
    state = TrainingState(models, optimizers, {}, {})
    accelerator = SimpleNamespace(
        scaler=scaler,
        unscale_gradients=lambda wrapped: [scaler.unscale_(one.optimizer) for one in wrapped],
    )
    for step in (1, 2):
        inputs = torch.randn(4, 3, generator=torch.Generator().manual_seed(step))
        losses = {name: model(inputs).square().mean() for name, model in models.items()}
        expected = {
            name: torch.autograd.grad(loss, list(models[name].parameters()), retain_graph=True)
            for name, loss in losses.items()
        }
        for loss in losses.values():
            scaler.scale(loss).backward()
        norms = state.clip_gradients(list(models), 1e9, accelerator)
        state.step_optimizers(list(models), torch.zeros(()), accelerator)
        for name, norm in zip(models, norms, strict=True):
            together = torch.cat([gradient.flatten() for gradient in expected[name]])
            torch.testing.assert_close(norm, together.norm())
            for parameter, gradient in zip(models[name].parameters(), expected[name], strict=True):
                moments = optimizers[name].optimizer.state[parameter]
                assert moments["step"] == 1, name
                torch.testing.assert_close(moments["exp_avg"], 0.1 * gradient)
                moments["exp_avg"].zero_(), moments["step"].zero_()
            optimizers[name].zero_grad()
