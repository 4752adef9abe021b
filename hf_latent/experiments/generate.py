"""`hf-latent generate`: images from a saved model, one row a class."""

import csv
import os
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from jsonargparse.typing import PositiveInt
from PIL import Image

from hf_latent.command import Seed
from hf_latent.errors import UserError
from hf_latent.evaluation.config import SamplingConfig
from hf_latent.evaluation.images.sampling import (
    compile_denoiser,
    count_evaluations,
    load_pipeline,
    sample_images,
)
from hf_latent.evaluation.pictures import check_channels, image_grid, labelled_rows, save_picture
from hf_latent.evaluation.precision import choose_dtype, in_dtype
from hf_latent.lock import locks_output
from hf_latent.pipeline import LatentDiffusionPipeline
from hf_latent.pipeline.autoencoders import image_channels

RELEASED = "fashion-mnist"
COLUMNS, UNCONDITIONAL_COLUMNS = 4, 8


@dataclass(frozen=True, kw_only=True)
class GenerateConfig(SamplingConfig):
    """Generate images and save them as one picture, one row a class.

    Attributes:
        model: The folder of a model or of the run that trained one, the name of a released one, or
            an id on the Hub.
        class_labels: Labels or class names with commas between, used in turn, or one name. Several
            names with commas in them are quoted: '"cats, big",dogs'. By default all classes.
        num_images: Number of images. By default 4 a class, or 8 without classes.
        output: The picture to write.
        seed: Seed of the first image; each further image has the next seed.
        batch_size: Number of images to generate at a time.
    """

    model: str = RELEASED
    class_labels: int | str | None = None
    num_images: PositiveInt | None = None
    output: str = "samples.png"
    seed: Seed = 0
    batch_size: PositiveInt = 64


def choose_labels(
    class_labels: int | str | None, pipeline: LatentDiffusionPipeline
) -> list[int] | None:
    """Return the labels to generate; None for a model without classes."""
    if class_labels is None:
        return None if pipeline.num_classes is None else list(range(pipeline.num_classes))
    text = str(class_labels)
    try:
        return pipeline.get_label_ids([text])  # one name, which may have commas
    except ValueError:
        (names,) = csv.reader([" ".join(text.split())], skipinitialspace=True)
    try:
        return pipeline.get_label_ids([name.strip() for name in names or [text]])
    except ValueError as error:
        raise UserError(f"--class_labels: {error}") from error


@locks_output
def generate(config: GenerateConfig) -> Path:
    """Generate images and save them as one picture.

    Args:
        config: the model, the labels and the picture.

    Returns:
        The picture's path.

    Raises:
        UserError: if the model, a label, a number or the output file cannot be used.
    """
    output = Path(config.output)
    try:  # many formats of Pillow cannot be written, or not in colour
        Image.new("RGB", (8, 8)).save(
            BytesIO(), Image.registered_extensions()[output.suffix.lower()]
        )
    except Exception as error:
        raise UserError(
            f"--output {output} must end in .png or the suffix of another picture in colour"
        ) from error
    if not output.parent.is_dir() or output.is_dir() or not os.access(output.parent, os.W_OK):
        raise UserError(f"--output {output} cannot be written: choose a folder that exists")
    pipeline = load_pipeline(config.model, config.sampler, config.guide)
    labels = choose_labels(config.class_labels, pipeline)
    config.check_model(pipeline)
    count_evaluations(pipeline, config.num_inference_steps)
    check_channels(config.model, image_channels(pipeline.vae))
    pipeline = in_dtype(pipeline, choose_dtype(pipeline, config.dtype))
    default = UNCONDITIONAL_COLUMNS if labels is None else COLUMNS * len(labels)
    num_images = config.num_images or default
    if config.compile:
        compile_denoiser(pipeline)
    images = sample_images(
        pipeline,
        labels,
        num_images,
        config.seed,
        min(config.batch_size, num_images),
        config.guidance_scale,
        config.num_inference_steps,
        config.interval,
        whole_batches=config.compile,
    )
    if labels is None:
        picture = image_grid(images, UNCONDITIONAL_COLUMNS)
    else:
        picture = labelled_rows(images, labels[:num_images], pipeline.id2label)
    save_picture(output, picture)
    print(f"{num_images} images: {output}")
    return output
