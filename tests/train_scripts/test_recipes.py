"""Every recipe is dry-run on tiny data with its own models; Accelerate reads its own files."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from diffusers.models.modeling_utils import TORCH_INIT_FUNCTIONS
from PIL import Image

from hf_latent.data.images import sources
from hf_latent.evaluation import costs
from hf_latent.models.load import load_autoencoder, released_models
from hf_latent.models.presets import create_autoencoder, create_scheduler
from hf_latent.pipeline import LatentDiffusionPipeline
from hf_latent.training.autoencoder import train_autoencoder
from hf_latent.training.autoencoder_config import AutoencoderConfig
from hf_latent.training.denoiser import train_denoiser
from hf_latent.training.denoiser_config import DenoiserConfig
from hf_latent.training.distillation import distill_denoiser
from hf_latent.training.distillation_config import DistillationConfig
from hf_latent.training.dry_run import estimate
from hf_latent.training.dry_run.estimate import DryRunEnd
from hf_latent.training.run.accelerator import TrainingConfig
from hf_latent.training.start.autoencoder import start_autoencoder
from hf_latent.training.start.denoiser import start_denoiser
from make_micrographs import MicrographsConfig, make_micrographs
from tests.conftest import make_autoencoder, make_denoiser
from tests.small import few_images

SCRIPTS = Path(__file__).parents[2] / "train_scripts"
RECIPES = sorted(
    path.relative_to(SCRIPTS / "recipes").as_posix()
    for path in (SCRIPTS / "recipes").glob("*/*.yaml")
    if path.name.startswith(("vae", "unet", "guide"))
)
# Millions of trained parameters, and the latents of an image.
EXPECTED = {
    "emoji-64/unet-words.yaml": (5.4, [8, 8, 8]),
    "photographs-64/vae.yaml": (0.2, [8, 16, 16]),
    "photographs-64/unet.yaml": (2.8, [8, 16, 16]),
    "photographs-128/unet.yaml": (27.2, [8, 16, 16]),
    "photographs-256/vae.yaml": (20.9, [4, 32, 32]),
    "photographs-256/unet.yaml": (96.4, [4, 32, 32]),
    "decoder-finetune-256/vae.yaml": (49.5, [4, 32, 32]),
    "imagenet-256/unet.yaml": (295.0, [4, 32, 32]),
}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Start all weights from zeros, and measure only the steps of one small image."""
    for name in ("kaiming_uniform_", "uniform_", "normal_", "xavier_uniform_"):
        monkeypatch.setattr(torch.nn.init, name, lambda tensor, *_, **__: tensor.data.zero_())
        # diffusers sets these back whenever it has loaded a model.
        monkeypatch.setitem(TORCH_INIT_FUNCTIONS, name, getattr(torch.nn.init, name))
    monkeypatch.setattr(estimate, "SECONDS", 1e-9)
    monkeypatch.setattr(estimate, "LONGEST_SECONDS", 1e-9)
    monkeypatch.setitem(costs.PRODUCT_SIZES, "cpu", 64)
    for name in ("fashion_mnist", "fashion_mnist_full"):
        monkeypatch.setitem(sources.BUILT_IN, name, few_images)


def write_data(folder: Path, recipe: str, size: int) -> str:
    """Write images like those of a recipe, in two classes."""
    if recipe.startswith("fashion_mnist"):
        return "fashion_mnist"
    if recipe.startswith("micrographs"):
        make_micrographs(MicrographsConfig(output_dir=str(folder), num_images=20))
        return str(folder)
    generator = np.random.default_rng(0)
    channels = 4 if recipe.startswith("emoji") else 3
    for name in ("cats", "dogs"):
        (folder / name).mkdir(parents=True)
        for i in range(5):
            pixels = generator.integers(0, 256, (size, size, channels), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
            (folder / name / f"{i}.txt").write_text("a cat\na picture\n")
    return str(folder)


def save_autoencoder(folder: Path, settings: dict, data: dict) -> str:
    """Save what the denoiser's recipe names: an untrained autoencoder of the same shape."""
    named = settings.get("vae") or settings["pretrained_vae"]
    if named in released_models():
        return named
    vae = create_autoencoder("ldm-f8", 3, 256)  # that of Stable Diffusion
    if named.startswith("runs/"):
        recipe = SCRIPTS / "recipes" / named.split("/")[1] / "vae.yaml"
        own = yaml.safe_load(recipe.read_text()) | data
        channels = {"micrographs-32": 6, "emoji-64": 4}.get(recipe.parent.name, 3)
        shape = (channels, *[own["resolution"]] * 2)
        vae = start_autoencoder(AutoencoderConfig(**own), shape)
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.zero_()
    vae.save_pretrained(folder)
    return str(folder)


def save_guide(folder: Path, settings: dict) -> str:
    """Save an untrained guide of a recipe's shape, for ten classes."""
    config = DenoiserConfig(**settings)
    vae, size = load_autoencoder(config.vae), config.resolution
    start_denoiser(config, vae, (1, size, size), 10).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_is_dry_run(recipe, tmp_path, monkeypatch, capsys):
    settings = yaml.safe_load((SCRIPTS / "recipes" / recipe).read_text())
    size = settings["resolution"]
    if size > 64:  # counted, not computed, and without the gradients, whose code is that of others
        monkeypatch.setattr(estimate, "measure_free_mb", lambda device: 0.0)
        monkeypatch.setattr(torch.Tensor, "backward", lambda *_, **__: None)
    data = {"data": write_data(tmp_path / "data", recipe, size), "dataloader_num_workers": 0}
    places = {"output_dir": str(tmp_path / "run"), "dry_run": True}
    config: type[TrainingConfig] = AutoencoderConfig
    if "vae" in settings or "pretrained_vae" in settings:
        flag = "vae" if "vae" in settings else "pretrained_vae"
        places[flag] = save_autoencoder(tmp_path / "vae", settings, data)
    if "vae" in settings:
        config = DenoiserConfig
    if "guide" in settings:
        guide = yaml.safe_load((SCRIPTS / "recipes" / recipe).with_name("guide.yaml").read_text())
        places["guide"] = save_guide(tmp_path / "guide", guide)
    train = train_denoiser if "vae" in settings else train_autoencoder
    with pytest.raises(DryRunEnd) as end:
        train(config(**settings | data | places))
    figures = end.value.figures
    assert not (tmp_path / "run").exists()
    assert ("guide" in figures["frozen_parameters"]) == ("guide" in settings)
    assert figures["images_per_step"] == settings["train_batch_size"]
    assert ("hours" in figures) == (size <= 64)
    millions, latent_shape = EXPECTED.get(recipe, (None, figures["latent_shape"]))
    assert figures["latent_shape"] == latent_shape
    if millions:
        trained = figures["trained_parameters"]["unet" if train is train_denoiser else "vae"]
        assert trained / 1e6 == pytest.approx(millions, abs=0.06)
    assert f"images {tuple(figures['image_shape'])}, latents" in capsys.readouterr().out


def test_the_recipe_of_a_student_is_dry_run(tmp_path, capsys):
    path = SCRIPTS / "recipes" / "fashion_mnist-32" / "student.yaml"
    settings = yaml.safe_load(path.read_text())
    vae = make_autoencoder(1)
    teacher = LatentDiffusionPipeline(vae, make_denoiser(vae, 10), create_scheduler("flow"))
    teacher.save_pretrained(tmp_path / "teacher")
    places = {"model": str(tmp_path / "teacher"), "output_dir": str(tmp_path / "run")}
    with pytest.raises(DryRunEnd):
        distill_denoiser(DistillationConfig(**settings | places, dry_run=True))
    assert not (tmp_path / "run").exists()
    assert "a step" in capsys.readouterr().out


def test_the_recipes_of_the_page_are_those_that_there_are():
    page = (SCRIPTS.parent / "docs" / "guides" / "recipes.md").read_text()
    for recipe in RECIPES:
        folder, name = recipe.split("/")
        assert f"`{folder}/" in page and f"{name}`" in page, recipe
    folders = {path.name for path in (SCRIPTS / "recipes").iterdir()}
    assert folders == {recipe.split("/")[0] for recipe in RECIPES}


@pytest.mark.parametrize(("name", "machines"), [("8-gpus", 1), ("several-machines", 2)])
def test_accelerate_reads_its_configurations(name, machines):
    config = load_config_from_file(str(SCRIPTS / "launch" / f"{name}.yaml"))
    assert config.distributed_type.value == "MULTI_GPU" and config.mixed_precision == "bf16"
    assert (config.num_machines, config.num_processes) == (machines, 8 * machines)
    readme = (SCRIPTS / "recipes" / "imagenet-256" / "README.md").read_text()
    assert f"--config_file train_scripts/launch/{name}.yaml" in readme
    # The README's global batch is the same in both.
    batch = yaml.safe_load((SCRIPTS / "recipes" / "imagenet-256" / "unet.yaml").read_text())
    assert batch["train_batch_size"] * 8 == 256 and "--train_batch_size 16" in readme
