"""Saving and loading pipelines."""

import json
import os
import pickle
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, FlowMatchHeunDiscreteScheduler
from safetensors.torch import load_file, save_file

from hf_latent.models.frozen import hash_weights
from hf_latent.pipeline import LatentDiffusionPipeline
from hf_latent.pipeline.saved_files import MODULES, RETIRED_MODULES
from hf_latent.pipeline.weights import align_weights, load_exactly
from tests.marking_pickle import MarkingPickle

PACKAGE = Path(__file__).parents[2] / "hf_latent" / "pipeline"
WEIGHTS = "diffusion_pytorch_model.safetensors"


def draw(pipeline, **arguments):
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return pipeline(
        [2, 1], generator=generator, num_inference_steps=3, output_type="pt", **arguments
    ).images


def change_weights(path: Path, change) -> None:
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})


def test_save_and_load_is_bit_equal(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    assert not list(tmp_path.rglob("*.bin"))
    loaded = LatentDiffusionPipeline.from_pretrained(tmp_path)
    assert hash_weights(loaded.vae) == hash_weights(pipeline.vae)
    assert hash_weights(loaded.unet) == hash_weights(pipeline.unet)
    public = {k: v for k, v in pipeline.scheduler.config.items() if not k.startswith("_")}
    assert public == {k: loaded.scheduler.config[k] for k in public}
    assert loaded.id2label == {0: "cat", 1: "dog", 2: "owl"}
    assert torch.equal(draw(loaded), draw(pipeline))


def test_the_code_is_saved_beside_the_weights_and_named(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "model_index.json").read_text())
    assert config["_class_name"] == ["pipeline", "LatentDiffusionPipeline"]
    assert config["id2label"] == {"0": "cat", "1": "dog", "2": "owl"}
    for name in MODULES:
        assert (tmp_path / f"{name}.py").read_bytes() == (PACKAGE / f"{name}.py").read_bytes()
    assert {path.name for path in tmp_path.glob("*.*")} == {
        "model_index.json",
        *(f"{name}.py" for name in MODULES),
    }


def test_saving_again_saves_no_local_path(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path / "once")
    loaded = LatentDiffusionPipeline.from_pretrained(tmp_path / "once")
    loaded.save_pretrained(tmp_path / "again")
    saved = [path.read_text() for path in (tmp_path / "again").rglob("*.json")]
    assert len(saved) == 4
    assert not any(str(tmp_path) in text for text in saved)
    again = LatentDiffusionPipeline.from_pretrained(tmp_path / "again")
    assert hash_weights(again.unet) == hash_weights(pipeline.unet)


def test_plain_diffusers_asks_to_trust_the_code_and_our_class_does_not(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="trust_remote_code"):
        DiffusionPipeline.from_pretrained(tmp_path)
    (tmp_path / "pipeline.py").write_text("raise RuntimeError('this is run')")
    LatentDiffusionPipeline.from_pretrained(tmp_path)


def test_another_class_is_not_mistaken_for_ours(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    path = tmp_path / "model_index.json"
    path.write_text(path.read_text().replace('"LatentDiffusionPipeline"', '"Foreign"'))
    with pytest.raises(ValueError, match="trust_remote_code"):
        LatentDiffusionPipeline.from_pretrained(tmp_path)


def test_a_derived_class_is_saved_without_our_code(pipeline, tmp_path):
    class Mine(LatentDiffusionPipeline):
        pass

    Mine(**pipeline.components, id2label=pipeline.config.id2label).save_pretrained(
        tmp_path / "mine"
    )
    config = json.loads((tmp_path / "mine" / "model_index.json").read_text())
    assert config["_class_name"] == "Mine"
    assert not list((tmp_path / "mine").glob("*.py"))
    pipeline.save_pretrained(tmp_path / "ours")
    assert isinstance(Mine.from_pretrained(tmp_path / "ours"), Mine)


def test_a_variant_is_saved_beside_the_weights(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    half = LatentDiffusionPipeline.from_pretrained(tmp_path, dtype=torch.float16)
    assert half.unet.dtype == half.vae.dtype == torch.float16
    half.save_pretrained(tmp_path, variant="fp16")
    names = {path.name for path in (tmp_path / "unet").iterdir()}
    assert names == {"config.json", WEIGHTS, "diffusion_pytorch_model.fp16.safetensors"}
    loaded = LatentDiffusionPipeline.from_pretrained(tmp_path, variant="fp16", dtype=torch.float16)
    assert hash_weights(loaded.unet) == hash_weights(half.unet)
    whole = LatentDiffusionPipeline.from_pretrained(tmp_path)
    assert hash_weights(whole.unet) == hash_weights(pipeline.unet)
    (tmp_path / "vae" / "diffusion_pytorch_model.fp16.safetensors").unlink()
    mixed = LatentDiffusionPipeline.from_pretrained(tmp_path, variant="fp16")
    assert hash_weights(mixed.vae) == hash_weights(pipeline.vae)
    assert mixed.unet.dtype == torch.float32
    torch.testing.assert_close(
        mixed.unet.conv_in.weight, half.unet.conv_in.weight.float(), rtol=0, atol=0
    )
    with pytest.raises(ValueError, match="variant=bf16"):
        LatentDiffusionPipeline.from_pretrained(tmp_path, variant="bf16")


def test_a_dtype_for_each_component(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    dtypes = {"unet": torch.bfloat16, "default": torch.float64}
    loaded = LatentDiffusionPipeline.from_pretrained(tmp_path, dtype=dtypes)
    assert (loaded.unet.dtype, loaded.vae.dtype) == (torch.bfloat16, torch.float64)


def test_sharded_weights(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path, max_shard_size="50KB")
    shards = list((tmp_path / "unet").glob("diffusion_pytorch_model-*-of-*.safetensors"))
    assert len(shards) > 2
    loaded = LatentDiffusionPipeline.from_pretrained(tmp_path)
    assert torch.equal(draw(loaded), draw(pipeline))


@pytest.mark.parametrize("sizes", [("50KB", None), (None, "50KB"), ("50KB", "20KB")])
@pytest.mark.parametrize("variant", [None, "copy"])
def test_weights_saved_over_older_ones_are_loaded(pipeline, tmp_path, sizes, variant):
    pipeline.save_pretrained(tmp_path)
    pipeline.save_pretrained(tmp_path, variant=variant, max_shard_size=sizes[0])
    before = hash_weights(pipeline.unet)
    pipeline.unet.conv_in.bias.data += 1
    pipeline.save_pretrained(tmp_path, variant=variant, max_shard_size=sizes[1])
    loaded = LatentDiffusionPipeline.from_pretrained(tmp_path, variant=variant)
    assert hash_weights(loaded.unet) == hash_weights(pipeline.unet) != before
    if variant:  # the others stay
        assert hash_weights(LatentDiffusionPipeline.from_pretrained(tmp_path).unet) == before


def test_a_model_can_be_saved_over_its_own_files(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    loaded = LatentDiffusionPipeline.from_pretrained(tmp_path)
    loaded.save_pretrained(tmp_path)  # some of its weights are those files, mapped
    assert torch.equal(draw(loaded), draw(pipeline))
    assert torch.equal(draw(LatentDiffusionPipeline.from_pretrained(tmp_path)), draw(pipeline))


def test_old_weights_stay_until_the_new_ones_are_written(pipeline, tmp_path, monkeypatch):
    pipeline.save_pretrained(tmp_path, max_shard_size="50KB")
    (tmp_path / ".saving").mkdir()  # of a killed process
    before = {path.name: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def full_disk(*args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr(type(pipeline.unet), "save_pretrained", full_disk)
    with pytest.raises(OSError, match="No space"):
        pipeline.save_pretrained(tmp_path)
    after = {path.name: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert after == before
    assert not list(tmp_path.glob(".*"))


def test_two_processes_save_to_one_folder_one_after_the_other(pipeline, unconditional, tmp_path):
    def save(model):
        torch.set_num_threads(1)
        for _ in range(8):
            model.save_pretrained(tmp_path)

    processes = [
        get_context("fork").Process(target=save, args=(x,)) for x in (pipeline, unconditional)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    saved = LatentDiffusionPipeline.from_pretrained(tmp_path)
    (of,) = [x for x in (pipeline, unconditional) if x.num_classes == saved.num_classes]
    assert hash_weights(saved.unet) == hash_weights(of.unet)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_saved_files_have_the_umasks_mode(pipeline, tmp_path, mask):
    before = os.umask(mask)
    try:
        pipeline.save_pretrained(tmp_path / "model")
    finally:
        os.umask(before)
    modes = {x.stat().st_mode & 0o777 for x in (tmp_path / "model").rglob("*") if x.is_file()}
    assert modes == {0o666 & ~mask}


def test_saving_over_an_older_version_removes_its_retired_modules(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    for name in (*RETIRED_MODULES, "my_notes"):
        (tmp_path / f"{name}.py").write_text("print('stale')")
    loaded = LatentDiffusionPipeline.from_pretrained(tmp_path)
    loaded.save_pretrained(tmp_path)
    assert {path.stem for path in tmp_path.glob("*.py")} == {*MODULES, "my_notes"}


def test_files_with_retired_names_stay_if_the_folder_is_no_pipeline(pipeline, tmp_path):
    (tmp_path / "guidance.py").write_text("a file of somebody's own")
    pipeline.save_pretrained(tmp_path)
    assert (tmp_path / "guidance.py").is_file()


def test_a_component_given_to_from_pretrained_is_not_loaded(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    (tmp_path / "unet" / WEIGHTS).unlink()
    scheduler = FlowMatchHeunDiscreteScheduler()
    loaded = LatentDiffusionPipeline.from_pretrained(
        tmp_path, unet=pipeline.unet, scheduler=scheduler
    )
    assert loaded.unet is pipeline.unet
    assert loaded.scheduler is scheduler


@pytest.mark.parametrize("component", ["vae", "unet"])
@pytest.mark.parametrize("sharded", [False, True])
def test_missing_and_unexpected_weights_are_an_error(pipeline, tmp_path, component, sharded):
    name = {"vae": "decoder.conv_out.bias", "unet": "conv_in.bias"}[component]
    pipeline.save_pretrained(tmp_path, max_shard_size="50KB" if sharded else None)
    path = tmp_path / component / WEIGHTS
    if sharded:
        index = json.loads(path.with_name(f"{WEIGHTS}.index.json").read_text())
        path = path.with_name(index["weight_map"][name])
    value = load_file(path)[name]
    change_weights(path, lambda weights: weights.pop(name))
    with pytest.raises(
        ValueError, match=f"weights of the saved {component} do not fit: missing: {name}"
    ):
        LatentDiffusionPipeline.from_pretrained(tmp_path)
    if sharded:
        index["weight_map"]["other"] = path.name
        path.with_name(f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    change_weights(path, lambda weights: weights.update({name: value, "other": torch.ones(1)}))
    with pytest.raises(
        ValueError, match=f"weights of the saved {component} do not fit: unexpected: other"
    ):
        LatentDiffusionPipeline.from_pretrained(tmp_path)


def test_a_weight_of_another_shape_is_an_error(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    path = tmp_path / "unet" / WEIGHTS
    change_weights(path, lambda weights: weights.update({"conv_in.bias": torch.ones(3)}))
    with pytest.raises(ValueError, match=r"conv_in\.bias"):
        LatentDiffusionPipeline.from_pretrained(tmp_path)


def test_a_pipeline_that_lacks_weights_is_refused(pipeline):
    pipeline.unet.conv_in.to("meta")
    with pytest.raises(ValueError, match=r"the unet lacks weights: conv_in\.weight"):
        LatentDiffusionPipeline(**pipeline.components)


def test_models_of_other_libraries_are_refused(pipeline, tmp_path):
    pipeline.vae.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for name in ("DDIMScheduler", "nothing", "DiffusionPipeline", ["a", "b"]):
        (tmp_path / "config.json").write_text(json.dumps(config | {"_class_name": name}))
        with pytest.raises(ValueError, match="is no model of diffusers"):
            load_exactly(str(tmp_path))


def test_only_safetensors_are_written_and_read(pipeline, tmp_path):
    with pytest.raises(ValueError, match="safetensors only"):
        pipeline.save_pretrained(tmp_path, safe_serialization=False)
    assert not list(tmp_path.iterdir())
    pipeline.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="safetensors only"):
        LatentDiffusionPipeline.from_pretrained(tmp_path, use_safetensors=False)


def test_the_planted_pickles_run_code_if_loaded(tmp_path):
    for name in ("a.pkl", "a.bin"):
        planted = MarkingPickle(tmp_path / f"mark of {name}")
        planted.write(tmp_path / name)
        planted.assert_never_loaded()
        with open(tmp_path / name, "rb") as file:
            pickle.load(file) if name == "a.pkl" else torch.load(file, weights_only=False)
        assert planted.mark.exists()


@pytest.mark.parametrize("beside", [True, False])
def test_a_pickle_in_a_model_is_never_loaded(pipeline, tmp_path, beside):
    pipeline.save_pretrained(tmp_path)
    planted = MarkingPickle(tmp_path / "mark")
    for component in ("vae", "unet"):
        for name in ("diffusion_pytorch_model.bin", "pytorch_model.bin", "model.pt"):
            planted.write(tmp_path / component / name)
        if not beside:
            (tmp_path / component / WEIGHTS).unlink()
    planted.write(tmp_path / "scheduler" / "scheduler.pkl")
    if beside:
        loaded = LatentDiffusionPipeline.from_pretrained(tmp_path)
        assert torch.equal(draw(loaded), draw(pipeline))
    else:
        with pytest.raises(OSError, match="safetensors"):
            LatentDiffusionPipeline.from_pretrained(tmp_path)
    planted.assert_never_loaded()


def test_a_pickle_named_safetensors_is_not_loaded(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    planted = MarkingPickle(tmp_path / "mark")
    planted.write(tmp_path / "unet" / WEIGHTS)
    with pytest.raises(Exception, match=r"(?i)header|safetensors"):
        LatentDiffusionPipeline.from_pretrained(tmp_path)
    planted.assert_never_loaded()


@pytest.mark.parametrize("component", ["vae", "unet", "scheduler"])
def test_code_of_a_component_is_not_run(pipeline, tmp_path, component):
    pipeline.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "model_index.json").read_text())
    config[component] = ["evil", "Evil"]
    (tmp_path / "model_index.json").write_text(json.dumps(config))
    code = f"open({str(tmp_path / 'mark')!r}, 'w')\nclass Evil: pass\n"
    for path in (tmp_path / component / "evil.py", tmp_path / "evil.py"):
        path.write_text(code)
    with pytest.raises((ValueError, AttributeError, ImportError)):
        LatentDiffusionPipeline.from_pretrained(tmp_path)
    assert not (tmp_path / "mark").exists()


def test_loaded_weights_are_aligned_and_aligned_ones_are_not_copied(pipeline, tmp_path):
    before = {name: p.data_ptr() for name, p in pipeline.unet.named_parameters()}
    LatentDiffusionPipeline(**pipeline.components)
    assert before == {name: p.data_ptr() for name, p in pipeline.unet.named_parameters()}
    pipeline.save_pretrained(tmp_path)
    vae = AutoencoderKL.from_pretrained(tmp_path, subfolder="vae")
    vae.decoder.conv_in.bias.data = torch.arange(1.0, 10)[1:]
    align_weights(vae)
    assert all(parameter.data_ptr() % 64 == 0 for parameter in vae.parameters())
    assert vae.decoder.conv_in.bias.tolist() == list(range(2, 10))


def test_without_low_cpu_mem_usage_the_images_are_the_same(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    loaded = LatentDiffusionPipeline.from_pretrained(tmp_path, low_cpu_mem_usage=False)
    assert torch.equal(draw(loaded), draw(pipeline))


def test_a_released_name_and_a_runs_folder_are_loaded(pipeline, tmp_path):
    released = LatentDiffusionPipeline.from_pretrained("fashion-mnist")
    assert released.id2label[9] == "Ankle boot"
    pipeline.save_pretrained(tmp_path / "model")
    loaded = LatentDiffusionPipeline.from_pretrained(tmp_path)
    assert hash_weights(loaded.unet) == hash_weights(pipeline.unet)
