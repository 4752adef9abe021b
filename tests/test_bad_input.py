"""Every user error is one line with exit status 2, and leaves no files: over all commands."""

import inspect
import json
import shutil
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from stat import S_ISDIR
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset
from PIL import Image
from safetensors.torch import load_file, save_file

from hf_latent.cli import COMMANDS, main
from hf_latent.command import run_command
from hf_latent.data.images import sources
from hf_latent.models.presets import create_scheduler
from hf_latent.pipeline import LatentDiffusionPipeline
from hf_latent.training.autoencoder import AutoencoderConfig, train_autoencoder
from tests import small
from tests.conftest import make_autoencoder, make_denoiser
from tests.data.latent_caches import write_latents
from tests.marking_pickle import MarkingPickle

# The flags that bring each command to its data or its model, if nothing is wrong with them.
GOOD = {
    "quickstart": "--output_dir OUT",
    "generate": "--model model --output OUT.png",
    "inspect": "--vae vae --data photos --output_dir OUT --feature_extractor none",
    "evaluate": "--model model --data photos --output_dir OUT",
    "sweep": "--data photos --output_dir OUT --max_minutes 1000",
    "export": "--model model --output_dir OUT",
    "push": "--model model --repo_id ada/model",
    "doctor": "",
    "bench loop": "--output_dir OUT --rounds 1 --steps 1",
    "bench cache": "--output_dir OUT --num_latents 100 --rounds 1 --steps 1",
    "bench sampler": "--output_dir OUT --rounds 1 --num_images 20",
    "bench space": "--output_dir OUT --resolutions [64] --rounds 1",
    "bench start": "--output_dir OUT --rounds 1",
    "train-autoencoder": "--data photos --output_dir OUT --preset tiny --max_train_steps 1",
    "train-denoiser": "--data photos --vae vae --output_dir OUT --preset tiny --max_train_steps 1",
    "distill": "--model model --output_dir OUT --max_train_steps 1",
    "encode": "--data photos --vae vae --output_dir OUT",
    "synthesize-ema": "--run photos --sigma_rel 0.1 --output_dir OUT",
    "report": "--run run --output OUT.html",
    "lesson": "--output_dir OUT",
}
OF_IMAGES = ("inspect", "evaluate", "sweep", "train-autoencoder", "train-denoiser", "encode")
OF_MODELS = ("generate", "evaluate", "export", "distill")
OF_AUTOENCODERS = ("inspect", "train-denoiser", "encode", "lesson")
NUMBERS = {"PositiveInt": "0", "NonNegativeInt": "-1", "PositiveFloat": "-2", "Seed": "4294967296"}
NUMBERS |= {"NonNegativeFloat": "-0.5", "Share": "1", "OpenUnitInterval": "1"}


def write_images(folder: Path, mode: str = "L", count: int = 8, size: int = 16) -> None:
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for i in range(count):
        pixels = generator.integers(0, 256, (size, size, 3), dtype=np.uint8)
        Image.fromarray(pixels).convert(mode).save(folder / f"{i}.png")


def write_bad_data(folder: Path) -> None:
    """Write data that no command can use; the folder's names are the keys of BAD_DATA."""
    (folder / "empty").mkdir()
    (folder / "texts").mkdir()
    (folder / "texts" / "a.txt").write_text("no image")
    (folder / "notes.txt").write_text("no data")
    (folder / "blank.txt").write_text("\n \n")
    write_images(folder / "truncated", count=4)
    whole = (folder / "truncated" / "1.png").read_bytes()
    (folder / "truncated" / "1.png").write_bytes(whole[: len(whole) // 2])
    write_images(folder / "renamed", count=4)
    (folder / "renamed" / "2.jpg").write_bytes(b"no image at all")
    write_images(folder / "single", count=1)
    write_images(folder / "same", count=1)
    shutil.copy(folder / "same" / "0.png", folder / "same" / "1.png")
    (folder / "damaged.parquet").write_bytes(b"PAR1 but nothing else")
    pq.write_table(pa.table({"number": [1, 2, 3]}), folder / "numbers.parquet")
    pq.write_table(pa.table({"image": pa.array([], pa.binary())}), folder / "no_rows.parquet")
    encoded = [(folder / "photos" / f"{i}.png").read_bytes() for i in range(4)]
    labels = [0, 1, None, 1]
    pq.write_table(pa.table({"image": encoded, "label": labels}), folder / "gaps.parquet")
    outside = [{"bytes": None, "path": "/etc/hostname"}] * 4
    pq.write_table(pa.table({"image": outside}), folder / "outside.parquet")
    Dataset.from_dict({"image": encoded}).save_to_disk(str(folder / "saved"))
    (folder / "saved" / "data-00000-of-00001.arrow").unlink()
    (folder / "dict").mkdir()
    (folder / "dict" / "dataset_dict.json").write_text('{"splits": ["train"]}')
    write_images(folder / "beside" / "train" / "a", count=2)
    write_images(folder / "beside" / "test" / "b", count=2)


BAD_DATA = {
    "nowhere": "nowhere",
    "./no/where": "no/where",
    "nobody/nothing": "nobody/nothing",
    "empty": "empty",
    "texts": "texts",
    "notes.txt": "notes.txt",
    "truncated": "1.png",
    "renamed": "2.jpg",
    "single": "held out",
    "same": "held out",
    "damaged.parquet": "damaged.parquet",
    "numbers.parquet": "numbers.parquet",
    "no_rows.parquet": "no_rows.parquet",
    "gaps.parquet": "gaps.parquet",
    "outside.parquet": "outside.parquet",
    "saved": "saved",
    "dict": "dict",
}


def change_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def spoil_weights(path: Path, value: float) -> None:
    tensors = load_file(path)
    next(iter(tensors.values())).view(-1)[0] = value
    save_file(tensors, path, {"format": "pt"})


def write_bad_models(model: Path, config: str, weights: str) -> dict[str, str]:
    """Copy a model to folders beside it, each damaged in another way.

    Args:
        config: the configuration's path in the model.
        weights: the weights' path in the model.

    Returns:
        Each folder's name, with what the message must say of it.
    """
    parent, says = model.parent, {}

    def copy(name: str, says_also: str = "") -> Path:
        folder = parent / f"{model.name}_{name}"
        shutil.copytree(model, folder)
        says[folder.name] = says_also or folder.name
        return folder

    whole = (model / weights).read_bytes()
    (copy("cut") / weights).write_bytes(whole[: len(whole) // 2])
    (copy("short") / weights).write_bytes(whole[:-4])
    (copy("emptied") / weights).write_bytes(b"")
    (copy("garbled") / weights).write_bytes(bytes(200) + whole[200:])
    (copy("lost") / weights).unlink()
    (copy("unset") / config).unlink()
    (copy("text") / config).write_text("{no JSON")
    (copy("list") / config).write_text("[1, 2]")
    (copy("nothing") / config).write_text("{}")
    change_json(copy("other_class") / config, _class_name="Transformer2DModel")
    change_json(copy("no_class") / config, _class_name="NoSuchModel")
    change_json(copy("other_size") / config, block_out_channels=[16, 16, 16])
    spoil_weights(copy("nan", "finite") / weights, float("nan"))
    spoil_weights(copy("inf", "finite") / weights, float("inf"))
    pickled = copy("pickled")
    (pickled / weights).unlink()
    MarkingPickle(parent / "mark").write((pickled / weights).with_suffix(".bin"))
    MarkingPickle(parent / "mark").write(copy("disguised") / weights)
    return says


def write_bad_pipelines(model: Path) -> dict[str, str]:
    """Copy a pipeline to folders beside it, each with another wrong part; as above."""
    parent, says = model.parent, {}

    def copy(name: str) -> Path:
        folder = parent / f"{model.name}_{name}"
        shutil.copytree(model, folder)
        says[folder.name] = folder.name
        return folder

    (copy("no_index") / "model_index.json").unlink()
    (copy("cut_index") / "model_index.json").write_text('{"_class_name": ')
    (copy("no_scheduler") / "scheduler" / "scheduler_config.json").unlink()
    shutil.rmtree(copy("no_unet") / "unet")
    shutil.rmtree(copy("no_vae") / "vae")
    change_json(copy("own_code") / "model_index.json", scheduler=["evil", "Evil"])
    no_such = ["diffusers", "NoSuchScheduler"]
    change_json(copy("no_schedule") / "model_index.json", scheduler=no_such)
    return says


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Iterator[Path]:
    """A working folder with good and bad data, models and recipes; no test may change it."""
    folder = tmp_path_factory.mktemp("bad_input")
    write_images(folder / "photos", count=60)
    write_images(folder / "colour", "RGB")
    write_bad_data(folder)
    vae = make_autoencoder()
    vae.save_pretrained(folder / "vae")
    names = {0: "cat", 1: "dog", 2: "owl"}
    pipeline = LatentDiffusionPipeline(
        vae, make_denoiser(vae), create_scheduler("flow"), id2label=names
    )
    pipeline.save_pretrained(folder / "model")
    write_latents(folder / "cache")
    write_runs(folder)
    write_recipes(folder)
    assert write_bad_models(folder / "vae", "config.json", WEIGHTS) == BAD_AUTOENCODERS
    found = write_bad_models(folder / "model", "unet/config.json", f"unet/{WEIGHTS}")
    assert found | write_bad_pipelines(folder / "model") == BAD_MODELS
    before = list_files(folder)
    yield folder
    assert list_files(folder) == before
    assert not (folder / "mark").exists()


WEIGHTS = "diffusion_pytorch_model.safetensors"
DAMAGED = ("cut", "short", "emptied", "garbled", "lost", "unset", "text", "list", "nothing")
DAMAGED += ("other_class", "no_class", "other_size", "pickled", "disguised")
PARTS = ("no_index", "cut_index", "no_scheduler", "no_unet", "no_vae", "own_code")
BAD_AUTOENCODERS = {f"vae_{name}": f"vae_{name}" for name in DAMAGED}
BAD_AUTOENCODERS |= {"vae_nan": "finite", "vae_inf": "finite"}
BAD_MODELS = {f"model_{name}": f"model_{name}" for name in (*DAMAGED, *PARTS, "no_schedule")}
BAD_MODELS |= {"model_nan": "finite", "model_inf": "finite"}
PUSH_REFUSES = [f"model_{x}" for x in ("cut", "short", "emptied", "garbled", "lost", "no_index")]
NO_MODELS = {"nowhere": "nowhere", "./no/where": "no/where", "nobody/nothing": "nobody/nothing"}
NO_MODELS |= {"photos": "photos", "empty": "empty", "notes.txt": "notes.txt", "cache": "cache"}


def write_recipes(folder: Path) -> None:
    (folder / "unknown.yaml").write_text("no_such_setting: 1\n")
    (folder / "twice.yaml").write_text("seed: 1\nseed: 2\n")
    (folder / "sexagesimal.yaml").write_text("seed: 1:30\n")
    (folder / "broken.yaml").write_text("seed: [1\n")
    (folder / "list.yaml").write_text("- seed\n- 1\n")
    (folder / "binary.yaml").write_bytes(bytes(range(128, 256)))
    (folder / "code.yaml").write_text("!!python/object/apply:os.mkdir [mark]\n")
    (folder / "path.yaml").write_text("__path__: other.yaml\n")
    (folder / "deep.yaml").write_text("[" * 1000)


def write_runs(folder: Path) -> None:
    """Write the folder of a training that was killed, and damaged copies of it."""
    (folder / "run" / "logs").mkdir(parents=True)
    settings = {"output_dir": "elsewhere", "max_train_steps": 5}
    (folder / "run" / "config.yaml").write_text(json.dumps(settings))
    (folder / "run" / "logs" / "losses.jsonl").write_text('{"step": 1, "train_loss": 0.5}\n')
    for name in BAD_RUNS:
        shutil.copytree(folder / "run", folder / name)
    (folder / "run_no_yaml" / "config.yaml").write_text("{")
    (folder / "run_other" / "config.yaml").write_text("seed: 1")
    (folder / "run_wrong" / "config.yaml").write_text(json.dumps(settings | {"seed": "x"}))
    (folder / "run_cut" / "logs" / "losses.jsonl").write_text('{"step": 1\n')
    (folder / "run_list" / "logs" / "losses.jsonl").write_text("[]\n")


BAD_RUNS = ("run_no_yaml", "run_other", "run_wrong", "run_cut", "run_list")
RECIPES = {
    "unknown.yaml": "no_such_setting",
    "twice.yaml": "given 2 times",
    "sexagesimal.yaml": "1:30",
    "broken.yaml": "config",
    "list.yaml": "config",
    "binary.yaml": "config",
    "code.yaml": "config",
    "path.yaml": "__path__",
    "deep.yaml": "config",
    "nowhere.yaml": "nowhere.yaml",
    "photos": "config",
    "photos/0.png": "config",
}


def list_files(folder: Path) -> dict[str, tuple[int, int] | None]:
    found = ((str(path), path.stat()) for path in sorted(folder.rglob("*")))
    return {
        name: None if S_ISDIR(stat.st_mode) else (stat.st_size, stat.st_mtime_ns)
        for name, stat in found
    }


def wrong_values(kind: Any) -> list[str]:
    """Return values that do not fit the type of a setting."""
    if get_origin(kind) is Literal:
        return ["something_else"]
    if get_origin(kind) in (Union, UnionType):
        parts = [part for part in get_args(kind) if part is not NoneType]
        return [] if str in parts else [x for x in wrong_values(parts[0]) if len(parts) == 1]
    if get_origin(kind) is list:
        return ["[x]"]
    if kind is str:
        return []
    if kind is bool:
        return ["perhaps"]
    number = NUMBERS.get(kind.__name__)
    return ["many", *([] if number is None else [number])]


def wrong_settings() -> Iterator[tuple[str, str, str]]:
    """Try each setting with the first command that has it: commands inherit settings of a class."""
    tried = set()
    for command, entry in COMMANDS.items():
        config = getattr(import_module(entry.module), entry.config)
        for name, kind in get_type_hints(config).items():
            (owner, *_) = (x for x in config.__mro__ if name in inspect.get_annotations(x))
            for value in wrong_values(kind):
                if (owner, name, value) not in tried:
                    yield command, f"--{name} {value}", f"--{name}"
                tried.add((owner, name, value))


# A command, flags, and what the message must say. Later flags win over those of GOOD.
CASES = [
    *wrong_settings(),
    *((command, "--no_such_flag 1", "--no_such_flag") for command in GOOD),
    *((command, "--see 1", "--see") for command in GOOD),
    *((x, f"--config {y}", says) for x in ("encode", "push") for y, says in RECIPES.items()),
    *((command, f"--data {x}", says) for command in OF_IMAGES for x, says in BAD_DATA.items()),
    *((command, f"--model {x}", says) for command in OF_MODELS for x, says in BAD_MODELS.items()),
    *(
        (command, f"--model {x}", says)
        for command in (*OF_MODELS, "push")
        for x, says in NO_MODELS.items()
    ),
    *(("push", f"--model {x}", x) for x in PUSH_REFUSES),
    *(
        (command, f"--vae {x}", says)
        for command in OF_AUTOENCODERS
        for x, says in (BAD_AUTOENCODERS | NO_MODELS).items()
    ),
    *(
        (command, f"--output_dir {x}", "--output_dir")
        for command, flags in GOOD.items()
        if "--output_dir" in flags
        for x in ("notes.txt", "notes.txt/run", "", "photos")
        if (command, x) != ("encode", "photos")
    ),
    *(
        (command, "--resolution 30", "30")
        for command in ("inspect", "train-autoencoder", "train-denoiser", "encode")
    ),
    *((command, "--resolution 3,4,5", "--resolution") for command in OF_IMAGES),
    *((command, "--validation_fingerprint 00", "fingerprint") for command in OF_IMAGES),
    *((x, "--data colour", "channels") for x in ("inspect", "train-denoiser", "encode")),
    *(
        ("report", f"--run {x}", x)
        for x in (*BAD_RUNS, "photos", "nowhere", "notes.txt", "run run")
    ),
    ("report", "--output nowhere/page.html", "nowhere"),
    ("report", "--output photos", "photos"),
    ("train-autoencoder", "--latent_channels 0", "--latent_channels"),
    ("train-autoencoder", "--perceptual_weight 1", "--perceptual_network"),
    ("train-autoencoder", "--perceptual_network vgg", "--perceptual_network"),
    ("train-autoencoder", "--train_decoder_only true", "--pretrained"),
    (
        "train-autoencoder",
        "--pretrained_vae vae --block_out_channels [8,8]",
        "--block_out_channels cannot change a --pretrained_vae",
    ),
    ("train-autoencoder", "--data colour --pretrained_vae vae", "channels"),
    ("train-autoencoder", "--pretrained_vae nowhere/vae", "nowhere/vae"),
    (
        "train-autoencoder",
        "--resolution 16 --discriminator_weight 0.5",
        "--discriminator_num_layers",
    ),
    ("train-autoencoder", "--report_to paper", "--report_to paper"),
    ("train-autoencoder", "--hub_model_id ada/vae", "--push_to_hub"),
    ("train-autoencoder", "--resume_from_checkpoint photos", "photos"),
    ("train-denoiser", "--label_dropout 2", "--label_dropout"),
    (
        "train-denoiser",
        "--pretrained_unet nowhere/unet --attention [true,true]",
        "--attention cannot change a --pretrained_unet",
    ),
    *(
        ("train-denoiser", f"--block_out_channels {widths}", message)
        for widths, message in [
            ("[]", "0 --block_out_channels and 2 values of --attention"),
            ("[64]", "1 --block_out_channels and 2 values of --attention"),
            ("[64,90]", "each must be a multiple of 4, and at least 8 with --attention"),
            ("[8,4]", "each must be a multiple of 4, and at least 8 with --attention"),
        ]
    ),
    ("train-denoiser", "--resolution 36", "of 8 to be denoised"),
    ("train-denoiser", "--latents photos", "photos"),
    ("train-denoiser", "--latents cache", "cache"),
    ("generate", "--sampler NoSuchScheduler", "NoSuchScheduler"),
    ("generate", "--sampler DDIMScheduler", "DDIMScheduler"),
    ("generate", "--guidance_scale nan", "--guidance_scale"),
    ("generate", "--guidance_scale inf", "--guidance_scale"),
    ("generate", "--guidance_interval 1,0", "--guidance_interval"),
    ("generate", "--guidance_interval 0", "--guidance_interval"),
    ("generate", "--class_labels wolf", "wolf"),
    ("generate", "--class_labels 3", "3"),
    ("generate", "--prompt cat", "--prompt is for models that were trained on captions"),
    ("generate", "--prompts_file notes.txt", "--prompts_file is for models that were trained on"),
    ("generate", "--negative_prompt cat", "--negative_prompt is for models that were trained on"),
    ("generate", "--prompt cat --prompts_file notes.txt", "--prompt and --prompts_file cannot go"),
    *(
        ("generate", f"--prompts_file {x}", f"--prompts_file {x} cannot be read as text in UTF-8")
        for x in ("nowhere/prompts.txt", "photos", "binary.yaml")
    ),
    ("generate", "--prompts_file blank.txt", "--prompts_file blank.txt is empty"),
    ("generate", "--output OUT.txt", "OUT.txt"),
    ("generate", "--output nowhere/out.png", "nowhere"),
    ("generate", "--output photos", "photos"),
    ("generate", "--guide vae", "vae"),
    ("export", "--format ldm", "--format ldm"),
    ("export", "--title Wolves", "--title"),
    ("push", "--repo_id model", "--repo_id model"),
    ("push", "--repo_id a/b/c", "--repo_id a/b/c"),
    ("push", "--cache cache", "--cache"),
    ("quickstart", "--max_minutes 0.001", "--max_minutes 0.001"),
]


def test_the_table_covers_all_commands_with_300_inputs():
    assert len(CASES) >= 300
    assert {command for command, *_ in CASES} == set(COMMANDS) == set(GOOD)


@pytest.fixture(autouse=True, scope="module")
def small_trainings():
    with small.small_trainings() as patch:
        patch.setitem(sources.BUILT_IN, "fashion_mnist", small.few_images)
        # quickstart checks its time limit after it trained a classifier: use an untrained one.
        patch.setattr(
            "hf_latent.experiments.quickstart.train_classifier",
            lambda *_: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(1024, 10)),
        )
        yield


@pytest.mark.parametrize(
    ("command", "flags", "says"), CASES, ids=[f"{command} {flags}" for command, flags, _ in CASES]
)
def test_a_bad_input_is_one_line_with_status_2(
    folder, tmp_path, monkeypatch, capsys, command, flags, says
):
    monkeypatch.chdir(folder)
    good, given = (
        [word.replace("OUT", str(tmp_path / "out")) for word in text.split(" ")]
        for text in (GOOD[command], flags)
    )
    for flag in given:
        if flag.startswith("--") and flag in good:
            del good[good.index(flag) : good.index(flag) + 2]
    with pytest.raises(SystemExit) as stop:
        main([*command.split(), *good, *given])
    assert stop.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if not line.startswith("warning: ")] == lines[-1:]
    assert lines[-1].startswith("error: ")
    assert says.replace("OUT", str(tmp_path / "out")) in lines[-1]
    assert len(lines[-1]) < 600
    assert not list(tmp_path.iterdir())


def test_corrupt_files_can_be_skipped(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = "--on_bad_image skip --max_train_steps 1 --train_batch_size 2 --preset tiny"
    data = ["--data", str(folder / "truncated"), "--output_dir", "run"]
    run_command(AutoencoderConfig, train_autoencoder, [*flags.split(), *data])
    assert (tmp_path / "run" / "model" / WEIGHTS).is_file()
    first = (tmp_path / "run" / "config.yaml").read_text().splitlines()[0]
    assert first.endswith(", 1 left out because they cannot be used")
