"""The generated images of an evaluation: kept on disk with their vectors, and judged by class."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from hf_latent.data.images.dataset import ImageDataset
from hf_latent.data.images.pixels import to_uint8
from hf_latent.data.shards import Shards, write_shards
from hf_latent.evaluation.config import EvaluateConfig
from hf_latent.evaluation.features.extractors import FeatureExtractor
from hf_latent.evaluation.images.reference import RealImages
from hf_latent.evaluation.images.sampling import compile_denoiser, sample_images
from hf_latent.evaluation.measures.classifier import (
    LabelledImages,
    choose_epochs,
    measure_accuracy,
    train_classifier,
)
from hf_latent.models.frozen import hash_weights
from hf_latent.pipeline import LatentDiffusionPipeline


@torch.no_grad()
def write_samples(
    pipeline: LatentDiffusionPipeline,
    class_labels: torch.Tensor | None,
    count: int,
    config: EvaluateConfig,
    spaces: dict[str, FeatureExtractor],
    bar: tqdm,
    prompts: Sequence[str] | None = None,
    name: str = "generated",
) -> Shards:
    """Generate images into `output_dir/NAME`; a killed run's images there are kept.

    Images of other settings are replaced only with `overwrite_output_dir`.

    Args:
        class_labels: `(count,)` int64, of each image; None for a model without classes.
        config: how to sample; image i has the seed `seed + i`.
        spaces: extractors by name. The vectors of each image and of its mirror image are kept.
        prompts: of each image; None for a model without prompts.
        name: of the folder.

    Returns:
        Shards of `images` `(N, C, H, W)` uint8, of `class_labels` if there are any, and of `NAME`
        and `NAME_mirrored` for each space.
    """
    steps, guidance = config.choose_sampling(pipeline)
    if config.compile:
        compile_denoiser(pipeline)

    def make_batch(rows: range) -> dict[str, torch.Tensor]:
        labels = None if class_labels is None else class_labels[rows.start : rows.stop]
        samples = sample_images(
            pipeline,
            None if labels is None else labels.tolist(),
            len(rows),
            config.seed + rows.start,
            config.batch_size,
            guidance.scale,
            steps,
            guidance.interval,
            whole_batches=config.compile,
            prompts=prompts and prompts[rows.start : rows.stop],
        )
        images = to_uint8(samples * 2 - 1)
        tensors = {"images": images} | ({} if labels is None else {"class_labels": labels})
        for name, extractor in spaces.items():
            tensors |= {name: extractor(images), f"{name}_mirrored": extractor(images.flip(3))}
        return tensors

    def make_rows(rows: range) -> dict[str, torch.Tensor]:
        starts = range(rows.start, rows.stop, config.batch_size)
        parts = [make_batch(range(x, min(x + config.batch_size, rows.stop))) for x in starts]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    identity = {
        "seed": config.seed,
        "guidance_scale": guidance.scale,
        "guidance_interval": guidance.interval,
        "num_inference_steps": steps,
        "unet": hash_weights(pipeline.unet),
        "vae": hash_weights(pipeline.vae),
        "scheduler_class": type(pipeline.scheduler).__name__,
        "scheduler": {k: v for k, v in pipeline.scheduler.config.items() if k[0] != "_"},
        "class_labels": None if class_labels is None else class_labels.tolist(),
        "preprocessing": {name: x.preprocessing for name, x in spaces.items()},
    }
    if pipeline.guide_unet is not None:
        identity["guide_unet"] = hash_weights(pipeline.guide_unet)
    if prompts is not None:
        identity |= {"text_encoder": hash_weights(pipeline.text_encoder)}
        identity |= {"prompts": hash_tokens(pipeline.tokenizer, prompts)}
    folder = Path(config.output_dir) / name
    replace = config.overwrite_output_dir
    return write_shards(folder, count, make_rows, identity, bar.update, replace)


def hash_tokens(tokenizer: Any, prompts: Sequence[str]) -> str:
    """Return the SHA-256 of what a text encoder sees of prompts, each cut to its length."""
    length = tokenizer.model_max_length
    tokens = tokenizer(list(prompts), padding="max_length", max_length=length, truncation=True)
    return hashlib.sha256(repr(tokens.input_ids).encode()).hexdigest()


def labelled_real_images(dataset: ImageDataset) -> LabelledImages:
    """Return a data set's images, rounded to 8 bit as generated ones are, and their labels."""
    labels = dataset.labels
    assert labels is not None
    return LabelledImages(
        lambda rows: (dataset.read_uint8(rows) / 127.5 - 1, labels[rows]),
        len(dataset),
        dataset.is_measured,
    )


def labelled_samples(samples: Shards, is_measured: bool = False) -> LabelledImages:
    """Return generated images and the labels that they were generated for."""
    return LabelledImages(
        lambda rows: (
            samples.read("images", rows) / 127.5 - 1,
            samples.read("class_labels", rows),
        ),
        len(samples),
        is_measured,
    )


def measure_classes(
    samples: Shards, perfect: Shards, real: RealImages, num_classes: int, seed: int, bar: tqdm
) -> dict[str, Any]:
    """Measure whether samples show their classes, and how well they represent the real ones.

    Label agreement: how often a classifier trained on real images predicts the label that a sample
    was generated for. Classification accuracy score (Ravuri and Vinyals 2019): the accuracy on real
    held-out images of a classifier trained on the samples alone, beside one trained on as many real
    images.

    Args:
        samples: from `write_samples`, with class labels.
        perfect: from `write_perfect_samples`, with class labels.
        real: the real images. All training images train the judge of label agreement.

    Returns:
        Flat figures; those of `perfect` begin with `floor_`.
    """
    generated, perfect_images = (
        labelled_samples(x, real.train.is_measured) for x in (samples, perfect)
    )
    test = labelled_real_images(real.held_out)
    trained_on = {
        "judge": labelled_real_images(real.train),
        "real": labelled_real_images(real.subset(real.reference)),
        "generated": generated,
        "perfect": perfect_images,
    }
    bar.total = sum(x.length * choose_epochs(x.length) for x in trained_on.values())
    judge, on_real, on_generated, on_perfect = (
        train_classifier(x, num_classes, seed, choose_epochs(x.length), on_images=bar.update)
        for x in trained_on.values()
    )
    return {
        "label_agreement": measure_accuracy(judge, generated),
        "floor_label_agreement": measure_accuracy(judge, perfect_images),
        "label_agreement_judge_train_images": len(real.train),
        "label_agreement_judge_real_accuracy": measure_accuracy(judge, test),
        "train_on_generated_test_on_real_accuracy": measure_accuracy(on_generated, test),
        "floor_train_on_generated_test_on_real_accuracy": measure_accuracy(on_perfect, test),
        "train_on_real_test_on_real_accuracy": measure_accuracy(on_real, test),
    }
