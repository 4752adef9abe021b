import json
import logging

import pytest
import torch
from PIL import Image

from hf_latent.cli import main
from hf_latent.data.images import sources
from hf_latent.data.images.pixels import to_uint8
from hf_latent.errors import UserError
from hf_latent.evaluation.config import ComparisonConfig
from hf_latent.evaluation.images.reference import open_real_images
from hf_latent.evaluation.images.sampling import sample_images
from hf_latent.evaluation.measures.generation import frechet_distance
from hf_latent.experiments.benchmark import sampler as benchmark
from hf_latent.models.presets import create_denoiser, create_scheduler
from hf_latent.pipeline import LatentDiffusionPipeline
from hf_latent.pipeline.decode import IMAGE_VALUES
from tests.conftest import NARROW_DENOISER, make_autoencoder, make_guide
from tests.evaluation.features.short_vectors import ShortVectors
from tests.pipeline.test_prompts import make_words
from tests.small import few_images

OWN = {"guidance_scale": 3.0, "guidance_interval": (0, 0.8)}
COUNT = 20


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setitem(sources.BUILT_IN, "fashion_mnist", few_images)
    monkeypatch.setattr(benchmark, "load_feature_extractor", lambda name: ShortVectors())
    monkeypatch.setattr(benchmark, "seconds_per_call", lambda call: (call(), 0.5)[1])


def make_pipeline(objective, num_classes=None, **settings):
    vae = make_autoencoder(sample_size=32)
    unet = create_denoiser("tiny", vae, (1, 32, 32), num_classes, **NARROW_DENOISER).eval()
    pipeline = LatentDiffusionPipeline(vae, unet, create_scheduler(objective), **settings)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def measure(pipeline, tmp_path, *flags):
    pipeline.save_pretrained(tmp_path / "model")
    flags = ("--model", str(tmp_path / "model"), "--num_images", str(COUNT), *flags)
    flags = ("--output_dir", str(tmp_path / "bench"), "--rounds", "1", "--batch_size", "4", *flags)
    main(["bench", "sampler", *flags])
    return json.loads((tmp_path / "bench" / "bench.json").read_text())


@pytest.mark.slow
def test_every_sampler_is_measured_with_all_classes_in_turn(tmp_path, capsys):
    pipeline = make_pipeline("flow", 10, guidance=OWN)
    report = measure(pipeline, tmp_path, "--num_inference_steps", "[5,2]")
    # Of the levels 1, 0.8, 0.6, 0.4 and 0.2 all but the first are guided.
    found = {(x["sampler"], x["num_inference_steps"]): x for x in report["points"]}
    assert len(found) == 8
    for (sampler, steps), point in found.items():
        expected = {2: 5, 5: 17} if sampler == "heun" else {2: 3, 5: 9}
        assert point["evaluations_per_image"] == expected[steps], sampler
    assert all(len(x["images_per_second"]) == 1 for x in report["points"])
    config = ComparisonConfig(model="model", resize_mode="pad", num_images=COUNT)
    _, real = open_real_images(config, pipeline)
    vectors = ShortVectors()
    reference, other = (
        vectors(to_uint8(torch.stack([x["images"] for x in real.subset(rows)])))
        for rows in (real.reference, real.other)
    )
    pipeline.use_sampler("unipc")
    images = sample_images(pipeline, list(range(10)), COUNT, 0, COUNT, num_inference_steps=5)
    distance = frechet_distance([vectors(to_uint8(images * 2 - 1))], [reference])
    assert found["unipc", 5]["fd"] == pytest.approx(distance, rel=1e-3)
    assert report["real_fd"] == pytest.approx(frechet_distance([other], [reference]), rel=1e-6)
    printed = capsys.readouterr().out
    assert "unipc   5 steps: 9 evaluations, " in printed
    assert f"FD {distance:.2f}" in printed
    with Image.open(tmp_path / "bench" / "samplers.png") as plot:
        assert plot.width > 700


@pytest.mark.slow
def test_the_stock_pipeline_draws_the_same_images(tmp_path):
    report = measure(make_pipeline("epsilon"), tmp_path, "--num_inference_steps", "[2]")
    assert [x["sampler"] for x in report["points"]] == ["euler", "heun", "dpm++", "unipc", "ddim"]
    assert report["stock_largest_difference"] < 1e-4
    assert report["stock_images_per_second"] == report["own_images_per_second"] == [8]
    assert report["stock_ratio_median"] == 1


def test_the_difference_to_the_stock_pipeline_has_no_unit_of_the_data():
    pipeline = make_pipeline("epsilon")
    values = {"range": [[0, 4095]], "dtype": "uint16", "shown": None}
    pipeline.vae.register_to_config(**{IMAGE_VALUES: values})
    config = benchmark.SamplerBenchmarkConfig(batch_size=1, rounds=1)
    assert benchmark.compare_with_stock(pipeline, config, 2)["stock_largest_difference"] < 1e-4


def test_models_with_and_without_classes_are_compared(pipeline, unconditional):
    config = benchmark.SamplerBenchmarkConfig(batch_size=2, rounds=1)
    for model, name, sampler in (
        (pipeline, "DiTPipeline", "euler"),
        (unconditional, "LDMPipeline", "heun"),  # compared as euler
    ):
        model.use_sampler(sampler)
        made = LatentDiffusionPipeline(**model.components)
        figures = benchmark.compare_with_stock(made, config, 4)
        assert figures["stock_class"] == name
        assert figures["stock_largest_difference"] < 1e-4


def test_a_model_that_cannot_be_exported_is_measured_without_the_stock_pipeline(caplog):
    made = make_pipeline("epsilon")
    made.use_sampler("euler")
    pipeline = LatentDiffusionPipeline(**made.components)
    config = benchmark.SamplerBenchmarkConfig()
    with caplog.at_level(logging.WARNING):
        assert benchmark.compare_with_stock(pipeline, config, 2) == {}
    assert "no comparison with a stock pipeline: this model's scheduler is Euler" in caplog.text


def test_a_distilled_model_has_one_point(distilled, unconditional):
    (point,) = benchmark.create_points(distilled)
    assert (point.sampler, point.steps) == ("DPMSolverMultistepScheduler", 4)
    assert point.scheduler is distilled.trained_scheduler
    assert benchmark.create_points(distilled, [4, 4]) == [point]
    with pytest.raises(UserError, match=r"^--num_inference_steps does not fit"):
        benchmark.create_points(distilled, [4, 8])
    points = benchmark.create_points(unconditional, [8, 2])
    assert [(x.sampler, x.steps) for x in points[:3]] == [("euler", 2), ("euler", 8), ("heun", 2)]
    assert len(points) == 8
    config = benchmark.SamplerBenchmarkConfig(batch_size=2, rounds=1)
    with benchmark.evaluated_batches(distilled) as batches:
        point.draw(3, distilled, ShortVectors(), config)
    assert sum(batches) == point.evaluations == 3 * 4


def test_evaluations_of_a_guide_count(unconditional):
    unconditional.register_modules(guide_unet=make_guide(unconditional.vae, None))
    with benchmark.evaluated_batches(unconditional) as batches:
        unconditional(num_images=3, guidance_scale=2, num_inference_steps=2, output_type="latent")
    unconditional(num_images=3, guidance_scale=2, num_inference_steps=2, output_type="latent")
    assert batches == [3] * 4


def test_a_number_of_steps_that_a_sampler_cannot_do_is_refused_before_any_image(tmp_path, capsys):
    with pytest.raises(SystemExit) as error:
        measure(make_pipeline("epsilon"), tmp_path, "--num_inference_steps", "[2,3]")
    assert error.value.code == 2
    assert "--num_inference_steps 3 is not for" in capsys.readouterr().err


def test_a_model_with_prompts_draws_from_the_empty_one():
    words = make_words()
    config = benchmark.SamplerBenchmarkConfig(batch_size=2, rounds=1)
    point = benchmark.create_points(words, [2])[0]
    with benchmark.evaluated_batches(words) as batches:
        point.draw(3, words, ShortVectors(), config)
    assert sum(batches) == point.evaluations == 3 * 2 * 2, "with guidance"
    figures = benchmark.compare_with_stock(words, config, 2)
    assert figures["stock_class"] == "StableDiffusionPipeline"
    assert figures["stock_largest_difference"] < 0.05
