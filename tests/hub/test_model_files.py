"""Which files of a folder are a model, and which folders are refused before anything is sent."""

import json
import shutil

import pytest

from hf_latent.errors import UserError
from hf_latent.hub.model_files import CODE, checkpoint_files, model_files

WEIGHTS = "diffusion_pytorch_model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
SHARD = "diffusion_pytorch_model-00001-of-00002.safetensors"


@pytest.fixture
def folder(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def sharded(vae, tmp_path):
    """An autoencoder in several shards."""
    vae.save_pretrained(tmp_path / "vae", max_shard_size="10KB")
    return tmp_path / "vae"


def refused(folder, *says):
    with pytest.raises(UserError) as error:
        model_files(folder)
    for words in says:
        assert words in str(error.value)
    assert "\n" not in str(error.value)


def change(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_the_files_of_a_pipeline_are_an_explicit_list(folder):
    entry, class_name, files = model_files(folder)
    assert (entry, class_name) == ("model_index.json", "LatentDiffusionPipeline")
    assert sorted(files) == sorted(
        [
            "scheduler/scheduler_config.json",
            "unet/config.json",
            f"unet/{WEIGHTS}",
            "vae/config.json",
            f"vae/{WEIGHTS}",
            *CODE,
        ]
    )
    assert {"pipeline.py", "encode.py", "add_noise.py", "denoise.py", "decode.py"} <= set(CODE)


def test_a_models_own_guidance_is_no_component(pipeline, folder, tmp_path):
    pipeline.register_to_config(guidance={"guidance_interval": (0.2, 0.8)})
    pipeline.save_pretrained(tmp_path / "own")
    assert model_files(tmp_path / "own") == model_files(folder)


def test_the_files_of_an_autoencoder_are_an_explicit_list(vae, tmp_path):
    vae.save_pretrained(tmp_path)
    assert model_files(tmp_path) == ("config.json", "AutoencoderKL", [WEIGHTS])


def test_a_stock_pipeline_has_no_code(folder):
    change(folder / "model_index.json", _class_name="LDMPipeline")
    _, class_name, files = model_files(folder)
    assert class_name == "LDMPipeline"
    assert not set(CODE) & set(files)


@pytest.mark.parametrize(
    "name", ["model_index.json", "unet/config.json", "scheduler/scheduler_config.json"]
)
@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff", b"[" * 100_000])
def test_a_damaged_configuration_is_named(folder, name, content):
    (folder / name).write_bytes(content)
    refused(folder, str(folder / name), "save it again")


@pytest.mark.parametrize("name", ["unet", "vae", "scheduler"])
def test_a_missing_component_is_named(folder, tmp_path, name):
    shutil.move(folder / name, tmp_path / name)
    refused(folder, f"{folder} has no folder {name}")
    (folder / name).symlink_to(tmp_path / name)
    refused(folder, str(folder / name), "is a link")


def test_an_empty_component_is_named(folder):
    (folder / "scheduler" / "scheduler_config.json").unlink()
    refused(folder, str(folder / "scheduler"))
    change(folder / "model_index.json", scheduler=[None, None])
    assert model_files(folder)


def test_missing_weights_are_named(folder):
    (folder / "unet" / WEIGHTS).unlink()
    refused(folder, f"{folder / 'unet'} has no weights")


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_weights_that_were_cut_short_are_named(folder, kept):
    path = folder / "unet" / WEIGHTS
    path.write_bytes(path.read_bytes()[:kept])
    refused(folder, f"{path} is missing, cut short or damaged")


def test_a_pickle_named_like_weights_is_refused(folder):
    path = folder / "vae" / WEIGHTS
    path.write_bytes(b"\x80\x04N." * 10)
    refused(folder, f"{path} is missing, cut short or damaged")


@pytest.mark.parametrize(
    "name", ["model_index.json", f"unet/{WEIGHTS}", "vae/config.json", "pipeline.py"]
)
def test_a_link_in_place_of_a_file_is_named(folder, tmp_path, name):
    shutil.move(folder / name, tmp_path / "elsewhere")
    (folder / name).symlink_to(tmp_path / "elsewhere")
    refused(folder, str(folder / name), "link")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("../secret", ["diffusers", "AutoencoderKL"]),
        ("/etc", ["diffusers", "AutoencoderKL"]),
        ("..", ["diffusers", "AutoencoderKL"]),
        ("a/b", ["diffusers", "AutoencoderKL"]),
        ("vae\n", ["diffusers", "AutoencoderKL"]),
        ("image_encoder", ["transformers", "CLIPVisionModel"]),
        ("text_encoder", ["diffusers", "AutoencoderKL"]),
        ("vae", ["other", "AutoencoderKL"]),
        ("vae", ["diffusers"]),
        ("numbers", [1, 2]),
    ],
)
def test_a_foreign_component_is_refused(folder, name, value):
    (folder.parent / "secret").mkdir()
    change(folder / "model_index.json", **{name: value})
    library = "transformers" if name == "text_encoder" else "diffusers"
    refused(folder, "model_index.json", repr(name), f"no part of {library}")


@pytest.mark.parametrize(
    "name", ["LatentDiffusionPipeline", None, ["other", "LatentDiffusionPipeline"], ["pipeline"], 3]
)
def test_a_pipeline_without_its_code_is_refused(folder, name):
    change(folder / "model_index.json", _class_name=name)
    refused(folder, f"names the class {json.dumps(name)}, without the code")


@pytest.mark.parametrize("name", CODE)
def test_missing_code_is_named(folder, name):
    (folder / name).unlink()
    refused(folder, f"{folder / name} is missing")


@pytest.mark.parametrize("name", [None, "UNet2DModel", ["AutoencoderKL"]])
def test_a_part_that_is_no_autoencoder_is_refused(sharded, name):
    change(sharded / "config.json", _class_name=name)
    refused(sharded, f"is of a {name}, and not of an autoencoder")


def test_shards_are_those_of_the_index(sharded):
    shards = sorted(set(json.loads((sharded / INDEX).read_text())["weight_map"].values()))
    assert len(shards) > 2
    (sharded / "diffusion_pytorch_model-00001-of-00099.safetensors").write_bytes(b"of no index")
    assert model_files(sharded)[2] == [INDEX, *shards]
    (sharded / shards[1]).unlink()
    refused(sharded, f"{sharded / shards[1]} is missing")


def test_a_shard_with_other_weights_is_named(sharded):
    weight_map = json.loads((sharded / INDEX).read_text())["weight_map"]
    first, second = sorted(set(weight_map.values()))[:2]
    shutil.copy(sharded / first, sharded / second)
    refused(sharded, f"{sharded / second} does not hold the weights that")


@pytest.mark.parametrize(
    "shard",
    [f"../{SHARD}", f"/{SHARD}", f"{SHARD}.pkl", WEIGHTS, "model.bin", None, 3, ["a"], INDEX],
)
def test_an_index_cannot_name_other_files(sharded, shard):
    weight_map = json.loads((sharded / INDEX).read_text())["weight_map"]
    change(sharded / INDEX, weight_map=weight_map | {"decoder.conv_in.bias": shard})
    refused(sharded, f"names {shard!r}, which is no file of weights")


@pytest.mark.parametrize("weight_map", [None, {}, []])
def test_an_index_without_weights_is_refused(sharded, weight_map):
    change(sharded / INDEX, weight_map=weight_map)
    refused(sharded, f"{sharded / INDEX} has no weight_map")


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"config\.json cannot be read"):
        model_files(tmp_path)


def test_a_checkpoint_is_checked_like_a_model(vae, tmp_path):
    checkpoint = tmp_path / "checkpoint-3"
    vae.save_pretrained(checkpoint / "vae")
    optimizer = checkpoint / "vae_optimizer.safetensors"
    shutil.copy(checkpoint / "vae" / WEIGHTS, optimizer)
    (checkpoint / "state.json").write_text("{}")
    assert sorted(checkpoint_files(tmp_path)) == [
        "checkpoint-3/state.json",
        "checkpoint-3/vae/config.json",
        f"checkpoint-3/vae/{WEIGHTS}",
        "checkpoint-3/vae_optimizer.safetensors",
    ]
    optimizer.write_bytes(b"pickle")
    with pytest.raises(UserError, match=r"vae_optimizer\.safetensors is missing, cut short"):
        checkpoint_files(tmp_path)
    optimizer.unlink()
    (checkpoint / "state.json").unlink()
    with pytest.raises(UserError, match=r"state\.json cannot be read"):
        checkpoint_files(tmp_path)
    (checkpoint / "vae" / WEIGHTS).unlink()
    with pytest.raises(UserError, match="has no weights"):
        checkpoint_files(tmp_path)
    shutil.rmtree(checkpoint / "vae")
    (checkpoint / "state.json").write_text("{}")
    shutil.move(checkpoint, tmp_path / "elsewhere")
    checkpoint.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"checkpoint-3/\S+ is a link"):
        checkpoint_files(tmp_path)
