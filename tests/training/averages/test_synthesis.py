import copy
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_latent import cli
from hf_latent.command import parse_config
from hf_latent.errors import UserError
from hf_latent.hub.card.facts import read_model_facts
from hf_latent.hub.card.render import render_model_card
from hf_latent.hub.card.signature import is_unedited
from hf_latent.models.frozen import hash_weights
from hf_latent.models.presets import DENOISERS
from hf_latent.pipeline import LatentDiffusionPipeline
from hf_latent.training.averages.power_function import PowerFunctionEMA, gamma_from_sigma_rel
from hf_latent.training.averages.snapshots import METADATA_KEY, Snapshot, list_snapshots
from hf_latent.training.averages.synthesis import (
    Synthesis,
    inner_products,
    plan_synthesis,
    relative_residual,
    sum_snapshots,
    synthesis_weights,
)
from hf_latent.training.averages.synthesize import SynthesizeEmaConfig, synthesize_ema
from hf_latent.training.denoiser import train_denoiser
from hf_latent.training.denoiser_config import DenoiserConfig
from tests.conftest import NARROW_DENOISER
from tests.training.conftest import SHORT as SHORT_TRAINING
from tests.training.encoding import save_autoencoder

SHORT, LONG = gamma_from_sigma_rel(0.05), gamma_from_sigma_rel(0.10)
EVERY, STEPS = 25, 300
PROFILES = [(t, gamma) for t in range(EVERY, STEPS + 1, EVERY) for gamma in (SHORT, LONG)]


def integrate(first, second) -> float:
    """Integrate the product of two profiles on a grid up to the earlier end."""
    end = min(first[0], second[0])
    tau = np.linspace(0, end, 200_001)
    values = [(gamma + 1) * (tau / t) ** gamma / t for t, gamma in (first, second)]
    return np.trapezoid(values[0] * values[1], tau)


def test_inner_products_are_the_integrals():
    first, second = [(100, SHORT), (250, LONG), (300, 2.0)], [(100, SHORT), (180, LONG)]
    found = inner_products(first, second)
    assert found.shape == (3, 2) and found.dtype == np.float64
    for i, one in enumerate(first):
        for j, other in enumerate(second):
            assert found[i, j] == pytest.approx(integrate(one, other), rel=1e-6), (one, other)


@pytest.mark.parametrize("place", [0, 7, len(PROFILES) - 1])
def test_the_average_of_a_snapshot_is_the_snapshot(place):
    weights = synthesis_weights(PROFILES, PROFILES[place])
    assert weights.dtype == np.float64
    np.testing.assert_allclose(weights, np.eye(len(PROFILES))[place], rtol=0, atol=1e-6)
    assert relative_residual(PROFILES, weights, PROFILES[place]) < 1e-6


@pytest.mark.parametrize("sigma_rel", [0.04, 0.07, 0.15, 0.2])
def test_the_residual_is_the_distance_of_the_profiles(sigma_rel):
    target = (STEPS, gamma_from_sigma_rel(sigma_rel))
    weights = synthesis_weights(PROFILES, target)
    tau = np.linspace(0, STEPS, 1_200_001)[:-1]
    tau += tau[1] / 2  # between the jumps

    def profile(t, gamma):
        return np.where(tau < t, (gamma + 1) * (tau / t) ** gamma / t, 0)

    wanted = profile(*target)
    rest = wanted - sum(w * profile(*one) for w, one in zip(weights, PROFILES, strict=True))
    expected = np.sqrt(np.mean(rest**2) / np.mean(wanted**2))
    assert relative_residual(PROFILES, weights, target) == pytest.approx(expected, rel=1e-3)
    # No other weights of the same sum are closer.
    assert weights.sum() == pytest.approx(1, abs=1e-12)
    for i in range(len(PROFILES)):
        for change in (1e-2, -1e-2):
            other = weights.copy()
            other[i] += change
            other[i - 1] -= change
            assert relative_residual(PROFILES, other, target) > expected


def save_snapshot(folder: Path, step: int, sigma_rel: float, tensors, training="a") -> Snapshot:
    path = folder / f"step-{step:06d}-sigma_rel-{sigma_rel:.3f}.safetensors"
    told = json.dumps({"step": step, "sigma_rel": sigma_rel, "training": training})
    save_file(tensors, path, {METADATA_KEY: told})
    return Snapshot(path, step, sigma_rel, training)


@pytest.mark.parametrize("sigma_rel", [0.07, 0.15])
def test_a_synthesized_average_equals_the_tracked_one(tmp_path, sigma_rel):
    torch.manual_seed(0)
    model = torch.nn.Linear(40, 25)
    averages = {x: PowerFunctionEMA(model.parameters(), x) for x in (0.05, 0.10, sigma_rel)}
    names = [name for name, _ in model.named_parameters()]
    snapshots = []
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 100  # most of the weights is common to all steps
    for step in range(1, STEPS + 1):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += torch.randn_like(parameter)
        for average in averages.values():
            average.step(model.parameters())
        if step % EVERY == 0:
            for kept in (0.05, 0.10):
                tensors = dict(zip(names, averages[kept].shadow_params, strict=True))
                snapshots.append(save_snapshot(tmp_path, step, kept, tensors))
    plan = plan_synthesis(snapshots, sigma_rel, STEPS)
    found = sum_snapshots(plan, {k: v.shape for k, v in model.named_parameters()})
    expected = averages[sigma_rel].shadow_params[0]
    assert found["weight"].dtype == torch.float32

    def error(tensor):
        return (tensor - expected).square().mean().sqrt().item()

    nearest = error(averages[0.10].shadow_params[0])
    assert nearest > 1, "the averages differ by more than one step"
    assert error(found["weight"]) < 0.01
    assert error(found["weight"]) < nearest / 100


@pytest.mark.parametrize("sigma_rel", [0.03, 0.05, 0.12, 0.25])
def test_sixteen_snapshots_of_each_suffice_for_the_documented_lengths(sigma_rel):
    snapshots = [Snapshot(Path("x"), 500 * t, s, "a") for t in range(1, 17) for s in (0.05, 0.10)]
    assert plan_synthesis(snapshots, sigma_rel, 8000).relative_residual < 0.1


@pytest.mark.parametrize("sigma_rel", [0.03, 0.07, 0.2])
def test_with_hundreds_of_snapshots_the_weights_stay_small(sigma_rel):
    snapshots = [Snapshot(Path("x"), 30 * t, s, "a") for t in range(1, 301) for s in (0.05, 0.10)]
    plan = plan_synthesis(snapshots, sigma_rel, 9000)
    assert plan.relative_residual < 1e-3
    assert abs(plan.weights).sum() < 20  # the factor by which rounding errors grow


def test_snapshots_after_the_end_are_not_used():
    snapshots = [Snapshot(Path("x"), t, s, "a") for t in (10, 20, 30) for s in (0.05, 0.10)]
    plan = plan_synthesis(snapshots, 0.08, 20)
    assert plan.snapshots == snapshots[:4] and plan.weights.shape == (4,)
    assert plan.relative_residual < 0.05


@pytest.mark.parametrize(
    ("sigma_rel", "step", "message"),
    [
        (0.08, 9, "^--step 9 has fewer than 2 snapshots up to it: choose a later one"),
        (0.08, 26, r"^--sigma_rel 0\.08 --step 26 cannot be made .* choose --step 20,"),
        (0.005, 30, r"^--sigma_rel 0\.005 --step 30 cannot be made .* or another --sigma_rel"),
        (1e-200, 30, "cannot be made from these 6 snapshots"),
        (0.3, 30, "^--sigma_rel must be above 0 and below 0.28"),
    ],
)
def test_an_average_that_the_snapshots_cannot_approximate_is_refused(sigma_rel, step, message):
    snapshots = [Snapshot(Path("x"), t, s, "a") for t in (10, 20, 30) for s in (0.05, 0.10)]
    with pytest.raises(UserError, match=message) as raised:
        plan_synthesis(snapshots, sigma_rel, step)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "tensors", [{"a": torch.zeros(2)}, {"a": torch.zeros(3), "b": torch.zeros(1)}, {}]
)
def test_a_snapshot_of_another_model_is_named(tmp_path, tensors):
    snapshot = save_snapshot(tmp_path, 1, 0.1, tensors)
    with pytest.raises(UserError, match=r"sigma_rel-0\.100.* \(. differ, [ab] first\)") as raised:
        sum_snapshots(Synthesis([snapshot], np.ones(1), 0.0), {"a": torch.Size([3])})
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_snapshot_that_is_not_finite_is_named(tmp_path, value):
    snapshot = save_snapshot(tmp_path, 1, 0.1, {"a": torch.tensor([1.0, value])})
    with pytest.raises(UserError, match=r"sigma_rel-0\.100.* not finite, a first: its training"):
        sum_snapshots(Synthesis([snapshot], np.ones(1), 0.0), {"a": torch.Size([2])})


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """The folder of a training of 6 steps with 3 snapshots of each average."""
    folder = tmp_path_factory.mktemp("trained")
    vae = save_autoencoder(folder / "vae")
    settings = SHORT_TRAINING | {"max_train_steps": 6, "ema_snapshot_steps": 2}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DENOISERS, "tiny", DENOISERS["tiny"] | NARROW_DENOISER)
        run = str(folder / "run")
        train_denoiser(DenoiserConfig(output_dir=run, vae=vae, save_dtype="float16", **settings))
    return folder / "run"


@pytest.fixture
def run(trained, tmp_path) -> Path:
    """A copy of it, for tests that change it."""
    return shutil.copytree(trained, tmp_path / "run", ignore=shutil.ignore_patterns("latents"))


@pytest.fixture
def config(run, tmp_path):
    return SynthesizeEmaConfig(run=str(run), sigma_rel=0.08, output_dir=str(tmp_path / "new/one"))


def test_the_command_saves_a_complete_model(run, config, tmp_path, capsys):
    given = ["--run", str(run), "--sigma_rel", "0.08", "--output_dir", config.output_dir]
    cli.main(["synthesize-ema", *given])
    folder = Path(config.output_dir)
    assert f"at step 6, of 6 snapshots: {folder} (relative residual" in capsys.readouterr().out
    plan = plan_synthesis(list_snapshots(run), 0.08, 6)
    pipeline = LatentDiffusionPipeline.from_pretrained(folder)
    shapes = {name: x.shape for name, x in pipeline.unet.named_parameters()}
    saved = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    for name, tensor in sum_snapshots(plan, shapes).items():
        assert torch.equal(saved[name], tensor.half()), "in the dtype of the run's model"
    before = json.loads((run / "model" / "training.json").read_text())
    report = json.loads((folder / "training.json").read_text())
    assert {k for k in before | report if before.get(k) != report.get(k)} == {
        *("held_out_loss", "held_out_images", "ema_decay"),
        *("unet_weights_sha256", "ema_sigma_rel", "ema_relative_residual"),
    }
    assert before.keys() - report.keys() == {"held_out_loss", "held_out_images", "ema_decay"}
    assert report["unet_weights_sha256"] == hash_weights(pipeline.unet)
    assert report["vae_weights_sha256"] == hash_weights(pipeline.vae)
    assert report["ema_sigma_rel"] == 0.08
    assert report["ema_relative_residual"] == plan.relative_residual
    assert (folder / "config.yaml").read_bytes() == (run / "model" / "config.yaml").read_bytes()
    again = ["--config", str(folder / "config.yaml"), "--output_dir", str(tmp_path / "x")]
    assert parse_config(DenoiserConfig, again).ema_snapshot_steps == 2
    card = (folder / "README.md").read_text()
    assert is_unedited(card) and card == render_model_card(folder)
    assert "6 steps of 8 images" in card and "samples.png" not in card
    assert "| weights: power-function average, relative length | 0.08 |" in card
    assert not (folder / "samples.png").exists(), "it shows other weights"
    assert read_model_facts(folder).training == {k: v for k, v in report.items() if v is not None}
    images = pipeline(class_labels=[0], num_inference_steps=1, output_type="pt").images
    assert torch.isfinite(images).all()
    assert [path.name for path in folder.parent.iterdir()] == ["one"]


def test_an_average_with_an_earlier_end_has_no_figures_of_later_steps(run, config):
    folder = synthesize_ema(replace(config, step=4))
    report = json.loads((folder / "training.json").read_text())
    assert report["steps"] == 4
    assert not report.keys() & {"train_loss", "seconds", "images_seen", "held_out_loss"}
    assert "6 steps of" not in (folder / "README.md").read_text()


def test_an_average_keeps_the_guide_of_the_training(run, config):
    model = LatentDiffusionPipeline.from_pretrained(run / "model")
    guide = copy.deepcopy(model.unet)
    guide.conv_in.bias.data += 1
    model.guide_unet = guide
    model.save_pretrained(run / "model")
    average = LatentDiffusionPipeline.from_pretrained(synthesize_ema(config))
    assert hash_weights(average.guide_unet) == hash_weights(guide.half().float())
    assert hash_weights(average.unet) != hash_weights(model.unet)


def test_a_folder_is_replaced_on_request(run, config):
    folder = synthesize_ema(config)
    first = (folder / "training.json").read_text()
    with pytest.raises(UserError, match="has files in it"):
        synthesize_ema(replace(config, sigma_rel=0.06))
    assert (folder / "training.json").read_text() == first
    synthesize_ema(replace(config, sigma_rel=0.06, overwrite_output_dir=True))
    assert json.loads((folder / "training.json").read_text())["ema_sigma_rel"] == 0.06


@pytest.mark.parametrize("name", ["", "model", "ema_snapshots", ".."])
def test_the_files_to_read_are_never_replaced(run, config, name):
    over = replace(config, output_dir=str(run / name), overwrite_output_dir=True)
    with pytest.raises(UserError, match=r"holds --run .*, which is read: choose another"):
        synthesize_ema(over)


def remove_model(run: Path) -> None:
    shutil.rmtree(run / "model")


def remove_snapshots(run: Path) -> None:
    shutil.rmtree(run / "ema_snapshots")


def leave_one_snapshot(run: Path) -> None:
    for path in sorted((run / "ema_snapshots").iterdir())[1:]:
        path.unlink()


def remove_report(run: Path) -> None:
    (run / "model" / "training.json").unlink()


def truncate_snapshot(run: Path) -> None:
    path = min((run / "ema_snapshots").iterdir())
    path.write_bytes(path.read_bytes()[:1000])


def put_another_file_there(run: Path) -> None:
    save_file({"a": torch.zeros(1)}, run / "ema_snapshots" / "step-000001-mine.safetensors")


def copy_a_snapshot(run: Path) -> None:
    path = min((run / "ema_snapshots").iterdir())
    shutil.copy(path, path.with_name("step-000003-sigma_rel-0.050.safetensors"))


def put_another_models_snapshot_there(run: Path) -> None:
    ours = list_snapshots(run)[0].training
    save_snapshot(run / "ema_snapshots", 1, 0.05, {"a": torch.zeros(1)}, ours)


def put_another_trainings_snapshot_there(run: Path) -> None:
    first = list_snapshots(run)[0]
    save_snapshot(run / "ema_snapshots", 1, 0.05, load_file(first.path), "another")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (remove_model, "has no model yet: finish its training with"),
        (remove_snapshots, "has no ema_snapshots: train with --ema_snapshot_steps"),
        (leave_one_snapshot, "has fewer than 2 snapshots up to it"),
        (remove_report, "lacks the training.json or the config.yaml of these weights"),
        (truncate_snapshot, r"step-000002-sigma_rel-0.050.safetensors is damaged or no snapshot"),
        (
            copy_a_snapshot,
            "000003-.* its content is that of step-000002-sigma_rel-0.050.safetensors",
        ),
        (put_another_file_there, "step-000001-mine.safetensors is damaged or no snapshot"),
        (put_another_models_snapshot_there, "has other weights than the model of its run"),
        (
            put_another_trainings_snapshot_there,
            "000001.* is of another training than .*model: fin",
        ),
    ],
)
def test_a_damaged_run_is_refused_in_one_line(run, config, spoil, message):
    spoil(run)
    with pytest.raises(UserError, match=message) as raised:
        synthesize_ema(config)
    assert "\n" not in str(raised.value)
    assert not Path(config.output_dir).exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"step": 7}, "^--step 7 is after the last snapshot: choose 6 or less"),
        ({"step": 0}, "^--step must be a whole number above 0, not 0"),
        ({"sigma_rel": 0.4}, "^--sigma_rel must be above 0 and below 0.28, not 0.4"),
        ({"sigma_rel": 0.001}, "^--sigma_rel 0.001 --step 6 cannot be made"),
        ({"run": "/nowhere"}, "^--run /nowhere has no ema_snapshots"),
    ],
)
def test_settings_that_cannot_work_are_refused_in_one_line(config, changes, message):
    with pytest.raises(UserError, match=message) as raised:
        synthesize_ema(replace(config, **changes))
    assert "\n" not in str(raised.value)
    assert not Path(config.output_dir).parent.exists()
