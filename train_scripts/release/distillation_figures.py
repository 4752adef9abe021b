"""Compare ways to distil a model into few steps: write docs/reports/distillation.json.

    OMP_NUM_THREADS=1 python train_scripts/release/distillation_figures.py TEACHER DATA RUNS

DATA has the teacher's images, RUNS is the folder of the trainings. A finished training is not
repeated. A minute is one of the processor's time: another program takes none of it.
"""

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_latent.data.images.config import ImagesConfig
from hf_latent.data.images.open import open_images
from hf_latent.evaluation.features.extractors import load_feature_extractor
from hf_latent.evaluation.images.sampling import choose_sampling, load_pipeline
from hf_latent.evaluation.machine import machine_figures, shown_name
from hf_latent.experiments.sweep.pair import RealBaseline, measure_generated
from hf_latent.experiments.sweep.sweep import measure_real_images
from hf_latent.output import read_json, write_json
from hf_latent.training.distillation import distill_denoiser
from hf_latent.training.distillation_config import DistillationConfig
from variant_figures import FASHION_MNIST

REPORT = Path(__file__).parents[2] / "docs" / "reports" / "distillation.json"
NUM_IMAGES, NUM_SEEDS = 2000, 2
TEACHER_STEPS = (8, 4, 2)


@dataclass(frozen=True)
class Student:
    """A student, and what it learns from.

    Attributes:
        name: of its folder and of its row.
        steps: its number of steps.
        minutes: of its training.
        teacher: the name of an earlier student; None: the teacher of all.
    """

    name: str
    steps: int
    minutes: float
    teacher: str | None = None


# Both ways to two steps take 12 minutes.
STUDENTS = [
    Student("4", 4, 6),
    Student("2-direct", 2, 12),
    Student("2-from-4", 2, 6, "4"),
    Student("1-from-2", 1, 6, "2-from-4"),
]


def measure(model: str, real: RealBaseline, steps: int | None = None) -> dict[str, Any]:
    """Draw images with a model's own guidance, and compare them with real ones."""
    pipeline = load_pipeline(model)
    number, guidance = choose_sampling(pipeline, steps)
    figures = measure_generated(pipeline, real, 0, NUM_SEEDS, number, guidance=guidance)
    return {"num_inference_steps": number, **figures}


def run_student(student: Student, teacher: str, runs: Path, real: RealBaseline) -> dict[str, Any]:
    """Distil a student and measure it; return the figures of its row."""
    folder = runs / student.name
    if not (folder / "model").is_dir():
        config = DistillationConfig(
            model=str(runs / student.teacher) if student.teacher else teacher,
            num_inference_steps=student.steps,
            max_train_minutes=student.minutes,
            output_dir=str(folder),
            overwrite_output_dir=True,
            checkpointing_steps=None,
            validation_steps=10**9,
        )
        distill_denoiser(config, now=time.process_time)
    trained = read_json(folder / "model" / "training.json")
    kept = ("steps", "teacher_num_inference_steps", "distance_to_teacher")
    return {
        "name": student.name,
        "minutes": student.minutes,
        "teacher": student.teacher,
        **{name: trained[name] for name in kept},
        **measure(str(folder), real),
    }


def run(teacher: str, data: str, runs: Path) -> dict[str, Any]:
    """Train and measure all students; return the report."""
    images = ImagesConfig(data=data, **FASHION_MNIST)
    extractor = load_feature_extractor("efficientnet-lite0")
    real, real_fd = measure_real_images(open_images(images), NUM_IMAGES, images.seed, extractor)
    return {
        "model": shown_name(teacher),
        "data": shown_name(data),
        "num_images": NUM_IMAGES,
        "real_fd": real_fd,
        "preprocessing": extractor.preprocessing,
        "teacher": [measure(teacher, real, steps) for steps in TEACHER_STEPS],
        "students": [run_student(x, teacher, runs, real) for x in STUDENTS],
        **machine_figures(),
    }


if __name__ == "__main__":
    write_json(REPORT, run(sys.argv[1], sys.argv[2], Path(sys.argv[3])))
