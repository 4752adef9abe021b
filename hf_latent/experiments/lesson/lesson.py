"""`hf-latent lesson`: the claims about latent space, measured on the reader's own machine."""

import inspect
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from jsonargparse.typing import PositiveFloat, PositiveInt

from hf_latent.command import Seed, Settings
from hf_latent.data.images.config import ImagesConfig
from hf_latent.data.images.open import open_images
from hf_latent.evaluation.machine import machine_figures, shown_name
from hf_latent.evaluation.report_text import picture_address, render_template
from hf_latent.experiments.benchmark.space import SpaceBenchmarkConfig
from hf_latent.experiments.lesson import chapters
from hf_latent.experiments.lesson.chapters import Figures, Lesson
from hf_latent.experiments.lesson.claims import CLAIMS
from hf_latent.experiments.quickstart import IMAGES, RELEASED_AUTOENCODER
from hf_latent.lock import locks_output
from hf_latent.models.frozen import freeze
from hf_latent.models.load import load_autoencoder
from hf_latent.models.presets import measure_compression
from hf_latent.output import check_output_dir, read_json, write_json, write_text

PAGE = "lesson.html"
MEASURED_IMAGES = 500


class Chapter(NamedTuple):
    """A chapter of the lesson.

    Attributes:
        title: its heading.
        measure: returns its figures. Its source is shown.
        picture: the description of its picture, a PNG file of the chapter's name; None: it has
            none.
    """

    title: str
    measure: Callable[[Lesson], Figures]
    picture: str | None = None


CHAPTERS = {
    "values": Chapter("Latents are few", chapters.count_values),
    "kept": Chapter(
        "Encode: structure stays, pixel noise goes",
        chapters.measure_kept,
        "Held-out images and what their latents decode to, without and with noise on the pixels",
    ),
    "cost": Chapter(
        "A step costs less",
        chapters.time_steps,
        "Seconds and memory of a step on pixels and on latents, over the size of the image",
    ),
    "noise": Chapter(
        "Add noise: in latents it is still noise",
        chapters.measure_noise,
        "Images with more and more noise on their pixels, and decoded from latents with as much",
    ),
    "quality": Chapter(
        "Decode: the autoencoder is the limit",
        chapters.train_autoencoders,
        "Images decoded from fewer and fewer latent values, and after a longer training",
    ),
    "frozen": Chapter("The autoencoder stays frozen", chapters.train_on_frozen),
    "generation": Chapter(
        "Denoise: noise becomes an image",
        chapters.generate,
        "Noise and what it becomes in 20 steps, each decoded",
    ),
}


@dataclass(frozen=True, kw_only=True)
class LessonConfig(Settings):
    """Measure every claim of a lesson on latent space, and write the lesson as one HTML page.

    It takes 10 to 15 minutes on 2 CPU cores. The images are built in (Fashion-MNIST). Each
    chapter shows the code that measured it. A claim that a measurement contradicts is shown as
    contradicted.

    Attributes:
        output_dir: The folder for lesson.html, report.json, pictures and trainings.
        overwrite_output_dir: Replace the files of an earlier lesson; others stay.
        vae: An autoencoder of 32x32 grey images: its folder, or the name of a released one.
        train_minutes: Minutes of all trainings together.
        resolutions: Sizes in pixels of images whose denoising is timed, multiples of 64. By default
            64, 128 and 256.
        page: The address of a model's page, made by export --format page, relative to the lesson.
            The lesson shows it.
        seed: Seed of everything random.
    """

    output_dir: str = "hf-latent-lesson"
    overwrite_output_dir: bool = False
    vae: str = RELEASED_AUTOENCODER
    train_minutes: PositiveFloat = 6.0
    resolutions: list[PositiveInt] | None = None
    page: str | None = None
    seed: Seed = 0

    def __post_init__(self) -> None:
        """Check the sizes."""
        SpaceBenchmarkConfig(resolutions=self.resolutions)


def open_lesson(config: LessonConfig, output_dir: Path) -> Lesson:
    """Load the autoencoder and the images.

    Raises:
        UserError: if the autoencoder cannot be loaded or is not for the images.
    """
    vae = freeze(load_autoencoder(config.vae))
    splits = open_images(ImagesConfig(**IMAGES, seed=config.seed))
    measure_compression(vae, splits.image_shape)
    return Lesson(
        output_dir=output_dir,
        vae=vae,
        vae_name=config.vae,
        splits=splits,
        images=splits.validation.evenly_spaced(MEASURED_IMAGES).read(),
        resolutions=sorted(set(config.resolutions or (64, 128, 256))),
        train_minutes=config.train_minutes,
        seed=config.seed,
    )


@locks_output
def run_lesson(config: LessonConfig) -> dict[str, Any]:
    """Measure the chapters, write report.json, and lesson.html from it; return the report.

    Raises:
        UserError: if the folder cannot be written or the autoencoder does not fit.
    """
    start = time.perf_counter()
    output_dir = check_output_dir(config.output_dir, config.overwrite_output_dir)
    lesson = open_lesson(config, output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    figures: Figures = {}
    for number, chapter in enumerate(CHAPTERS.values(), start=1):
        print(f"{number} of {len(CHAPTERS)}: {chapter.title}", flush=True)
        figures |= chapter.measure(lesson)
    claims = [claim.check(figures) for claim in CLAIMS]
    report = {
        "vae": shown_name(config.vae),
        "images": len(lesson.images),
        "train_minutes": config.train_minutes,
        "page": config.page,
        "seed": config.seed,
        **figures,
        "claims": claims,
        "total_seconds": time.perf_counter() - start,
        **machine_figures(),
    }
    write_json(output_dir / "report.json", report)
    page = output_dir / PAGE
    write_text(page, render_lesson(output_dir))
    for claim in claims:
        if not claim["holds"]:
            print(f"contradicted: {claim['statement']} Measured: {claim['value']:.3g}")
    held = sum(claim["holds"] for claim in claims)
    print(f"{held} of {len(claims)} claims hold: {page}")
    return report


def render_lesson(folder: Path) -> str:
    """Return the page of a folder's report.json and pictures; it needs no other file."""
    shown = {
        name: {
            "title": chapter.title,
            "code": inspect.getsource(chapter.measure),
            "description": chapter.picture,
            "picture": chapter.picture and picture_address(folder / f"{name}.png"),
        }
        for name, chapter in CHAPTERS.items()
    }
    template = Path(__file__).with_suffix(".html")
    return render_template(template, read_json(folder / "report.json"), chapters=shown)
