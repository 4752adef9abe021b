"""A pipeline with a guide is saved, loaded, pushed and exported."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_latent.hub.model_files import model_files
from hf_latent.hub.stock_pipeline import to_stock_pipeline
from hf_latent.models.frozen import hash_weights
from hf_latent.pipeline import LatentDiffusionPipeline
from hf_latent.pipeline.saved_files import MODULES, pipeline_files
from tests import forked
from tests.conftest import draw_latents, make_guide

WEIGHTS = "diffusion_pytorch_model.safetensors"
WITHOUT_GUIDE = {
    *("model_index.json", "scheduler/scheduler_config.json"),
    *(f"{model}/{name}" for model in ("vae", "unet") for name in ("config.json", WEIGHTS)),
    *(f"{name}.py" for name in MODULES),
}
GUIDE = {f"guide_unet/{name}" for name in ("config.json", WEIGHTS)}


def files(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def test_save_and_load_with_a_guide_are_bit_equal(guided, tmp_path):
    guided.save_pretrained(tmp_path)
    assert files(tmp_path) == WITHOUT_GUIDE | GUIDE
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["guide_unet"] == ["diffusers", "UNet2DModel"]
    loaded = LatentDiffusionPipeline.from_pretrained(tmp_path)
    assert hash_weights(loaded.guide_unet) == hash_weights(guided.guide_unet)
    assert all(x.data_ptr() % 64 == 0 for x in loaded.guide_unet.parameters())
    assert torch.equal(draw_latents(loaded, [0, 2]), draw_latents(guided, [0, 2]))
    loaded.save_pretrained(tmp_path / "again")
    again = tmp_path / "again"
    assert files(again) == WITHOUT_GUIDE | GUIDE
    assert not any(str(tmp_path) in path.read_text() for path in again.rglob("*.json"))
    for name in ("model_index.json", f"guide_unet/{WEIGHTS}", f"unet/{WEIGHTS}"):
        assert (again / name).read_bytes() == (tmp_path / name).read_bytes(), name


def test_a_pipeline_without_a_guide_has_the_files_of_older_versions(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    assert files(tmp_path) == WITHOUT_GUIDE
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert list(index) == [
        *("_class_name", "_diffusers_version", "id2label", "objective"),
        *("scheduler", "unet", "vae"),
    ]
    assert LatentDiffusionPipeline.from_pretrained(tmp_path).guide_unet is None
    index["guide_unet"] = [None, None]  # as diffusers itself writes it
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    loaded = LatentDiffusionPipeline.from_pretrained(tmp_path)
    assert torch.equal(draw_latents(loaded, [0, 2]), draw_latents(pipeline, [0, 2]))


@pytest.mark.parametrize("way", ["attribute", "register_modules"])
def test_a_guide_set_later_is_saved_and_a_removed_one_is_not(pipeline, tmp_path, way):
    guide = make_guide(pipeline.vae)
    pipeline.save_pretrained(tmp_path / "without")
    loaded = LatentDiffusionPipeline.from_pretrained(tmp_path / "without")
    if way == "attribute":
        loaded.guide_unet = guide
    else:
        loaded.register_modules(guide_unet=guide)
    assert not torch.equal(draw_latents(loaded, [0, 2]), draw_latents(pipeline, [0, 2]))
    loaded.save_pretrained(tmp_path / "with")
    again = LatentDiffusionPipeline.from_pretrained(tmp_path / "with")
    assert hash_weights(again.guide_unet) == hash_weights(guide)
    assert torch.equal(draw_latents(again, [0, 2]), draw_latents(loaded, [0, 2]))
    again.guide_unet = None
    again.save_pretrained(tmp_path / "without again")
    assert files(tmp_path / "without again") == WITHOUT_GUIDE
    # Saving over a pipeline with a guide keeps its files, but they are not part of the model.
    again.save_pretrained(tmp_path / "with")
    assert LatentDiffusionPipeline.from_pretrained(tmp_path / "with").guide_unet is None
    assert set(pipeline_files(tmp_path / "with", with_card=False)) == WITHOUT_GUIDE


def test_a_guide_given_to_from_pretrained_replaces_the_saved_one(guided, tmp_path):
    guided.save_pretrained(tmp_path)
    assert LatentDiffusionPipeline.from_pretrained(tmp_path, guide_unet=None).guide_unet is None
    (tmp_path / "guide_unet" / WEIGHTS).unlink()
    other = make_guide(guided.vae)
    assert LatentDiffusionPipeline.from_pretrained(tmp_path, guide_unet=other).guide_unet is other
    guided.guide_unet = None
    guided.save_pretrained(tmp_path / "without")
    loaded = LatentDiffusionPipeline.from_pretrained(tmp_path / "without", guide_unet=other)
    assert loaded.guide_unet is other


def test_a_guide_is_loaded_exactly_and_from_safetensors_only(guided, tmp_path):
    guided.save_pretrained(tmp_path)
    path = tmp_path / "guide_unet" / WEIGHTS
    weights = load_file(path)
    save_file(weights | {"other": torch.ones(1)}, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="weights of the saved guide_unet do not fit: unexpected"):
        LatentDiffusionPipeline.from_pretrained(tmp_path)
    weights.pop("conv_in.bias")
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="weights of the saved guide_unet do not fit: missing"):
        LatentDiffusionPipeline.from_pretrained(tmp_path)
    path.unlink()
    torch.save(weights, path.with_suffix(".bin"))
    with pytest.raises(OSError, match="safetensors"):
        LatentDiffusionPipeline.from_pretrained(tmp_path)


def test_a_variant_dtypes_and_shards_of_the_guide(guided, tmp_path):
    guided.save_pretrained(tmp_path, max_shard_size="20KB")
    guided.save_pretrained(tmp_path, variant="copy")
    names = {path.name for path in (tmp_path / "guide_unet").iterdir()}
    assert "diffusion_pytorch_model.copy.safetensors" in names
    assert any("-of-" in name for name in names)
    for variant in (None, "copy"):
        loaded = LatentDiffusionPipeline.from_pretrained(tmp_path, variant=variant)
        assert hash_weights(loaded.guide_unet) == hash_weights(guided.guide_unet)
    half = LatentDiffusionPipeline.from_pretrained(tmp_path, dtype=torch.float16)
    assert half.guide_unet.dtype == half.unet.dtype == torch.float16
    guided.guide_unet.conv_in.bias.data += 1
    guided.save_pretrained(tmp_path)  # leaves no older shards that would be loaded in its place
    loaded = LatentDiffusionPipeline.from_pretrained(tmp_path)
    assert hash_weights(loaded.guide_unet) == hash_weights(guided.guide_unet)


def test_a_guide_is_pushed_to_the_hub(guided, tmp_path):
    guided.save_pretrained(tmp_path)
    assert set(pipeline_files(tmp_path, with_card=False)) == WITHOUT_GUIDE | GUIDE
    entry, _, files = model_files(tmp_path)
    assert {entry, *files} == WITHOUT_GUIDE | GUIDE


def test_an_export_leaves_the_guide_out(guided, unconditional_guided):
    exported = to_stock_pipeline(guided)
    assert set(exported.components) == {"vae", "transformer", "scheduler"}
    exported = to_stock_pipeline(unconditional_guided)
    assert set(exported.components) == {"vqvae", "unet", "scheduler"}


PLAIN = """
import sys, numpy, torch
from diffusers import DiffusionPipeline
torch.set_num_threads(1)
for folder in sys.argv[1:]:
    pipe = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True, use_safetensors=True)
    assert type(pipe).__module__.startswith("diffusers_modules") and "hf_latent" not in sys.modules
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2, 4, 4, 4, generator=generator)
    images = pipe([0, 2], latents=noise, num_inference_steps=3, output_type="latent").images
    numpy.save(f"{folder}/images.npy", images)
    pipe.save_pretrained(f"{folder}/again")
"""


@pytest.mark.slow
def test_plain_diffusers_loads_it_with_a_guide_and_without(guided, tmp_path):
    expected = {}
    for name in ("with", "without"):
        guided.save_pretrained(tmp_path / name)
        expected[name] = draw_latents(guided, [0, 2])
        guided.guide_unet = None
    assert not torch.equal(*expected.values())
    known = os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules"), "OMP_NUM_THREADS": "1"}
    folders = [str(tmp_path / name) for name in expected]
    done = forked.run([sys.executable, "-c", PLAIN, *folders], cwd=tmp_path, env=known)
    assert done.returncode == 0, done.stderr[-2000:]
    for name, latents in expected.items():
        assert np.array_equal(np.load(tmp_path / name / "images.npy"), latents.numpy())
        index = "model_index.json"
        again = (tmp_path / name / "again" / index).read_bytes()
        assert again == (tmp_path / name / index).read_bytes()
