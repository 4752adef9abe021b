"""`hf-latent generate`: images from a saved model, as a picture or as values of the data."""

import csv
import logging
from dataclasses import dataclass
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from jsonargparse.typing import PositiveInt
from PIL import Image

from hf_latent.command import Seed
from hf_latent.errors import UserError, cause_of
from hf_latent.evaluation.config import SamplingConfig
from hf_latent.evaluation.images.sampling import (
    compile_denoiser,
    count_evaluations,
    load_pipeline,
    sample_images,
)
from hf_latent.evaluation.pictures import image_grid, labelled_rows, save_picture
from hf_latent.evaluation.precision import choose_dtype, in_dtype
from hf_latent.lock import locks_output
from hf_latent.output import check_output_file, replaced_whole
from hf_latent.pipeline import LatentDiffusionPipeline
from hf_latent.pipeline.conditions import has_prompts
from hf_latent.pipeline.decode import IMAGE_VALUES, shown_channels, to_values
from hf_latent.pipeline.denoise import Guidance
from hf_latent.pipeline.prompts import clean_text, describe_cut

logger = logging.getLogger(__name__)

RELEASED = "fashion-mnist"
COLUMNS, UNLABELLED_COLUMNS = 4, 8
TIFF, NPY = (".tif", ".tiff"), ".npy"
NOT_IN_OME = ("float16", "int64", "uint64")


@dataclass(frozen=True, kw_only=True)
class GenerateConfig(SamplingConfig):
    """Generate images into one picture, one row a class or prompt; or in the data's own values.

    Attributes:
        model: The folder of a model or of the run that trained one, the name of a released one, or
            an id on the Hub.
        class_labels: Labels or class names with commas between, used in turn, or one name. Several
            names with commas in them are quoted: '"cats, big",dogs'. By default all classes; with
            prompts none.
        prompt: What a model that was trained on captions draws. By default the empty prompt.
        prompts_file: A text file in UTF-8 with a prompt a line, used in turn.
        negative_prompt: What guidance leads a model of captions away from.
        num_images: Number of images. By default 4 a class or line of prompts_file, or else 8.
        output: The picture to write. If the model was trained with a value range, .tiff and .npy
            are not pictures but have all channels in the data's own values and type: .tiff is an
            OME-TIFF with the axes TCYX (CYX for one image), .npy is (images, H, W, C).
        seed: Seed of the first image; each further image has the next seed.
        batch_size: Number of images to generate at a time.
    """

    model: str = RELEASED
    class_labels: int | str | None = None
    prompt: str | None = None
    prompts_file: str | None = None
    negative_prompt: str | None = None
    num_images: PositiveInt | None = None
    output: str = "samples.png"
    seed: Seed = 0
    batch_size: PositiveInt = 64

    def __post_init__(self) -> None:
        """Check the values; errors name the flag."""
        super().__post_init__()
        if self.prompt is not None and self.prompts_file is not None:
            raise UserError("--prompt and --prompts_file cannot go together: pass one of them")

    def read_prompts(self) -> list[str]:
        """Return the prompts as captions are read, in Unicode's form NFC and with single spaces.

        Raises:
            UserError: if the file has none, or cannot be read.
        """
        if self.prompts_file is None:
            return [clean_text(self.prompt)] if self.prompt else []
        try:
            with open(self.prompts_file, encoding="utf-8-sig") as lines:
                prompts = [prompt for line in lines if (prompt := clean_text(line))]
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"--prompts_file {self.prompts_file} cannot be read as text in UTF-8 "
                f"({cause_of(error)}): write a prompt a line"
            ) from error
        if not prompts:
            raise UserError(f"--prompts_file {self.prompts_file} is empty: write a prompt a line")
        return prompts


def check_prompts(
    config: GenerateConfig, prompts: list[str], pipeline: LatentDiffusionPipeline
) -> None:
    """Check that prompts are for a model; print a warning if any are cut.

    Raises:
        UserError: if the model has no prompts.
    """
    if not has_prompts(pipeline.unet):
        for name in ("prompt", "prompts_file", "negative_prompt"):
            if getattr(config, name) is not None:
                remedy = "leave it out" if pipeline.num_classes is None else "use --class_labels"
                raise UserError(
                    f"--{name} is for models that were trained on captions, and {config.model} "
                    f"was not: {remedy}"
                )
        return
    texts = [*prompts, *filter(None, [config.negative_prompt])]
    if texts and (cut := describe_cut(pipeline.tokenizer, texts)):
        logger.warning(cut)


def choose_guidance(
    config: GenerateConfig, pipeline: LatentDiffusionPipeline, conditional: bool
) -> tuple[int, Guidance]:
    """Return the number of steps and the guidance.

    Args:
        conditional: whether classes or prompts are drawn.

    Raises:
        UserError: if they do not fit the model, or there is no guidance by a negative prompt.
    """
    steps, guidance = config.choose_sampling(pipeline, conditional)
    count_evaluations(pipeline, steps)
    by_null = guidance.scale != 1 and pipeline.guide_unet is None
    if config.negative_prompt is not None and not by_null:
        raise UserError(
            "--negative_prompt needs classifier-free guidance, which is off with a guide, at "
            "--guidance_scale 1 and in a distilled model: leave it out"
        )
    return steps, guidance


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


def check_output(output: Path) -> None:
    """Check that a file of this name can be written.

    Raises:
        UserError: if it cannot.
    """
    try:  # many formats of Pillow cannot be written, or not in colour
        if output.suffix.lower() != NPY:
            file_format = Image.registered_extensions()[output.suffix.lower()]
            Image.new("RGB", (8, 8)).save(BytesIO(), file_format)
    except Exception as error:
        raise UserError(
            f"--output {output} must end in .png or the suffix of another picture in colour"
        ) from error
    check_output_file(output)


def wants_values(output: Path, pipeline: LatentDiffusionPipeline) -> bool:
    """Return whether a file is for the data's own values, and not a picture.

    Raises:
        UserError: if the model has none, or the file cannot be written.
    """
    suffix, has_values = output.suffix.lower(), IMAGE_VALUES in pipeline.vae.config
    if suffix == NPY and not has_values:
        raise UserError(f"--output {output}: the model was trained without a value range: use .png")
    if suffix in TIFF and has_values and find_spec("tifffile") is None:
        raise UserError(f"--output {output} needs tifffile: pip install tifffile")
    dtype = pipeline.vae.config[IMAGE_VALUES]["dtype"] if has_values else None
    if suffix in TIFF and dtype in NOT_IN_OME:
        raise UserError(f"--output {output}: OME-TIFF has no values of {dtype}: use .npy")
    return has_values and suffix in (*TIFF, NPY)


def save_values(output: Path, images: torch.Tensor, pipeline: LatentDiffusionPipeline) -> None:
    """Save images `(B, C, H, W)` in [0, 1] in the values and the type of the model's data."""
    values = to_values(pipeline.vae, images * 2 - 1).numpy()
    dtype = np.dtype(pipeline.vae.config[IMAGE_VALUES]["dtype"])
    if dtype.kind in "iu":
        values = values.round().clip(np.iinfo(dtype).min, np.iinfo(dtype).max)
    values = values.astype(dtype)
    with replaced_whole(output) as temporary:
        if output.suffix.lower() == NPY:
            np.save(temporary, values.transpose(0, 2, 3, 1))
            return
        import tifffile

        values, axes = (values[0], "CYX") if len(values) == 1 else (values, "TCYX")
        tifffile.imwrite(
            temporary, values, ome=True, metadata={"axes": axes}, photometric="minisblack"
        )


@locks_output
def generate(config: GenerateConfig) -> Path:
    """Generate images and save them in one file.

    Args:
        config: the model, the labels, the prompts and the file.

    Returns:
        The file's path.

    Raises:
        UserError: if the model, a label, a prompt, a number or a file cannot be used.
    """
    output, prompts = Path(config.output), config.read_prompts()
    check_output(output)
    pipeline = load_pipeline(config.model, config.sampler, config.guide)
    check_prompts(config, prompts, pipeline)
    labels = None
    if not prompts or config.class_labels is not None:
        labels = choose_labels(config.class_labels, pipeline)
    steps, guidance = choose_guidance(
        config, pipeline, bool(labels or prompts or config.negative_prompt)
    )
    has_values = wants_values(output, pipeline)
    pipeline = in_dtype(pipeline, choose_dtype(pipeline, config.dtype))
    rows = list(range(len(prompts))) if len(prompts) > 1 else labels
    num_images = config.num_images or (UNLABELLED_COLUMNS if rows is None else COLUMNS * len(rows))
    if config.compile:
        compile_denoiser(pipeline)
    images = sample_images(
        pipeline,
        labels,
        num_images,
        config.seed,
        min(config.batch_size, num_images),
        guidance.scale,
        steps,
        guidance.interval,
        whole_batches=config.compile,
        prompts=prompts or None,
        negative_prompt=config.negative_prompt,
    )
    shown = shown_channels(pipeline.vae)
    if has_values:
        save_values(output, images, pipeline)
    elif rows is None:
        save_picture(output, image_grid(images, UNLABELLED_COLUMNS, shown=shown))
    else:
        names = dict(enumerate(prompts)) if len(prompts) > 1 else pipeline.id2label
        save_picture(output, labelled_rows(images, rows[:num_images], names, shown))
    print(f"{num_images} images: {output}")
    return output
