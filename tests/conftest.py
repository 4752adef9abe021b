"""Real classes at tiny size, shared by all tests."""

import gc
import itertools
import os
import shutil
from collections.abc import Callable

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, UNet2DModel
from torch._dynamo.utils import counters

from hf_latent.models.presets import create_autoencoder, create_denoiser, create_scheduler
from hf_latent.pipeline import LatentDiffusionPipeline
from tests.seconds import longest_first
from tests.small import NARROW_AUTOENCODER, NARROW_DENOISER

torch.set_num_threads(1)  # tiny tensors: a second thread only costs

NUM_CLASSES = 3
CHROMIUM = shutil.which("chromium")


@pytest.fixture(scope="session")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    longest_first(items)


def pytest_collection_finish() -> None:
    gc.freeze()  # or each full collection looks through all that torch and diffusers imported


def make_autoencoder(channels: int = 1, sample_size: int = 16, **changes) -> AutoencoderKL:
    torch.manual_seed(0)
    changes = NARROW_AUTOENCODER | {"latent_channels": 4} | changes
    vae = create_autoencoder("tiny", channels, sample_size, **changes)
    # Untrained weights give latents near 0: a bias makes their scale matter.
    with torch.no_grad():
        vae.quant_conv.bias.uniform_(-2, 2)
    return vae.eval()


def make_denoiser(vae: AutoencoderKL, num_classes: int | None = NUM_CLASSES) -> UNet2DModel:
    torch.manual_seed(1)
    shape = (vae.config.in_channels, 16, 16)
    return create_denoiser("tiny", vae, shape, num_classes, **NARROW_DENOISER).eval()


def make_guide(vae: AutoencoderKL, num_classes: int | None = NUM_CLASSES, **changes) -> UNet2DModel:
    """A narrower denoiser of the same latents and classes."""
    torch.manual_seed(7)
    changes = NARROW_DENOISER | {"block_out_channels": (8, 16)} | changes
    shape = (vae.config.in_channels, 16, 16)
    return create_denoiser("tiny", vae, shape, num_classes, **changes).eval()


def draw_latents(pipeline, class_labels=None, steps: int | None = 3, **arguments) -> torch.Tensor:
    """Two latents, always of the same noise."""
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    arguments = {"num_inference_steps": steps, "output_type": "latent"} | arguments
    return pipeline(class_labels, latents=noise, **arguments).images


def ticking_clock(seconds: float) -> Callable[[], float]:
    """A clock that advances by a fixed number of seconds at every call."""
    looks = itertools.count()
    return lambda: next(looks) * seconds


def count_calls(model: torch.nn.Module) -> list[int]:
    """A list that grows by the batch's size at every call of a model."""
    sizes: list[int] = []
    model.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    return sizes


@pytest.fixture
def vae() -> AutoencoderKL:
    return make_autoencoder()


@pytest.fixture
def pipeline(vae: AutoencoderKL) -> LatentDiffusionPipeline:
    id2label = {0: "cat", 1: "dog", 2: "owl"}
    pipeline = LatentDiffusionPipeline(
        vae, make_denoiser(vae), create_scheduler("flow"), id2label=id2label
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def unconditional(vae: AutoencoderKL) -> LatentDiffusionPipeline:
    pipeline = LatentDiffusionPipeline(vae, make_denoiser(vae, None), create_scheduler("flow"))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def distilled(pipeline: LatentDiffusionPipeline) -> LatentDiffusionPipeline:
    """A model of 4 Euler steps, by the one class of them that plain diffusers' pipelines take."""
    scheduler = DPMSolverMultistepScheduler(
        solver_order=1, prediction_type="flow_prediction", use_flow_sigmas=True
    )
    settings = {"num_inference_steps": 4, "distilled": True}
    made = LatentDiffusionPipeline(pipeline.vae, pipeline.unet, scheduler, **settings)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture
def guided(pipeline: LatentDiffusionPipeline) -> LatentDiffusionPipeline:
    pipeline.register_modules(guide_unet=make_guide(pipeline.vae))
    return pipeline


@pytest.fixture
def unconditional_guided(unconditional: LatentDiffusionPipeline) -> LatentDiffusionPipeline:
    unconditional.register_modules(guide_unet=make_guide(unconditional.vae, None))
    return unconditional


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(4, 1, 16, 16, generator=torch.Generator().manual_seed(2)) * 2 - 1


@pytest.fixture
def compiled_eagerly(monkeypatch):
    """Let torch.compile use the eager backend, and return the classes that it compiles.

    Compiling to C++ takes minutes.
    """
    compile_module, compiled = torch.nn.Module.compile, []

    def compile_eagerly(module, **options):
        compiled.append(type(module).__name__)
        compile_module(module, backend="eager", **options)

    monkeypatch.setattr(torch.nn.Module, "compile", compile_eagerly)
    counters.clear()
    yield compiled
    torch._dynamo.reset()
