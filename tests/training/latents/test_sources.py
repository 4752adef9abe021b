import json
import shutil
from dataclasses import fields, replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from hf_latent.command import run_command
from hf_latent.data.images.open import ImageSplits, open_images
from hf_latent.data.latents.cache import LatentBatch
from hf_latent.data.shards import write_manifest
from hf_latent.errors import UserError
from hf_latent.models.frozen import freeze
from hf_latent.models.load import load_autoencoder
from hf_latent.pipeline.encode import encode_posteriors
from hf_latent.training.denoiser import train_denoiser
from hf_latent.training.denoiser_config import DenoiserConfig
from hf_latent.training.latents import posteriors
from hf_latent.training.latents.encode import encode_latents
from hf_latent.training.latents.sources import LatentSource, open_latent_source
from hf_latent.training.run.batches import GlobalBatchSampler, ProcessRows
from hf_latent.training.run.clock import TrainingClock
from tests.data.latent_caches import all_bytes, assert_same_batch, cut_short, flip_a_bit, read_json
from tests.training.conftest import SHORT
from tests.training.encoding import IMAGES, encode_settings, save_autoencoder

STREAM = {"stream_latents": True, "stream_lanes": 4, "stream_buffer_rows": 16}


@pytest.fixture(scope="module")
def vae_folder(tmp_path_factory):
    return save_autoencoder(tmp_path_factory.mktemp("autoencoder") / "model")


@pytest.fixture(scope="module")
def made(vae_folder, tmp_path_factory):
    """An existing cache."""
    folder = tmp_path_factory.mktemp("made") / "cache"
    encode_latents(encode_settings(vae_folder, folder))
    return folder


@pytest.fixture
def cache(made, tmp_path):
    """A copy of it, for tests that change it."""
    shutil.copytree(made, tmp_path / "cache")
    return tmp_path / "cache"


@pytest.fixture
def settings(vae_folder, tmp_path):
    """Create a training's configuration; with `latents`, the cache defines the images."""

    def make(**changes) -> DenoiserConfig:
        values = {**SHORT, **IMAGES, "vae": vae_folder, "output_dir": str(tmp_path / "run")}
        if changes.get("latents"):
            changes["latents"] = str(changes["latents"])
            del values["max_train_samples"]
        return DenoiserConfig(**values | changes)

    return make


def open_source(config: DenoiserConfig, splits: ImageSplits | None = None) -> LatentSource:
    vae = freeze(load_autoencoder(config.vae))
    source = open_latent_source(config, Accelerator(), vae, splits)
    source.prepare(vae)
    return source


def assert_close(found: LatentBatch, expected: LatentBatch) -> None:
    assert_same_batch(found, expected, tolerance=1e-4)


def user_error(action) -> str:
    with pytest.raises(UserError) as error:
        action()
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("flips", [True, False])
def test_all_sources_of_latents_give_the_same_batches(settings, made, flips):
    sources = [
        open_source(settings(horizontal_flip=flips, **changes))
        for changes in ({"latents": made}, {"encode_every_step": True}, {})
    ]
    for start in (0, 7):  # 5 batches of 8 an epoch
        batches = [list(islice(source.batches(start), 12)) for source in sources]
        for found in batches[1:]:
            for one, other in zip(found, batches[0], strict=True):
                assert_close(one, other)
    held_out = [source.held_out() for source in sources]
    assert len(held_out[0]) == 12
    for found in held_out[1:]:
        assert_close(found, held_out[0])


def test_a_batch_has_the_images_and_flips_of_the_sampler(settings):
    config = settings(encode_every_step=True)
    train = open_images(config).train
    vae = freeze(load_autoencoder(config.vae))
    source = open_source(settings())
    sampler = GlobalBatchSampler(40, ProcessRows(8), config.seed, 3)
    for keys, batch in islice(zip(sampler, source.batches(3), strict=False), 6):
        images = torch.stack([train[key]["images"] for key in keys])
        expected = encode_posteriors(vae, images)
        torch.testing.assert_close(batch.posteriors.mean, expected.mean, rtol=0, atol=1e-4)


def test_all_sources_have_the_same_attributes(settings, made):
    every, cached, streamed = (
        open_source(settings(**changes))
        for changes in ({"encode_every_step": True}, {"latents": made}, {"latents": made, **STREAM})
    )
    for source in (cached, streamed):
        assert source.image_shape == every.image_shape == (1, 32, 32)
        assert source.id2label == every.id2label
        assert source.validation_fingerprint == every.validation_fingerprint
        line = "latents of 40 training images of fashion_mnist, 12 held out"
        assert source.summary == [line]
        assert (source.encode_seconds, source.encoded_images) == (0.0, 0)
        assert_close(source.held_out(), every.held_out())
    assert every.summary[0].startswith("fashion_mnist: 40 images to train on of ")


def test_a_part_of_the_held_out_images_is_evenly_spaced(settings, made, caplog):
    caplog.set_level("INFO", "hf_latent")
    line = "fewer held out than --max_validation_samples: all of them are used"
    whole = open_source(settings(latents=made, max_validation_samples=99)).held_out()
    assert caplog.messages.count(line) == 1
    some = open_source(settings(latents=made, max_validation_samples=4)).held_out()
    assert caplog.messages.count(line) == 1
    assert len(whole) == 12
    assert torch.equal(some.posteriors.mean, whole.posteriors.mean[[0, 3, 6, 9]])


def test_a_stream_has_the_images_of_the_cache(settings, made):
    source = open_source(settings(latents=made, **STREAM))
    images = {
        tuple(row.flatten().tolist())
        for batch in islice(source.batches(0), 5)
        for row in batch.posteriors.mean
    }
    shards = open_source(settings(latents=made)).cache.train
    rows = torch.arange(40)
    both = [shards.read(rows, torch.full((40,), bool(view))).posteriors.mean for view in range(2)]
    known = {tuple(row.flatten().tolist()): n % 40 for n, row in enumerate(torch.cat(both))}
    assert sorted(known[image] for image in images) == list(range(40))
    later = list(islice(source.batches(2), 2))
    for found, expected in zip(later, islice(source.batches(0), 2, 4), strict=True):
        assert_same_batch(found, expected)


def test_encoding_in_the_run_is_timed_and_counted(settings, tmp_path):
    source = open_source(settings())
    assert source.encode_seconds > 0
    assert source.encoded_images == 40 + 12
    assert (tmp_path / "run" / "latents" / "manifest.json").is_file()
    plain = open_source(settings(horizontal_flip=False, output_dir=str(tmp_path / "plain")))
    assert plain.encoded_images == 40 + 12


REFUSED = [
    ({"resize_mode": "crop"}, "another preprocessing (pad, the run's --resize_mode is crop)"),
    ({"resolution": 40}, "another resolution (32x32, the run's --resolution is 40)"),
    ({"channels": 3}, "another number of channels (1, the run's is 3)"),
    ({"validation_fingerprint": "f" * 16}, "another set of held-out images (fingerprint"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED)
@pytest.mark.parametrize("stream", [{}, STREAM])
def test_a_cache_that_does_not_fit_is_refused_and_leaves_no_folder(
    settings, made, tmp_path, changes, message, stream
):
    text = user_error(lambda: train_denoiser(settings(latents=made, **stream, **changes)))
    assert text.startswith(f"{made}: manifest.json has another")
    assert message in text
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("stream", [{}, STREAM])
@pytest.mark.parametrize("other", ["weights", "scaling_factor"])
def test_a_cache_of_another_autoencoder_is_refused(settings, made, tmp_path, stream, other):
    changes = {"scaling_factor": 0.5} if other == "scaling_factor" else {}
    vae = save_autoencoder(tmp_path / "other", **changes)
    if other == "weights":
        changed = load_autoencoder(vae)
        changed.quant_conv.bias.data[0] += 1e-6
        changed.save_pretrained(vae)
    text = user_error(lambda: train_denoiser(settings(latents=made, vae=vae, **stream)))
    assert "manifest.json has another autoencoder (a local one, " in text
    assert "pass the --vae that it was encoded with" in text


@pytest.mark.parametrize("stream", [{}, STREAM])
def test_mirror_images_that_are_not_read_are_a_warning(settings, made, capsys, stream):
    line = "warning: the cache has mirror images too; --horizontal_flip true reads them"
    open_source(settings(latents=made, horizontal_flip=False, **stream))
    assert line in capsys.readouterr().err
    open_source(settings(latents=made, **stream))
    assert line not in capsys.readouterr().err


@pytest.mark.parametrize("stream", [{}, STREAM])
def test_with_flips_a_cache_without_mirror_images_is_refused(
    settings, vae_folder, tmp_path, stream
):
    plain = tmp_path / "plain"
    encode_latents(encode_settings(vae_folder, plain, horizontal_flip=False))
    text = user_error(lambda: train_denoiser(settings(latents=plain, **stream)))
    assert "it has no mirror images" in text
    open_source(settings(latents=plain, horizontal_flip=False, **stream))


@pytest.mark.parametrize("stream", [{}, STREAM])
def test_an_unfinished_cache_is_refused(settings, cache, stream):
    manifest = read_json(cache)
    del manifest["shards"]
    write_manifest(cache, manifest)
    text = user_error(lambda: train_denoiser(settings(latents=cache, **stream)))
    assert text.startswith(f"{cache} is not finished")


@pytest.mark.parametrize("damage", [flip_a_bit, cut_short, Path.unlink])
@pytest.mark.parametrize("name", ["train-000002.safetensors", "validation-000001.safetensors"])
def test_a_damaged_file_is_named_before_the_first_step(settings, cache, damage, name):
    damage(cache / name)
    text = user_error(lambda: open_source(settings(latents=cache)))
    assert text.startswith(f"{cache / name} is ")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stream_lanes": 8}, "--stream_lanes 8 needs as many shards"),
        ({"stream_lanes": 3}, "it must divide the global batch (8 images)"),
        ({"dataloader_num_workers": 3}, "--dataloader_num_workers 3 does not fit"),
    ],
)
def test_a_stream_that_does_not_fit_leaves_no_folder(settings, made, tmp_path, changes, message):
    text = user_error(lambda: train_denoiser(settings(latents=made, **STREAM | changes)))
    assert message in text
    assert not (tmp_path / "run").exists()


def test_a_damaged_file_ends_the_command_with_one_line_and_status_2(settings, cache, capsys):
    flip_a_bit(cache / "train-000001.safetensors")
    for changes in ({}, STREAM | {"dataloader_num_workers": 1}):
        config = settings(latents=cache, **changes)
        flags = [f"--{x.name}={getattr(config, x.name)}" for x in fields(config)]
        flags = [flag for flag in flags if not flag.endswith("=None")]
        with pytest.raises(SystemExit) as stopped:
            run_command(DenoiserConfig, train_denoiser, [*flags, "--overwrite_output_dir"])
        assert stopped.value.code == 2
        line = capsys.readouterr().err.split("error: ")[-1]  # after the progress bar
        assert line.startswith(f"{cache}/train-000001.safetensors is damaged: its checksum")
        assert line.count("\n") == 1
        assert "Traceback" not in line


@pytest.mark.slow
def test_all_sources_of_latents_give_the_same_losses(settings, made, tmp_path, monkeypatch):
    monkeypatch.setattr(TrainingClock, "LOGGING_STEPS", 1)
    losses = {}
    for name, changes in (
        ("beforehand", {"latents": made}),
        ("in the run", {}),
        ("every step", {"encode_every_step": True}),
    ):
        run = tmp_path / name
        train_denoiser(settings(output_dir=str(run), **changes))
        lines = [json.loads(line) for line in (run / "logs" / "losses.jsonl").open()]
        losses[name] = [
            line[key] for line in lines for key in ("train_loss", "validation_loss") if key in line
        ]
        assert (run / "latents").exists() == (name == "in the run")
    assert len(losses["beforehand"]) == 6
    for name in ("in the run", "every step"):
        assert losses[name] == pytest.approx(losses["beforehand"], abs=1e-4), name


def test_latents_of_another_run_are_replaced_only_on_request(settings, tmp_path):
    open_source(settings())
    before = all_bytes(tmp_path / "run" / "latents")
    other = settings(max_train_samples=30)
    # The images are open already, as in a resumed run.
    text = user_error(lambda: open_source(other, open_images(other)))
    assert text.startswith(
        f"{tmp_path / 'run' / 'latents'}/manifest.json has another set of images"
    )
    assert all_bytes(tmp_path / "run" / "latents") == before
    source = open_source(replace(other, overwrite_output_dir=True))
    assert source.encoded_images == 30 + 12
    assert len(source.cache.train) == 30


def test_a_new_run_over_an_old_one_of_the_same_images_encodes_nothing(settings, monkeypatch):
    open_source(settings())
    monkeypatch.setattr(posteriors, "encode_posteriors", None)
    open_source(settings(overwrite_output_dir=True, seed=0, learning_rate=1e-4))
