"""The generated images of an evaluation: kept on disk with their vectors, and judged by class."""

from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from hf_latent.data.images.dataset import ImageDataset
from hf_latent.data.images.pixels import to_uint8
from hf_latent.data.shards import Shards, write_shards
from hf_latent.evaluation.config import EvaluateConfig
from hf_latent.evaluation.features.extractors import FeatureExtractor
from hf_latent.evaluation.images.reference import RealImages
from hf_latent.evaluation.images.sampling import choose_guidance, sample_images
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
) -> Shards:
    """Generate images into `output_dir/generated`, or go on where a killed run was.

    Args:
        pipeline: the model.
        class_labels: `(count,)` int64, of each image; None for a model without classes.
        count: how many.
        config: how they are drawn; image i is of seed `seed + i`.
        spaces: extractors by name; each image's vectors are kept, and its mirror image's.
        bar: is told how many images are done.

    Returns:
        Shards of `images` `(N, C, H, W)` uint8, of `class_labels` where there are any, and of
        `NAME` and `NAME_mirrored` for each space.
    """

    guidance = choose_guidance(pipeline, config.guidance_scale, config.interval)

    def make_batch(rows: range) -> dict[str, torch.Tensor]:
        labels = None if class_labels is None else class_labels[rows.start : rows.stop]
        drawn = sample_images(
            pipeline,
            None if labels is None else labels.tolist(),
            len(rows),
            config.seed + rows.start,
            config.batch_size,
            guidance.scale,
            config.num_inference_steps,
            guidance.interval,
        )
        images = to_uint8(drawn * 2 - 1)
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
        "num_inference_steps": config.num_inference_steps,
        "unet": hash_weights(pipeline.unet),
        "vae": hash_weights(pipeline.vae),
        "scheduler_class": type(pipeline.scheduler).__name__,
        "scheduler": {k: v for k, v in pipeline.scheduler.config.items() if k[0] != "_"},
        "class_labels": None if class_labels is None else class_labels.tolist(),
        "preprocessing": {name: x.preprocessing for name, x in spaces.items()},
    }
    if pipeline.guide_unet is not None:
        identity["guide_unet"] = hash_weights(pipeline.guide_unet)
    folder = Path(config.output_dir) / "generated"
    return write_shards(folder, count, make_rows, identity, bar.update)


def real_images(dataset: ImageDataset) -> LabelledImages:
    """Serve a data set's images, as 8 bit have them, and their labels."""
    labels = dataset.labels
    assert labels is not None
    return LabelledImages(
        lambda rows: (dataset.read_uint8(rows) / 127.5 - 1, labels[rows]), len(dataset)
    )


def generated_images(samples: Shards) -> LabelledImages:
    """Serve generated images and the labels that were asked for."""
    return LabelledImages(
        lambda rows: (
            samples.read("images", rows) / 127.5 - 1,
            samples.read("class_labels", rows),
        ),
        len(samples),
    )


def measure_classes(
    samples: Shards, real: RealImages, num_classes: int, seed: int, bar: tqdm
) -> dict[str, Any]:
    """Measure whether samples show their classes, and all that real images of a class show.

    Label agreement asks the first: how often a classifier trained on real images sees the label
    that was asked for. The second is asked by training a classifier on the samples alone and
    testing it on real held-out images (Ravuri and Vinyals 2019, classification accuracy score),
    beside one that is trained on as many real images.

    Args:
        samples: of `write_samples`, with class labels.
        real: all training images teach the judge of label agreement, and those of the reference,
            as many as there are samples, the other; the held-out ones test.
        num_classes: how many classes.
        seed: of the classifiers.
        bar: is told how many images are done.

    Returns:
        Flat figures.
    """
    generated, test = generated_images(samples), real_images(real.held_out)
    trained_on = {
        "judge": real_images(real.train),
        "real": real_images(real.subset(real.reference)),
        "generated": generated,
    }
    bar.total = sum(x.length * choose_epochs(x.length) for x in trained_on.values())
    judge, on_real, on_generated = (
        train_classifier(x, num_classes, seed, choose_epochs(x.length), on_images=bar.update)
        for x in trained_on.values()
    )
    return {
        "label_agreement": measure_accuracy(judge, generated),
        "label_agreement_judge_train_images": len(real.train),
        "label_agreement_judge_real_accuracy": measure_accuracy(judge, test),
        "train_on_generated_test_on_real_accuracy": measure_accuracy(on_generated, test),
        "train_on_real_test_on_real_accuracy": measure_accuracy(on_real, test),
    }
