import json
import math
from dataclasses import replace
from pathlib import Path

import datasets
import pytest
import torch
from diffusers import UNet2DModel
from PIL import Image

from hf_latent.data import shards
from hf_latent.data.images.open import open_images
from hf_latent.data.shards import Shards
from hf_latent.errors import UserError
from hf_latent.evaluation.config import EvaluateConfig
from hf_latent.evaluation.evaluate import evaluate
from hf_latent.evaluation.images.reference import RealImages
from hf_latent.evaluation.measures import generation, retrieval
from hf_latent.evaluation.measures.generation import compare_sets
from hf_latent.evaluation.pictures import GAP
from hf_latent.models.frozen import hash_weights
from hf_latent.models.presets import create_denoiser, create_scheduler
from hf_latent.pipeline import LatentDiffusionPipeline
from tests.conftest import NARROW_DENOISER, make_autoencoder
from tests.evaluation.features.short_vectors import ShortVectors, as_bytes
from tests.evaluation.measures.test_clip_score import save_clip
from tests.models.test_text_encoder import make_bert, make_tokenizer

TRAIN, IMAGES, HELD_OUT = 300, 40, 60
SPACES = ("features", "latents")
SPREAD = ("fd", "fd_subset_images", "fd_subset_values", "fd_subset_std", "kid", "kid_std")
SPREAD += ("kid_subsets", "kid_subset_images", "precision", "recall", "density", "coverage")
COPIES = ("found", "copies", "held_out_copies", "p_value", "ratio_smallest", "ratio_median")
COPIES += ("held_out_ratio_smallest", "held_out_ratio_median")
KEYS = {
    *("vae_weights_sha256", "unet_weights_sha256", "feature_extractor"),
    *("guide", "guide_unet_weights_sha256"),
    *("model", "data", "num_images", "reference_fingerprint", "preprocessing"),
    *("comparable_if_equal", "seed", "train_images", "train_exact_duplicates", "held_out_images"),
    *("validation_fingerprint", "guidance_scale", "num_inference_steps"),
    *("denoiser_evaluations_per_image", "sampler", "guidance_interval"),
    "sampling_dtype",
    *SPREAD,
    *(f"{kind}_{name}" for kind in ("real", "floor") for name in SPREAD),
    *("limit", "limit_reasons"),
    *(f"reconstruction_{name}" for name in ("psnr_db", "ssim", "images", "fd")),
    *("reconstruction_unpadded_psnr_db", "reconstruction_unpadded_ssim"),
    *("memorisation_copy_ratio", "memorisation_found"),
    *(f"memorisation_{space}_{x}" for x in COPIES for space in SPACES),
    *(f"train_near_duplicates_by_{space}" for space in SPACES),
    *(f"{x}_seconds" for x in ("setup", "real_vectors", "sampling", "reconstruction", "floor")),
    *(f"{x}_seconds" for x in ("distances", "memorisation_by_features", "memorisation_by_latents")),
    *(
        "pictures_seconds",
        "total_seconds",
        "peak_memory_mb",
        "device_name",
        "cpu_cores",
        "torch_threads",
    ),
    *("python_version", "torch_version", "diffusers_version"),
    *("bad_images", "held_out_from", "image_modes", "smallest_image", "median_image"),
    *("largest_image", "dropped_frames", "converted_profiles", "ignored_profiles", "classes"),
    *("smallest_class_images", "largest_class_images"),
}
CLASS_KEYS = {
    *("label_agreement", "label_agreement_judge_train_images", "floor_label_agreement"),
    "floor_train_on_generated_test_on_real_accuracy",
    *("label_agreement_judge_real_accuracy", "train_on_generated_test_on_real_accuracy"),
    *("train_on_real_test_on_real_accuracy", "classifiers_seconds"),
}
RETRIEVED = ("recall_at_1", "recall_at_5", "median_rank", "num_captions")
WORD_KEYS = {
    *(f"{prefix}retrieval_{name}" for prefix in ("", "real_") for name in RETRIEVED),
    *("retrieval_real_images", "retrieval_judge_train_images", "retrieval_seconds"),
    *("text_encoder_weights_sha256", "clip_model", "clip_score", "real_clip_score"),
    *("clip_weights_sha256", "clip_score_seconds", "captions", "images_without_captions"),
    "caption_samples_seconds",
}

OWN = {"guidance_scale": 3.0, "guidance_interval": (0, 0.8)}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Tiny untrained models of 32 x 32: with 10 classes, with 3, with none, and with a guide."""
    folder = tmp_path_factory.mktemp("models")
    for name, classes in (("ten", 10), ("three", 3), ("none", None), ("guided", None)):
        vae = make_autoencoder()
        unet, guide = (
            create_denoiser("tiny", vae, (1, 32, 32), classes, **NARROW_DENOISER) for _ in range(2)
        )
        pipeline = LatentDiffusionPipeline(vae, unet, create_scheduler("flow"))
        if name == "guided":
            pipeline.guide_unet = guide
            pipeline.register_to_config(guidance=OWN, num_inference_steps=1)
        pipeline.save_pretrained(folder / name)
    return folder


@pytest.fixture(autouse=True)
def few_held_out_images(monkeypatch):
    monkeypatch.setattr("hf_latent.evaluation.images.reference.LARGEST_DEFAULT", HELD_OUT)


@pytest.fixture
def config(models, tmp_path) -> EvaluateConfig:
    return EvaluateConfig(
        model=str(models / "ten"),
        output_dir=str(tmp_path / "out"),
        cache_dir=str(tmp_path / "cache"),
        resize_mode="pad",
        max_train_samples=TRAIN,
        num_images=IMAGES,
        num_inference_steps=1,
        batch_size=15,
    )


@pytest.fixture
def extract_with(monkeypatch):
    """Make `evaluate` use an extractor."""

    def use(extractor: ShortVectors) -> ShortVectors:
        monkeypatch.setattr(
            "hf_latent.evaluation.evaluate.load_feature_extractor", lambda name: extractor
        )
        return extractor

    use(ShortVectors())
    return use


@pytest.fixture
def model_with_words(tmp_path) -> str:
    """The folder of a tiny untrained model that draws from captions."""
    torch.manual_seed(0)
    vae, encoder, tokenizer = make_autoencoder(), make_bert(), make_tokenizer()
    tokenizer.model_max_length, encoder.config.use_attention_mask = 6, True
    unet = create_denoiser("tiny", vae, (1, 32, 32), text_width=16, **NARROW_DENOISER)
    words = {"text_encoder": encoder.eval(), "tokenizer": tokenizer}
    pipeline = LatentDiffusionPipeline(vae, unet, create_scheduler("flow"), **words)
    pipeline.save_pretrained(tmp_path / "words")
    return str(tmp_path / "words")


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")


def comparable(metrics: dict) -> dict:
    """Return the figures that do not differ from run to run."""
    return {k: v for k, v in metrics.items() if not k.endswith(("_seconds", "_memory_mb"))}


def real_pixels(config: EvaluateConfig) -> set[bytes]:
    splits = open_images(config.images_config((32, 32)))
    real = RealImages.choose(splits, IMAGES, config.seed)
    train = real.train.read_uint8(torch.arange(TRAIN))
    held_out = real.held_out.read_uint8(torch.arange(HELD_OUT))
    return as_bytes(torch.cat([train, held_out, held_out.flip(3)]))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "guidance", "evaluations"), [("ten", 2, 2), ("none", 1, 1), ("guided", 3, 1)]
)
def test_a_report_is_complete(
    config, models, capsys, request, monkeypatch, model, guidance, evaluations
):
    # Distances between long vectors take most of the time.
    monkeypatch.setattr(generation, "FD_SUBSETS", 2)
    if model != "ten":
        request.getfixturevalue("extract_with")
    dtype = "float32" if model == "ten" else "bfloat16"
    steps = None if model == "guided" else 1  # the model's own
    changes = {"model": str(models / model), "dtype": dtype, "num_inference_steps": steps}
    metrics = evaluate(replace(config, **changes))
    assert metrics["num_inference_steps"] == 1
    assert metrics["sampling_dtype"] == dtype
    unet = UNet2DModel.from_pretrained(models / model / "unet")
    assert metrics["unet_weights_sha256"] == hash_weights(unet)
    folder = models.parent / config.output_dir
    text = (folder / "metrics.json").read_text()
    assert json.loads(text, parse_constant=refuse) == json.loads(json.dumps(metrics))
    assert set(metrics) == (KEYS | CLASS_KEYS if model == "ten" else KEYS)
    numbers = [x for x in metrics.values() if isinstance(x, float | int)]
    assert all(map(math.isfinite, [*numbers, *metrics["fd_subset_values"]]))
    assert (metrics["model"], metrics["data"]) == (model, "fashion_mnist")
    assert (metrics["num_images"], metrics["train_images"]) == (IMAGES, TRAIN)
    assert metrics["held_out_images"] == metrics["reconstruction_images"] == HELD_OUT
    assert metrics["guidance_scale"] == guidance
    assert metrics["guidance_interval"] == ((0, 0.8) if model == "guided" else None)
    assert metrics["denoiser_evaluations_per_image"] == evaluations
    assert (metrics["guide"] == "guide_unet") == (model == "guided")
    assert (metrics["guide_unet_weights_sha256"] is None) == (model != "guided")
    assert ("efficientnet-lite0" in metrics["preprocessing"]) == (model == "ten")
    # Samples of an untrained model are further from real images than real ones are.
    assert metrics["fd"] > 1.5 * metrics["real_fd"] > 0
    assert metrics["kid"] > 0.01 + metrics["real_kid"]
    assert metrics["coverage"] < 0.3 < 0.9 < metrics["real_coverage"]
    assert metrics["memorisation_found"] is False
    pictures = sorted(path.name for path in folder.glob("*.png"))
    spaces = [f"{x}_by_{space}.png" for x in ("closest", "duplicates") for space in SPACES]
    assert pictures == sorted([*spaces, "samples.png", "reconstructions.png"])
    assert Image.open(folder / "closest_by_latents.png").size == (12 * 64 + 5 * GAP, 4 * 64)
    out = capsys.readouterr().out
    figures = "; ".join(f"{metrics[x]:.2f}" for x in ("fd", "floor_fd", "real_fd"))
    assert f"{IMAGES} generated images; with a perfect denoiser; real ones:\nFD {figures}\n" in out
    assert f"the {metrics['limit']} is the limit" in out
    assert ("label agreement" in out) == (model == "ten")


def test_a_model_with_words_is_judged_by_its_captions(
    config, model_with_words, extract_with, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(retrieval, "STEPS", 3)
    clip = save_clip(tmp_path / "clip")
    changes = {"model": model_with_words, "guidance_scale": 1.0, "clip_model": clip}
    metrics = evaluate(replace(config, **changes))
    assert set(metrics) == KEYS | WORD_KEYS
    assert metrics["retrieval_num_captions"] == 10  # the names of the classes
    assert metrics["retrieval_judge_train_images"] == TRAIN
    assert metrics["retrieval_real_images"] == HELD_OUT
    assert metrics["clip_model"] == "clip"
    for key in ("retrieval_recall_at_1", "retrieval_recall_at_5"):
        assert 0 <= metrics[key] <= 1 and 0 <= metrics[f"real_{key}"] <= 1
    out = capsys.readouterr().out
    ranks = "; ".join(f"{metrics[f'{x}retrieval_median_rank']:g}" for x in ("", "real_"))
    scores = "; ".join(f"{metrics[f'{x}clip_score']:.2f}" for x in ("", "real_"))
    assert "\nown caption among 10 held-out ones; of real images:\nrecall at 1 " in out
    assert f"\nmedian rank {ranks}\nCLIP score {scores}\n" in out
    path = Path(config.output_dir) / "samples.png"
    assert Image.open(path).size[1] == 20 + 64 * 16


def test_figures_compare_the_sets_that_they_name(config, extract_with):
    extractor = extract_with(ShortVectors())
    metrics = evaluate(replace(config, guidance_scale=0.0))
    assert metrics["guidance_scale"] == 0
    splits = open_images(config.images_config((32, 32)))
    real = RealImages.choose(splits, IMAGES, config.seed)
    samples = Shards(f"{config.output_dir}/generated", IMAGES, shards.SHARD_ROWS)
    wanted = {
        "reference": real.subset(real.reference).read_uint8(torch.arange(IMAGES)),
        "other": real.subset(real.other).read_uint8(torch.arange(IMAGES)),
        "samples": samples.read("images", torch.arange(IMAGES)),
    }
    with torch.no_grad():
        tensors = {name: extractor(images) for name, images in wanted.items()}
    vectors = shards.write_shards(f"{config.cache_dir}/a", IMAGES, lambda rows: tensors, {})
    reference = vectors.select("reference")
    expected = compare_sets(vectors.select("samples"), reference)
    expected |= compare_sets(vectors.select("other"), reference, "real_")
    assert {key: metrics[key] for key in expected} == {
        key: pytest.approx(value, rel=1e-3, abs=1e-6) for key, value in expected.items()
    }
    labels = samples.read("class_labels", torch.arange(IMAGES))
    assert torch.equal(labels, real.subset(real.reference).labels)
    assert metrics["reference_fingerprint"] == real.subset(real.reference).fingerprint


def test_a_second_run_reads_the_vectors_of_real_images_from_the_cache(config, models, extract_with):
    config = replace(config, model=str(models / "none"))
    first = extract_with(ShortVectors())
    metrics = evaluate(config)
    assert real_pixels(config) <= first.seen
    second = extract_with(ShortVectors())
    again = evaluate(replace(config, output_dir=config.output_dir + "2"))
    assert not real_pixels(config) & second.seen
    assert comparable(again) == comparable(metrics)
    # A finished run is not overwritten by default; a killed run resumes.
    with pytest.raises(UserError, match="has files in it"):
        evaluate(config)
    (Path(config.output_dir) / "metrics.json").unlink()
    # The samples and the perfect ones exist too: only reconstructions are new.
    third = extract_with(ShortVectors())
    assert comparable(evaluate(config)) == comparable(metrics)
    assert third.count == HELD_OUT
    assert not real_pixels(config) & third.seen


@pytest.mark.slow
def test_a_run_killed_while_sampling_resumes(config, models, extract_with, monkeypatch, tmp_path):
    config = replace(config, model=str(models / "none"))  # no classifiers are trained
    monkeypatch.setattr(shards, "SHARD_ROWS", 16)
    whole = evaluate(replace(config, output_dir=str(tmp_path / "whole")))
    real = TRAIN + 2 * HELD_OUT
    extract_with(ShortVectors(killed_after=2 * 16 + 20))
    killed = replace(config, cache_dir=str(tmp_path / "another cache"))
    with pytest.raises(KeyboardInterrupt):
        evaluate(killed)
    folder = tmp_path / "out"
    (first,) = (folder / "generated").glob("*.safetensors")
    assert [path.name for path in folder.iterdir()] == ["generated"]
    written = first.stat().st_mtime_ns
    second = extract_with(ShortVectors())
    metrics = evaluate(killed)
    assert second.count == 2 * (IMAGES - 16) + real + HELD_OUT + IMAGES
    assert first.stat().st_mtime_ns == written
    assert comparable(metrics) == comparable(whole)
    (folder / "metrics.json").unlink()
    (folder / "generated" / "notes.txt").write_text("mine")
    other = replace(killed, num_inference_steps=2)
    with pytest.raises(UserError, match="was made with another num_inference_steps: remove"):
        evaluate(other)
    assert first.stat().st_mtime_ns == written
    evaluate(replace(other, overwrite_output_dir=True))
    assert first.stat().st_mtime_ns > written
    assert (folder / "generated" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_images": 151}, "--num_images 151 does not fit 300 training images: it must be from"),
        ({"num_images": 9}, "--num_images 9 does not fit 300 training images"),
        ({"resolution": 16}, "--resolution 16, but the model makes images of 32x32: leave it out"),
        ({"resolution": 30}, "multiples of its downsampling factor 4"),
        ({"channels": 3}, "3 channels and the autoencoder takes 1"),
        ({"model": "three"}, "the model has 3 classes and fashion_mnist has 10"),
        (
            {"model": "none", "guidance_scale": 2.0},
            "--guidance_scale needs class_labels or a guide",
        ),
        ({"model": "nowhere"}, "no model found at"),
        ({"clip_model": "clip"}, "--clip_model is for a model with prompts: leave it out"),
        ({"data": "nowhere"}, "nowhere is not a source of images"),
        ({"data": "unlabelled"}, "the model has 10 classes and"),
        ({"model": "none", "data": "unlabelled", "validation_fraction": 1e-9}, "1 held-out image"),
    ],
)
def test_user_errors_are_one_line_and_write_nothing(
    config, extract_with, models, tmp_path, monkeypatch, changes, message
):
    changes = dict(changes)
    if "model" in changes:
        changes["model"] = str(models / changes["model"])
    if changes.get("data") == "unlabelled":
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
        (tmp_path / "unlabelled").mkdir()
        for level in range(40):
            Image.new("L", (32, 32), level).save(tmp_path / "unlabelled" / f"{level}.png")
        changes["data"] = str(tmp_path / "unlabelled")
    with pytest.raises(UserError) as error:
        evaluate(replace(config, **changes))
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists() and not (tmp_path / "cache").exists()


def test_a_folder_with_other_files_is_rejected_before_loading(config, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="has files in it: choose another, or pass") as error:
        evaluate(replace(config, model="nowhere"))
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="no model found at nowhere"):
        evaluate(replace(config, model="nowhere", overwrite_output_dir=True))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["notes.txt"]
