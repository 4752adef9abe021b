"""Write a page: three graphs, the sampler's numbers, and the files that show them."""

import base64
import hashlib
import json
import re
import shutil
from importlib.resources import files
from pathlib import Path
from typing import Any

from hf_latent.data.images.measured import PICTURE_CHANNELS
from hf_latent.errors import UserError
from hf_latent.hub.page.graphs import export_graphs
from hf_latent.hub.page.steps import tabulate_noising, tabulate_steps
from hf_latent.output import write_json
from hf_latent.pipeline import LatentDiffusionPipeline
from hf_latent.pipeline.autoencoders import downsampling_factor, image_channels
from hf_latent.pipeline.conditions import has_prompts
from hf_latent.pipeline.denoise import choose_sampling

SAMPLER, STEPS, DEFAULT_STEPS = "unipc", (4, 6, 8, 10, 20), 8
# onnxruntime for browsers: the module, and the machine code that it loads.
RUNTIME_VERSION = "1.30.0"
RUNTIME_ADDRESS = f"https://cdn.jsdelivr.net/npm/onnxruntime-web@{RUNTIME_VERSION}/dist"
RUNTIME_FILES = {
    "ort.wasm.bundle.min.mjs": (
        "sha384-PLWz+nHEVHpjwBsO0YVdvQj6n5814Iv8E3b8FG0Rp/uIAtjFMCKOpP66iPzedrIG"
    ),
    "ort-wasm-simd-threaded.wasm": (
        "sha384-vjBJ1z7qrhkTyYsNqKeF6c7N+nOJSU94czEo+tvZcu8G75JparGq9kB+kTnEUNVM"
    ),
}
BROWSER_FILES = (
    *("index.html", "style.css", "page.js", "model.js", "drawing.js"),
    *("encode.js", "add_noise.js", "denoise.js", "decode.js"),
)
PAGE_FILES = re.compile(
    rf"({'|'.join(map(re.escape, BROWSER_FILES))})|page\.json|README\.md|"
    rf"(encode|denoise|decode)\.onnx|runtime/({'|'.join(map(re.escape, RUNTIME_FILES))})"
)


def check_pageable(pipeline: LatentDiffusionPipeline) -> None:
    """Check that a page can run a model.

    Raises:
        UserError: if it has prompts or a guide, or its images are no pictures.
    """
    if has_prompts(pipeline.unet):
        raise UserError(
            "--format page has no text encoder, and this is a model with prompts: use --format "
            "stable-diffusion"
        )
    if pipeline.guide_unet is not None:
        raise UserError(
            "--format page has no autoguidance: distil the model first (hf-latent distill), or "
            "leave --format out"
        )
    channels = image_channels(pipeline.vae)
    if channels not in PICTURE_CHANNELS:
        raise UserError(
            f"--format page shows grey, RGB and RGBA pictures, and this model's images have "
            f"{channels} channels: leave --format out"
        )


def write_page(
    pipeline: LatentDiffusionPipeline, title: str, runtime: Path | None, folder: Path
) -> dict[str, Any]:
    """Write the files of a page.

    Args:
        pipeline: the model; its weights become float32.
        title: of the page.
        runtime: a folder with the files of `RUNTIME_FILES`, which are copied; None: the page
            loads them from `RUNTIME_ADDRESS`.
        folder: to write into; it may be missing.

    Returns:
        What `graphs.export_graphs` returns.

    Raises:
        UserError: if the model cannot be a page, or the runtime lacks a file.
    """
    check_pageable(pipeline)
    folder.mkdir(exist_ok=True)
    described = describe_runtime(runtime, folder)
    report = export_graphs(pipeline, folder)
    write_json(folder / "page.json", describe_model(pipeline, title) | {"runtime": described})
    for name in BROWSER_FILES:
        (folder / name).write_bytes(files(__package__).joinpath("browser", name).read_bytes())
    # What makes a static Space of the folder.
    header = f"---\ntitle: {json.dumps(title)}\nsdk: static\n---\n"
    about = "The model of this page runs in the visitor's browser. Made by hf_latent.\n"
    (folder / "README.md").write_text(header + about, encoding="utf-8")
    return report


def describe_model(pipeline: LatentDiffusionPipeline, title: str) -> dict[str, Any]:
    """Return what a page knows of its model: shapes, classes, guidance, and the sampler's steps."""
    (height, width), f = pipeline.latent_size, downsampling_factor(pipeline.vae)
    channels = pipeline.unet.config.in_channels
    classes, names = pipeline.num_classes, pipeline.id2label
    distilled = bool(pipeline.config.get("distilled"))
    default = pipeline.config.get("num_inference_steps") or DEFAULT_STEPS
    sampler, steps = (None, {default}) if distilled else (SAMPLER, {*STEPS, default})
    return {
        "title": title,
        "image_shape": [image_channels(pipeline.vae), height * f, width * f],
        "latent_shape": [channels, height, width],
        "classes": classes and [names.get(i, f"class {i}") for i in range(classes)],
        "distilled": distilled,
        "guidance_scale": choose_sampling(pipeline, True)[1].scale,
        "noising": tabulate_noising(pipeline),
        "default_steps": default,
        "steps": {str(n): tabulate_steps(pipeline, sampler, n) for n in sorted(steps)},
    }


def describe_runtime(runtime: Path | None, folder: Path) -> list[dict[str, str]]:
    """Return address and hash of each file of the runtime; copy given files into the folder.

    A browser refuses a file of another hash (Subresource Integrity, W3C).
    """
    described = []
    for name, integrity in RUNTIME_FILES.items():
        address = f"{RUNTIME_ADDRESS}/{name}"
        if runtime is not None:
            if not (runtime / name).is_file():
                raise UserError(
                    f"--runtime {runtime} has no {name}: give the folder dist of the npm package "
                    "onnxruntime-web"
                )
            (folder / "runtime").mkdir(exist_ok=True)
            shutil.copyfile(runtime / name, folder / "runtime" / name)
            digest = hashlib.sha384((runtime / name).read_bytes()).digest()
            address = f"runtime/{name}"
            integrity = f"sha384-{base64.b64encode(digest).decode()}"
        described.append({"address": address, "integrity": integrity})
    return described
