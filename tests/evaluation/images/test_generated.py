import json
from dataclasses import replace

import pytest
import torch
from tqdm.auto import tqdm

from hf_latent.data import shards
from hf_latent.data.images.config import ImagesConfig
from hf_latent.data.images.open import open_images
from hf_latent.data.shards import write_shards
from hf_latent.errors import UserError
from hf_latent.evaluation.config import EvaluateConfig
from hf_latent.evaluation.features.extractors import LatentVectors
from hf_latent.evaluation.images.generated import labelled_samples, measure_classes, write_samples
from hf_latent.evaluation.images.reference import RealImages
from hf_latent.evaluation.measures import classifier
from hf_latent.models.presets import create_scheduler
from tests.conftest import count_calls
from tests.evaluation.features.short_vectors import ShortVectors

LABELS = torch.tensor([2, 0, 1, 1, 0, 2, 2, 1, 0, 0, 1])
COUNT = len(LABELS)


@pytest.fixture
def config(tmp_path):
    return EvaluateConfig(
        model="m", output_dir=str(tmp_path), seed=5, num_inference_steps=2, batch_size=3
    )


@pytest.fixture(autouse=True)
def four_rows_a_shard(monkeypatch):
    monkeypatch.setattr(shards, "SHARD_ROWS", 4)


def write(pipeline, config, labels=LABELS, spaces=None):
    with tqdm(disable=False) as bar:
        written = write_samples(pipeline, labels, COUNT, config, spaces or {}, bar)
        assert bar.n == COUNT
    return written


def everything(written, name):
    return torch.cat(list(written.select(name)))


def test_each_image_has_its_label_and_seed(pipeline, config):
    written = write(pipeline, config)
    images = everything(written, "images")
    assert (images.dtype, images.shape) == (torch.uint8, (COUNT, 1, 16, 16))
    assert torch.equal(everything(written, "class_labels"), LABELS)
    for row in (0, 3, 6, 10):
        (alone,) = pipeline(
            [int(LABELS[row])],
            generator=torch.Generator().manual_seed(5 + row),
            num_inference_steps=2,
            output_type="pt",
            return_dict=False,
        )
        difference = images[row].int() - (alone[0] * 255).round().int()
        assert difference.abs().max() <= 1
        other = images[(row + 1) % COUNT].int() - (alone[0] * 255).round().int()
        assert other.abs().max() > 1


def test_a_compiled_denoiser_gets_batches_of_one_size(pipeline, config, tmp_path, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda x, **options: compiled.append(x))
    expected = write(pipeline, replace(config, output_dir=str(tmp_path / "plain")))
    sizes = count_calls(pipeline.unet)
    written = write(pipeline, replace(config, compile=True))
    assert compiled == [pipeline.unet]
    assert set(sizes) == {2 * config.batch_size}
    difference = everything(written, "images").int() - everything(expected, "images").int()
    assert difference.abs().max() <= 1


def test_the_models_own_guidance_is_the_default(pipeline, config, tmp_path):
    own = {"guidance_scale": 3.0, "guidance_interval": "0.3,0.8"}
    asked = write(pipeline, replace(config, output_dir=str(tmp_path / "asked"), **own))
    plain = write(pipeline, replace(config, output_dir=str(tmp_path / "plain")))
    pipeline.register_to_config(guidance={"guidance_scale": 3.0, "guidance_interval": (0.3, 0.8)})
    drawn = write(pipeline, config)
    assert torch.equal(everything(drawn, "images"), everything(asked, "images"))
    assert not torch.equal(everything(drawn, "images"), everything(plain, "images"))


def test_the_models_own_steps_are_the_default_and_are_kept_with_the_images(
    distilled, config, tmp_path
):
    sizes = count_calls(distilled.unet)
    write(distilled, replace(config, num_inference_steps=None))
    assert sum(sizes) == 4 * COUNT
    manifest = json.loads((tmp_path / "generated" / "manifest.json").read_text())
    assert (manifest["num_inference_steps"], manifest["guidance_scale"]) == (4, 1)
    with pytest.raises(UserError, match=r"^--num_inference_steps does not fit"):
        write(distilled, replace(config, num_inference_steps=3))


def test_images_do_not_depend_on_shards_or_batches(pipeline, config, tmp_path, monkeypatch):
    small = everything(write(pipeline, config), "images").int()
    monkeypatch.setattr(shards, "SHARD_ROWS", 1000)
    other = replace(config, output_dir=str(tmp_path / "other"), batch_size=100)
    assert (everything(write(pipeline, other), "images") - small).abs().max() <= 1


def test_a_model_without_classes_has_no_labels(unconditional, config, tmp_path):
    write(unconditional, config, None, {"short": ShortVectors()})
    manifest = json.loads((tmp_path / "generated" / "manifest.json").read_text())
    assert manifest["class_labels"] is None
    (first, *_) = sorted((tmp_path / "generated").glob("*.safetensors"))
    with shards.safe_open(first, "pt") as file:
        assert set(file.keys()) == {"images", "short", "short_mirrored"}


def test_images_and_mirror_images_have_vectors(pipeline, config):
    spaces = {"short": ShortVectors(), "latents": LatentVectors(pipeline.vae)}
    written = write(pipeline, config, spaces=spaces)
    images = everything(written, "images")
    with torch.no_grad():
        for name, extractor in spaces.items():
            for key, shown in ((name, images), (f"{name}_mirrored", images.flip(3))):
                torch.testing.assert_close(
                    everything(written, key), extractor(shown), rtol=1e-4, atol=1e-4
                )


def test_a_killed_run_resumes_with_the_same_result(pipeline, config, tmp_path):
    whole = write(
        pipeline,
        replace(config, output_dir=str(tmp_path / "whole")),
        spaces=dict(one=ShortVectors()),
    )
    with pytest.raises(KeyboardInterrupt):
        write(pipeline, config, spaces={"one": ShortVectors(killed_after=11)})
    assert len(list((tmp_path / "generated").glob("*.safetensors"))) == 1
    second = ShortVectors()
    found = write(pipeline, config, spaces={"one": second})
    assert second.count == 2 * (COUNT - 4)
    for name in ("images", "class_labels", "one", "one_mirrored"):
        assert torch.equal(everything(found, name), everything(whole, name))
    assert write(pipeline, config, spaces={"one": ShortVectors(killed_after=0)})


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seed": 6}, "seed"),
        ({"num_inference_steps": 3}, "num_inference_steps"),
        ({"guidance_scale": 1.5}, "guidance_scale"),
    ],
)
def test_samples_with_other_settings_are_rejected(pipeline, config, tmp_path, changes, named):
    write(pipeline, config)
    with pytest.raises(UserError, match=f"generated was made with another {named}: remove"):
        write(pipeline, replace(config, **changes))


def test_samples_of_another_model_are_rejected(pipeline, config):
    write(pipeline, config, spaces={"one": ShortVectors()})
    with pytest.raises(UserError, match="another class_labels"):
        write(pipeline, config, labels=LABELS.flip(0), spaces={"one": ShortVectors()})
    with pytest.raises(UserError, match="another preprocessing"):
        write(pipeline, config, spaces={"one": ShortVectors("other")})
    scheduler = pipeline.scheduler
    pipeline.scheduler = create_scheduler("epsilon")
    with pytest.raises(UserError, match="another scheduler"):
        write(pipeline, config, spaces={"one": ShortVectors()})
    pipeline.scheduler = scheduler
    for part in ("unet", "vae"):
        parameter = next(getattr(pipeline, part).parameters())
        before = parameter.data.clone()
        parameter.data += 1
        with pytest.raises(UserError, match=f"another {part}"):
            write(pipeline, config, spaces={"one": ShortVectors()})
        parameter.data = before


@pytest.fixture(scope="module")
def splits():
    return open_images(ImagesConfig(resize_mode="pad", max_train_samples=1200))


def as_samples(dataset, labels, folder):
    """Return shards with real images instead of generated ones."""
    images = dataset.read_uint8(torch.arange(len(dataset)))
    tensors = {"images": images, "class_labels": labels}
    return write_shards(
        folder, len(dataset), lambda rows: {k: v[list(rows)] for k, v in tensors.items()}, {}
    )


def test_labelled_samples_have_their_labels(splits, tmp_path):
    dataset = splits.validation.evenly_spaced(10)
    given = labelled_samples(as_samples(dataset, dataset.labels, tmp_path))
    images, labels = given.read(torch.tensor([9, 2]))
    assert given.length == 10
    assert torch.equal(labels, dataset.labels[[9, 2]])
    expected = torch.stack([dataset[9]["images"], dataset[2]["images"]])
    torch.testing.assert_close(images, expected, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_real_images_as_samples_have_the_accuracy_of_real_images(splits, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_ROWS", 1000)
    monkeypatch.setattr(classifier, "WIDTHS", (8, 16, 32))
    train, half = splits.train, torch.arange(600)
    real = RealImages(train, splits.validation.evenly_spaced(500), half, half + 600)
    others = real.subset(real.other)

    perfect = as_samples(others, others.labels, tmp_path / "perfect")

    def measure(labels, folder):
        with tqdm(disable=False) as bar:
            samples = as_samples(others, labels, folder)
            figures = measure_classes(samples, perfect, real, 10, 0, bar)
            assert bar.n == bar.total > 0
        return figures

    figures = measure(others.labels, tmp_path / "good")
    assert figures["label_agreement_judge_train_images"] == 1200
    judged = figures["label_agreement_judge_real_accuracy"]
    reached = figures["train_on_real_test_on_real_accuracy"]
    assert judged >= reached > 0.7
    assert figures["label_agreement"] > judged - 0.05
    assert figures["train_on_generated_test_on_real_accuracy"] == pytest.approx(reached, abs=0.06)
    # Here the perfect samples are the same images.
    keys = ("label_agreement", "train_on_generated_test_on_real_accuracy")
    good = {f"floor_{key}": figures[key] for key in keys}
    assert figures.items() >= good.items()
    # With random labels, the images do not show what their labels say.
    labels = others.labels[torch.randperm(600, generator=torch.Generator().manual_seed(0))]
    figures = measure(labels, tmp_path / "bad")
    assert figures["label_agreement"] < 0.2
    assert figures["train_on_generated_test_on_real_accuracy"] < 0.4
    assert figures["train_on_real_test_on_real_accuracy"] == reached
    assert figures.items() >= good.items()
