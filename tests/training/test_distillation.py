import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from diffusers import (
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
)
from safetensors.torch import load_file

from hf_latent.command import read_settings
from hf_latent.errors import UserError
from hf_latent.hub.card.render import render_model_card
from hf_latent.models.frozen import hash_weights
from hf_latent.models.presets import create_scheduler, create_student_scheduler
from hf_latent.output import write_json
from hf_latent.pipeline import LatentDiffusionPipeline
from hf_latent.pipeline.samplers import set_inference_steps
from hf_latent.training.distillation import DistillationTask, distill_denoiser, mean_velocities
from hf_latent.training.dry_run.bare import bare_distillation
from hf_latent.training.dry_run.estimate import DryRunEnd
from hf_latent.training.page.curves import PANELS
from hf_latent.training.page.record import read_run
from hf_latent.training.run.batches import ProcessRows, ShardedDraws
from hf_latent.training.run.log import read_lines
from hf_latent.training.teacher import Teacher
from tests.conftest import count_calls, make_guide
from tests.training.conftest import short_student

CPU = torch.device("cpu")


@pytest.fixture
def teacher(pipeline, tmp_path):
    """A saved teacher that samples with UniPC."""
    with torch.no_grad():  # guidance then changes the images
        pipeline.unet.class_embedding.weight *= 20
    pipeline.use_sampler("unipc")
    pipeline.save_pretrained(tmp_path / "teacher")
    return pipeline


@pytest.fixture
def settings(teacher, tmp_path):
    return short_student(tmp_path)


def noise_of(count: int) -> torch.Tensor:
    return torch.randn(count, 4, 4, 4, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_a_stock_scheduler_steps_from_state_to_state_with_what_a_student_learns(shift):
    scheduler = create_student_scheduler(FlowMatchEulerDiscreteScheduler(shift=shift))
    set_inference_steps(scheduler, 4, "cpu")
    states = torch.randn(5, 3, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    learned = mean_velocities(states, scheduler.sigmas, scheduler.timesteps)
    assert torch.equal(learned.noisy_latents, states[:4].flatten(0, 1))
    assert torch.equal(learned.weights, torch.ones(12))
    assert torch.equal(learned.timesteps[::3], scheduler.timesteps)
    latents = states[0]
    for i, t in enumerate(scheduler.timesteps):
        velocity = learned.target[3 * i : 3 * i + 3]
        latents = scheduler.step(velocity, t, latents).prev_sample
        assert torch.allclose(latents, states[i + 1], atol=1e-5)


def test_the_steps_of_a_student_have_equal_lengths_in_stock_diffusers():
    scheduler = create_student_scheduler(create_scheduler("flow"))
    for steps in (1, 2, 4):
        scheduler.set_timesteps(steps)
        expected = 0.999 * (1 - torch.arange(steps + 1) / steps)
        assert torch.allclose(scheduler.sigmas, expected, atol=1e-6)
        assert scheduler.timesteps.tolist() == (1000 * expected[:-1]).long().tolist()


@pytest.mark.parametrize("sampler", ["euler", "dpm++", "unipc"])
def test_a_teacher_ends_where_its_pipeline_does(sampler, teacher, settings, tmp_path):
    teacher.use_sampler(sampler)
    teacher.register_to_config(guidance={"guidance_scale": 3.0})
    teacher.save_pretrained(tmp_path / "teacher")
    config = replace(settings, num_inference_steps=2, teacher_num_inference_steps=6)
    states = Teacher(config, CPU).follow(noise_of(3), {"class_labels": torch.tensor([2, 0, 3])})
    assert states.shape == (3, 3, 4, 4, 4) and torch.equal(states[0], noise_of(3))
    labelled = teacher([2, 0], latents=noise_of(3)[:2], num_inference_steps=6, output_type="latent")
    assert torch.allclose(states[2, :2], labelled.images, atol=1e-5)
    # The null label is not guided.
    no_class = teacher(latents=noise_of(3)[2:], num_inference_steps=6, output_type="latent")
    assert torch.allclose(states[2, 2:], no_class.images, atol=1e-5)


def test_guidance_that_is_given_replaces_the_teachers_own(settings):
    labels = {"class_labels": torch.tensor([1])}
    ends = []
    for scale, interval in [(None, None), (5.0, None), (5.0, "0,0.5")]:
        config = replace(settings, guidance_scale=scale, guidance_interval=interval)
        teacher = Teacher(config, CPU)
        ends.append(teacher.follow(noise_of(1), labels)[-1])
    assert teacher.guidance.scale == 5 and teacher.guidance.interval == (0, 0.5)
    assert teacher.evaluations == 6
    assert all((a - b).abs().max() > 1e-3 for a, b in [(ends[0], ends[1]), (ends[1], ends[2])])


def test_a_teacher_of_twenty_steps_makes_the_next_multiple(settings):
    changes = {"num_inference_steps": 3, "teacher_num_inference_steps": None}
    config = replace(settings, **changes, train_batch_size=None)
    assert config.train_batch_size == 66 and config.learning_rate == 4e-4
    assert Teacher(config, CPU).steps == 21


def test_two_processes_draw_the_trajectories_of_one(settings):
    task = DistillationTask(settings, Accelerator(cpu=True))
    whole, labels = task.draw(3, 1)
    assert len(whole.target) == settings.train_batch_size == len(labels["class_labels"])
    of_each_step = labels["class_labels"].view(2, 4)
    assert torch.equal(of_each_step[0], of_each_step[1]) and len(of_each_step[0].unique()) > 1
    parts = []
    for process in (0, 1):
        rows = ProcessRows(2, process, 2)
        task.draws = ShardedDraws(settings.seed, "student", rows, CPU)
        task.null = {"class_labels": torch.full((2,), 3)}
        parts.append(task.draw(3, 1))
    for name in ("noisy_latents", "target", "timesteps"):
        first, second = (getattr(learned, name).unflatten(0, (2, 2)) for learned, _ in parts)
        together = torch.cat([first, second], dim=1).flatten(0, 1)
        assert torch.allclose(together, getattr(whole, name), atol=1e-5)
    drawn = [x["class_labels"].view(2, 2) for _, x in parts]
    assert torch.equal(torch.cat(drawn, dim=1).flatten(), labels["class_labels"])


@pytest.mark.parametrize(("dropout", "expected"), [(0.0, {0, 1, 2}), (0.999, {3})])
def test_a_share_of_the_labels_is_dropped(settings, dropout, expected):
    config = replace(settings, label_dropout=dropout, train_batch_size=40)
    _, labels = DistillationTask(config, Accelerator(cpu=True)).draw(0, 0)
    assert set(labels["class_labels"].tolist()) == expected


def test_a_student_learns_its_teachers_latents(settings):
    config = replace(
        settings, train_batch_size=16, max_train_steps=150, validation_steps=150, ema_decay=0.9
    )
    config = replace(config, learning_rate=3e-3)
    summary = distill_denoiser(config)
    (last,) = (x for x in read_lines(Path(config.output_dir)) if "distance_to_teacher" in x)
    steps = (last["validation_loss_step_1"] + last["validation_loss_step_2"]) / 2
    assert steps == pytest.approx(last["validation_loss"], rel=1e-5)
    plotted = {name for panel in PANELS for name in panel.curves}
    assert {name for name in last if name.startswith("validation_loss")} <= plotted
    task = DistillationTask(config, Accelerator(cpu=True))
    task.prepare(0)
    before, figures = task.measure()  # of a copy of the teacher, without guidance
    assert last["validation_loss"] < 0.7 * before
    assert last["distance_to_teacher"] < 0.7 * figures["distance_to_teacher"]
    assert summary.validation_losses == {150: last["validation_loss"]}


def test_a_saved_student_makes_its_steps_without_guidance(teacher, settings):
    folder = distill_denoiser(settings).model_dir
    student = LatentDiffusionPipeline.from_pretrained(folder)
    student.set_progress_bar_config(disable=True)
    calls = count_calls(student.unet)
    assert student(["dog", "owl"]).images[0].size == (16, 16)
    assert calls == [2, 2] and student.id2label == teacher.id2label
    assert hash_weights(student.vae) == hash_weights(teacher.vae)
    assert hash_weights(student.unet) != hash_weights(teacher.unet)
    for wrong in ({"num_inference_steps": 4}, {"guidance_scale": 2.0}):
        with pytest.raises(ValueError, match="distilled"):
            student(["dog"], **wrong)
    report = json.loads((folder / "training.json").read_text())
    assert report["model"] == "teacher" and report["teacher"] is None
    assert report["teacher_unet_weights_sha256"] == hash_weights(teacher.unet)
    assert report["teacher_num_inference_steps"] == 4 and report["num_inference_steps"] == 2
    assert report["teacher_evaluations_per_image"] == 8
    card = (folder / "README.md").read_text()
    assert (
        "It was distilled, without images: each of its 2 steps learns 2 of its teacher's 4 steps "
        "of UniPCMultistepScheduler, guidance 2 (8 evaluations of the denoiser per image)" in card
    )
    assert "4 steps of 8 intervals (32 intervals seen)" in card
    assert f"from 12 held-out noises | {report['distance_to_teacher']:.4f} |" in card


METRICS = {
    "comparable_if_equal": "abc",
    "num_images": 2000,
    "feature_extractor": "efficientnet-lite0",
    "denoiser_evaluations_per_image": 8,
    "fd": 4.0,
    "fd_subset_images": 500,
    "fd_subset_values": [5.0, 6.0],
    "fd_subset_std": 0.5,
    "floor_fd": 1.0,
    "real_fd": 0.2,
    "label_agreement": 0.9,
}


def test_the_card_of_a_student_has_its_teachers_figures(teacher, settings, tmp_path):
    weights = {f"{x}_weights_sha256": hash_weights(getattr(teacher, x)) for x in ("vae", "unet")}
    write_json(tmp_path / "teacher" / "metrics.json", METRICS | weights)
    folder = distill_denoiser(settings).model_dir
    own = METRICS | json.loads((folder / "training.json").read_text())
    own |= {"denoiser_evaluations_per_image": 2, "fd": 4.5, "fd_subset_values": [6.0, 7.0]}
    write_json(folder / "metrics.json", own)
    card = render_model_card(folder, "ada/student", "mit")
    for line in (
        "| 2,000 images | generated | by its teacher | with a perfect denoiser | real |",
        "|---|---|---|---|---|",
        "| evaluations of the denoiser for an image | 2 | 8 |  |  |",
        "| FD | 4.50 | 4.00 | 1.00 | 0.20 |",
        "| FD of 2 parts of 500, ± deviation | 6.50 ± 0.50 | 5.50 ± 0.50 |  |  |",
        "| label agreement | 0.900 | 0.900 |  |  |",
    ):
        assert line in card, line
    write_json(folder / "metrics.json", own | {"comparable_if_equal": "other"})
    assert "by its teacher" not in render_model_card(folder, "ada/student", "mit")


def test_figures_of_other_weights_are_not_the_teachers(settings, tmp_path):
    write_json(tmp_path / "teacher" / "metrics.json", METRICS | {"unet_weights_sha256": "0"})
    report = json.loads((distill_denoiser(settings).model_dir / "training.json").read_text())
    assert not [name for name in report if name.startswith("teacher_metrics_")]


def test_a_student_can_be_a_teacher(settings, tmp_path):
    first = distill_denoiser(settings).model_dir
    config = replace(settings, model=str(first), output_dir=str(tmp_path / "second"))
    config = replace(config, num_inference_steps=1, teacher_num_inference_steps=None)
    second = LatentDiffusionPipeline.from_pretrained(distill_denoiser(config).model_dir)
    calls = count_calls(second.unet)
    second(["dog"])
    assert calls == [1]
    with pytest.raises(UserError, match=r"--teacher_num_inference_steps 4: .* makes 2 steps only"):
        Teacher(replace(config, teacher_num_inference_steps=4), CPU)
    changes = {"num_inference_steps": 4, "teacher_num_inference_steps": None}
    with pytest.raises(UserError, match="--num_inference_steps 4 must divide the 2 steps"):
        Teacher(replace(config, **changes), CPU)


def test_an_unconditional_student_in_half_precision(unconditional, settings, tmp_path):
    unconditional.save_pretrained(tmp_path / "teacher")
    folder = distill_denoiser(replace(settings, save_dtype="float16")).model_dir
    weights = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    assert {x.dtype for x in weights.values()} == {torch.float16}
    assert LatentDiffusionPipeline.from_pretrained(folder)(num_images=2).images
    with pytest.raises(UserError, match="guidance_scale needs"):
        Teacher(replace(settings, guidance_scale=2.0), CPU)


def test_a_guide_is_learned_too(guided, settings, tmp_path):
    guided.save_pretrained(tmp_path / "teacher")
    config = replace(settings, guidance_scale=3.0, checkpointing_steps=4)
    folder = distill_denoiser(config).model_dir
    assert LatentDiffusionPipeline.from_pretrained(folder).guide_unet is None
    assert Teacher(config, CPU).evaluations == 8
    settings = read_settings(tmp_path / "student" / "config.yaml")
    assert (settings["guidance_scale"], settings["guidance_interval"]) == (3.0, None)
    with torch.no_grad():
        guided.guide_unet.conv_out.bias += 1
    guided.save_pretrained(tmp_path / "teacher")
    with pytest.raises(UserError, match="frozen guide is not the one"):
        distill_denoiser(replace(config, resume_from_checkpoint="latest"))


def test_a_resumed_distillation_ends_bit_for_bit(settings, tmp_path):
    whole = distill_denoiser(replace(settings, checkpointing_steps=2)).model_dir
    resumed = replace(
        settings,
        output_dir=str(tmp_path / "resumed"),
        resume_from_checkpoint=str(tmp_path / "student" / "checkpoint-2"),
    )
    again = distill_denoiser(resumed).model_dir
    assert hash_weights(LatentDiffusionPipeline.from_pretrained(whole).unet) == hash_weights(
        LatentDiffusionPipeline.from_pretrained(again).unet
    )


def test_another_teacher_cannot_resume(teacher, settings, tmp_path):
    distill_denoiser(replace(settings, checkpointing_steps=2))
    with torch.no_grad():
        teacher.unet.conv_out.bias += 1
    teacher.save_pretrained(tmp_path / "teacher")
    with pytest.raises(UserError, match="frozen teacher is not the one"):
        distill_denoiser(replace(settings, resume_from_checkpoint="latest"))


def test_what_cannot_be_distilled_is_one_line(teacher, settings, tmp_path):
    teacher.scheduler = FlowMatchHeunDiscreteScheduler()
    teacher.save_pretrained(tmp_path / "teacher")
    with pytest.raises(UserError, match="FlowMatchHeunDiscreteScheduler, whose 4 steps do not"):
        distill_denoiser(settings)
    teacher.scheduler = FlowMatchEulerDiscreteScheduler(stochastic_sampling=True)
    teacher.save_pretrained(tmp_path / "teacher")
    with pytest.raises(UserError, match="stochastic FlowMatchEulerDiscreteScheduler"):
        distill_denoiser(settings)
    with pytest.raises(UserError, match="--train_batch_size 9 must be a multiple of --num"):
        replace(settings, train_batch_size=9)
    with pytest.raises(UserError, match="--teacher_num_inference_steps 5 must be a multiple"):
        replace(settings, teacher_num_inference_steps=5)
    vae, unet = teacher.vae, teacher.unet
    other = LatentDiffusionPipeline(vae, unet, create_scheduler("epsilon"))
    assert isinstance(other.scheduler, DDIMScheduler)
    other.save_pretrained(tmp_path / "teacher")
    with pytest.raises(UserError, match="has the objective epsilon: only flows can be distilled"):
        distill_denoiser(settings)


def test_a_dry_run_counts_the_teacher(settings, tmp_path):
    with pytest.raises(DryRunEnd) as end:
        distill_denoiser(replace(settings, dry_run=True))
    figures = end.value.figures
    assert figures["frozen_parameters"]["teacher"] == figures["trained_parameters"]["unet"]
    assert figures["latent_shape"] == [4, 4, 4] and figures["step_seconds"] > 0
    assert figures["steps"] == 4 and "epochs" not in figures
    assert not (tmp_path / "student").exists()


def test_a_bare_step_evaluates_the_teacher_and_its_guide(settings, teacher):
    guide = make_guide(teacher.vae)
    models = {"vae": teacher.vae, "unet": teacher.unet}
    models |= {"teacher": copy.deepcopy(teacher.unet), "guide": guide}
    calls = [count_calls(models[name]) for name in ("unet", "teacher", "guide")]
    bare = bare_distillation((3, 2), settings, models, (8, 1, 16, 16), CPU)
    bare.step()
    assert calls == [[8], [4] * 3, [4] * 2]
    del models["guide"]
    bare_distillation((3, 2), settings, models, (8, 1, 16, 16), CPU).step()
    assert calls == [[8] * 2, [4] * 8, [4] * 2]


def test_a_run_has_a_page(settings, tmp_path):
    distill_denoiser(settings)
    record = read_run(tmp_path / "student", "student")
    assert record.command == "distill" and record.state() == "Finished after 4 steps."
    assert record.config.teacher_num_inference_steps == 4 and record.config.model == "teacher"
    assert record.curve("distance_to_teacher")[0] == [2, 4]
    assert "generate" in record.next_steps()
    assert (tmp_path / "student" / "report.html").is_file()
