import pytest

import distillation_figures
from distillation_figures import Student, run
from hf_latent.data.images.sources import BUILT_IN
from hf_latent.models.presets import create_scheduler
from hf_latent.pipeline import LatentDiffusionPipeline
from tests.conftest import make_autoencoder, make_denoiser
from tests.evaluation.features.short_vectors import ShortVectors
from tests.small import few_images


@pytest.fixture
def teacher(tmp_path):
    vae = make_autoencoder(1)
    pipeline = LatentDiffusionPipeline(vae, make_denoiser(vae, 10), create_scheduler("flow"))
    pipeline.save_pretrained(tmp_path / "teacher")
    return str(tmp_path / "teacher")


def test_students_and_students_of_students_are_measured(teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(distillation_figures, "load_feature_extractor", lambda name: ShortVectors())
    monkeypatch.setattr(distillation_figures, "NUM_IMAGES", 20)
    students = [Student("2", 2, 0.02), Student("1-from-2", 1, 0.02, "2")]
    monkeypatch.setattr(distillation_figures, "STUDENTS", students)
    monkeypatch.setattr(distillation_figures, "FASHION_MNIST", {"resolution": 16})
    monkeypatch.setitem(BUILT_IN, "fashion_mnist", few_images)
    report = run(teacher, "fashion_mnist", tmp_path / "runs")
    assert [x["num_inference_steps"] for x in report["teacher"]] == [8, 4, 2]
    first, second = report["students"]
    assert [x["denoiser_evaluations_per_image"] for x in (first, second)] == [2, 1]
    assert (first["teacher_num_inference_steps"], second["teacher_num_inference_steps"]) == (20, 2)
    assert min(x["generated_fd"] for x in report["students"]) > report["real_fd"] > 0
    again = run(teacher, "fashion_mnist", tmp_path / "runs")["students"]
    assert [x["generated_fd"] for x in again] == [x["generated_fd"] for x in report["students"]]
