import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import LDMPipeline
from safetensors.torch import load_file

from hf_latent.evaluation.images.sampling import compile_denoiser, sample_images
from hf_latent.hub.export import ExportConfig, export
from hf_latent.models.frozen import freeze
from hf_latent.models.presets import create_denoiser, create_scheduler
from hf_latent.models.slicing import slice_if_needed
from hf_latent.pipeline import LatentDiffusionPipeline
from hf_latent.pipeline.decode import decode_latents
from hf_latent.training.autoencoder import train_autoencoder
from hf_latent.training.denoiser import train_denoiser
from hf_latent.training.distillation import distill_denoiser
from hf_latent.training.latents.posteriors import encode_batches
from hf_latent.training.run.clock import TrainingClock
from tests.conftest import draw_latents, make_autoencoder
from tests.gpu.conftest import CUDA
from tests.training.conftest import short_autoencoder, short_denoiser, short_student

PRECISIONS = ("no", "bf16", "fp16")
ADVERSARIAL = {
    "discriminator_weight": 0.5,
    "discriminator_start": 1,
    "discriminator_base_channels": 8,
    "discriminator_num_layers": 1,
}
TRAININGS = {
    "autoencoder": (train_autoencoder, short_autoencoder, ADVERSARIAL),
    "denoiser": (train_denoiser, short_denoiser, {}),
    "student": (distill_denoiser, short_student, {}),
}


def training(name: str, folder, **changes):
    """Return a training's function and its settings, with the model that it starts from."""
    train, settings, own = TRAININGS[name]
    vae = make_autoencoder(sample_size=32)
    if name == "denoiser":
        vae.save_pretrained(folder / "autoencoder" / "model")
    if name == "student":
        unet = create_denoiser("tiny", vae, (1, 32, 32), 3)
        teacher = LatentDiffusionPipeline(vae, unet, create_scheduler("flow"))
        teacher.save_pretrained(folder / "teacher")
    return train, settings(folder, **own | changes)


@pytest.mark.parametrize("name", TRAININGS)
@pytest.mark.parametrize(
    ("device", "precision"),
    [("cpu", "no"), *(pytest.param("cuda", x, marks=pytest.mark.gpu) for x in PRECISIONS)],
    indirect=["device"],
)
def test_30_steps_lower_the_held_out_loss(tmp_path, name, device, precision):
    train, config = training(
        name,
        tmp_path,
        mixed_precision=precision,
        max_train_steps=30,
        validation_steps=5,
        learning_rate=3e-3,
        ema_decay=0.8,
    )
    losses = list(train(config).validation_losses.values())
    assert all(map(math.isfinite, losses))
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", TRAININGS)
def test_a_resumed_training_goes_on_as_if_uninterrupted(tmp_path, name, device):
    train, config = training(
        name, tmp_path, mixed_precision="no", checkpointing_steps=2, checkpoints_total_limit=None
    )
    run = tmp_path / name
    train(config)
    resumed = replace(
        config,
        output_dir=str(tmp_path / "resumed"),
        resume_from_checkpoint=str(run / "checkpoint-2"),
        overwrite_output_dir=True,
    )
    train(resumed)
    # The kernels of a GPU round differently in each run, and Adam amplifies that.
    tolerance = 0.0 if device == "cpu" else 2e-3
    for part in [x.name for x in (run / "checkpoint-4").iterdir() if x.is_dir()]:
        path = f"checkpoint-4/{part}/diffusion_pytorch_model.safetensors"
        expected, found = (load_file(folder / path) for folder in (run, tmp_path / "resumed"))
        for key, tensor in expected.items():
            torch.testing.assert_close(found[key], tensor, rtol=0, atol=tolerance, msg=key)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("autoencoder", {}),
        ("denoiser", {"latents_on_device": False}),
        ("denoiser", {"latents_on_device": True}),
    ],
)
def test_a_step_does_not_wait_for_the_device(tmp_path, monkeypatch, name, changes, device):
    """CUDA itself raises an error for a call that waits, in each step between two log lines."""
    train, config = training(
        name, tmp_path, max_train_steps=15, validation_steps=100, mixed_precision="no", **changes
    )
    steps = TrainingClock.steps

    def strict_steps(self, *optimizers):
        for step in steps(self, *optimizers):
            strict = device == "cuda" and step > 2 and (step + 1) % 5 and step < 14
            if device == "cuda":
                torch.cuda.set_sync_debug_mode("error" if strict else "default")
            yield step

    monkeypatch.setattr(TrainingClock, "LOGGING_STEPS", 5)
    monkeypatch.setattr(TrainingClock, "steps", strict_steps)
    try:
        assert train(config).steps == 15
    finally:
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("default")


def test_sampling_and_decoding_equal_the_cpus(pipeline, device):
    expected = draw_latents(pipeline, [0, 1], steps=5)
    images = pipeline.decode_latents(expected)
    pipeline.to(device)
    latents = draw_latents(pipeline, [0, 1], steps=5)
    torch.testing.assert_close(latents.cpu(), expected, rtol=0, atol=2e-2)
    found = pipeline.decode_latents(expected.to(device))
    torch.testing.assert_close(found.cpu(), images, rtol=0, atol=2e-2)


def test_encoded_batches_equal_the_cpus(vae, images, device):
    batches = [images[:3], images[3:]]
    expected = list(encode_batches(freeze(vae), batches, True, torch.float32))
    found = list(encode_batches(vae.to(device), batches, True, torch.float32))
    for own, other in zip(found, expected, strict=True):
        torch.testing.assert_close(own, other, rtol=0, atol=2e-2)


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpm++"])
def test_a_sampling_step_does_not_wait_for_the_device(pipeline, sampler, device):
    def strict(pipeline, i: int, t, tensors) -> None:
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("error" if i < 3 else "default")

    pipeline.to(device).use_sampler(sampler)
    try:
        pipeline([0, 1], num_inference_steps=5, callback_on_step_end=strict)
    finally:
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
def test_a_batch_that_exceeds_the_memory_is_decoded_image_by_image(vae):
    vae = freeze(vae).to("cuda")
    latents = torch.randn(256, 4, 32, 32, device="cuda")
    expected = torch.cat([decode_latents(vae, x) for x in latents.split(1)]).cpu()
    torch.cuda.empty_cache()
    # Every layer's output at full resolution has 128 MB, and that of one image 512 kB.
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 2**27) / total)
    try:
        images = slice_if_needed(vae, lambda: decode_latents(vae, latents)).cpu()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert vae.use_slicing
    torch.testing.assert_close(images, expected, rtol=0, atol=2e-2)


def test_offloaded_to_the_cpu_the_latents_are_the_same(pipeline, device):
    expected = draw_latents(pipeline, [0, 1])
    pipeline.enable_model_cpu_offload(device=device)
    found = draw_latents(pipeline, [0, 1])
    torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=2e-2)


def test_an_export_draws_the_models_images(tmp_path, unconditional, device):
    unconditional.save_pretrained(tmp_path / "model")
    export(ExportConfig(model=str(tmp_path / "model"), output_dir=str(tmp_path / "ldm")))

    def draw(pipeline, **count) -> np.ndarray:
        generator = torch.Generator().manual_seed(0)
        settings = {"num_inference_steps": 5, "generator": generator, "output_type": "np"}
        return pipeline(**count, **settings).images

    found = draw(LDMPipeline.from_pretrained(tmp_path / "ldm").to(device), batch_size=2)
    assert abs(found - draw(unconditional, num_images=2)).max() < 2e-2


@pytest.mark.parametrize("device", [CUDA], indirect=True)  # a CPU compiles for minutes
@pytest.mark.parametrize("name", TRAININGS)
def test_a_compiled_training_has_the_losses_of_a_plain_one(tmp_path, name, device):
    losses = []
    for compiled in (False, True):
        folder = tmp_path / str(compiled)
        train, config = training(name, folder, compile=compiled, mixed_precision="no")
        losses.append(train(config).train_loss)
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)


@pytest.mark.gpu
def test_a_compiled_denoiser_draws_the_same_images(pipeline):
    pipeline.to("cuda")
    settings = {"num_images": 5, "seed": 0, "batch_size": 2, "num_inference_steps": 4}
    settings |= {"guidance_interval": (0, 0.8), "whole_batches": True}
    expected = sample_images(pipeline, [0, 1], **settings)
    compile_denoiser(pipeline)
    found = sample_images(pipeline, [0, 1], **settings)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-2)
