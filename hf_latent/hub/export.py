"""Export a model for programs that do not have this package: `hf-latent export`."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import diffusers
import huggingface_hub
from diffusers import ConfigMixin, FlowMatchHeunDiscreteScheduler

from hf_latent.command import Settings
from hf_latent.data.images.measured import PICTURE_CHANNELS
from hf_latent.errors import UserError
from hf_latent.hub.card.render import render_card
from hf_latent.hub.model_files import MODEL_FILES
from hf_latent.hub.page.write import PAGE_FILES, write_page
from hf_latent.hub.stock_pipeline import (
    STABLE_DIFFUSION,
    keeps_scheduler,
    stock_class_name,
    to_stock_pipeline,
)
from hf_latent.lock import locks_output
from hf_latent.models.load import find_model, loading, quiet_libraries
from hf_latent.output import check_output_dir, replaced_whole
from hf_latent.pipeline import LatentDiffusionPipeline
from hf_latent.pipeline.add_noise import is_flow
from hf_latent.pipeline.autoencoders import image_channels, latent_channels
from hf_latent.pipeline.conditions import has_prompts
from hf_latent.pipeline.decode import IMAGE_VALUES
from hf_latent.pipeline.denoise import choose_sampling

FORMATS = {"DiTPipeline": "dit", "LDMPipeline": "ldm", STABLE_DIFFUSION: "stable-diffusion"}
HAS = {"dit": "classes", "ldm": "no classes", "stable-diffusion": "prompts"}
PAGE_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True, kw_only=True)
class ExportConfig(Settings):
    """Export a model to a folder that plain diffusers loads, or to a page that runs it.

    Formats dit, ldm and stable-diffusion are diffusers' stock pipelines. Loading needs no remote
    code and not this package. dit (DiTPipeline) has classes, by name, and guides them at all noise
    levels; ldm (LDMPipeline) is for a model without classes. stable-diffusion
    (StableDiffusionPipeline) has prompts and negative prompts, and guides them at all noise levels;
    the classes of a model with both are left out. From the same noise and with the same guidance
    all draw the model's images within 1e-4 in [0, 1]. They truncate timesteps to whole numbers, so
    single pixels of a flow differ by a few hundredths, but not with the sampler euler, no shift and
    a number of steps that divides 1,000, like 20 or 50. The sampler heun of a flow becomes euler.

    Format page is a folder of static files that runs the model in a visitor's browser, with
    all classes and guidance. Any web server serves it, such as `python -m http.server`, and so does
    a static Space. It needs the extra page: `pip install 'hf-latent[page]'`.

    Attributes:
        model: The folder of a model or of the run that trained one, the name of a released one, or
            an id on the Hub.
        output_dir: The folder to write.
        format: dit, ldm or stable-diffusion, for diffusers, or page, for browsers. By default
            stable-diffusion for a model with prompts, dit for one with classes, and ldm for others.
        runtime: The folder dist of the npm package onnxruntime-web, for format page. By default
            the page loads it from a public address, and compares its hash.
        title: The title of a page. By default the name of the model's run or folder.
        overwrite_output_dir: Replace an earlier export in output_dir; other files in it stay.
    """

    model: str
    output_dir: str
    format: Literal["dit", "ldm", "stable-diffusion", "page"] | None = None
    runtime: str | None = None
    title: str | None = None
    overwrite_output_dir: bool = False

    def __post_init__(self) -> None:
        """Check that the settings are those of the format."""
        super().__post_init__()
        for name in ("runtime", "title"):
            if getattr(self, name) is not None and self.format != "page":
                raise UserError(f"--{name} is for --format page: leave it out, or add that")


@locks_output
def export(config: ExportConfig) -> Path:
    """Export a model, and print its folder and what it is.

    Returns:
        The folder.

    Raises:
        UserError: if the model cannot be exported, or the folder cannot be written.
    """
    model = find_model(config.model)
    output_dir = check_output_dir(config.output_dir, config.overwrite_output_dir)
    with loading(model, "model"):
        pipeline = LatentDiffusionPipeline.from_pretrained(model)
    if config.format == "page":
        _export_page(pipeline, model, output_dir, config)
    else:
        _export_stock(pipeline, model, output_dir, config.format)
    return output_dir


def _export_stock(
    pipeline: LatentDiffusionPipeline, model: str, output_dir: Path, asked: str | None
) -> None:
    own = FORMATS[stock_class_name(pipeline)]
    if asked not in (own, None):
        has = "no prompts" if asked == "stable-diffusion" else HAS[own]
        raise UserError(f"--format {asked} is not for a model with {has}: use --format {own}")
    exported = to_stock_pipeline(pipeline)
    card = render_export_card(pipeline, None if Path(model).is_dir() else model)
    for part in exported.components.values():
        if isinstance(part, ConfigMixin):
            part.register_to_config(_name_or_path="")  # no path of this machine in the files
    with replaced_whole(output_dir, written=MODEL_FILES) as temporary, quiet_libraries():
        exported.save_pretrained(temporary)
        (temporary / "README.md").write_text(card, encoding="utf-8")
    print(f"{_name_kind(pipeline)}, as a stock {type(exported).__name__}: {output_dir}")


def _name_kind(pipeline: LatentDiffusionPipeline) -> str:
    classes = pipeline.num_classes
    if has_prompts(pipeline.unet):
        kept = "" if classes is None else f", but without its {classes} classes"
        return f"a model with prompts{kept}"
    return "an unconditional model" if classes is None else f"a model of {classes} classes"


def _export_page(
    pipeline: LatentDiffusionPipeline, model: str, output_dir: Path, config: ExportConfig
) -> None:
    if missing := [name for name in PAGE_PACKAGES if find_spec(name) is None]:
        raise UserError(f"--format page needs {', '.join(missing)}: pip install 'hf-latent[page]'")
    runtime = None if config.runtime is None else Path(config.runtime)
    title = config.title or name_model(model)
    with replaced_whole(output_dir, written=PAGE_FILES) as temporary:
        report = write_page(pipeline, title, runtime, temporary)
    for step, figures in report.items():
        print(
            f"{step}: {figures['bytes'] / 1e6:.1f} MB, {figures['weights']}, equal to the "
            f"pipeline's within {figures['greatest_difference']:.1g}"
        )
    print(f"a page: {output_dir}. Try it: python -m http.server --directory {output_dir}")


def name_model(model: str) -> str:
    """Return the name of a model's folder, or of its run if a run saved it; or the model's id."""
    folder = Path(model).resolve()
    if not folder.is_dir():
        return model
    return folder.parent.name if folder.name == "model" else folder.name


def render_export_card(pipeline: LatentDiffusionPipeline, base_model: str | None = None) -> str:
    """Render the card of a model as a stock pipeline.

    Args:
        pipeline: the model that was exported.
        base_model: the model's id on the Hub, if it has one.

    Returns:
        The card: metadata as YAML, then Markdown, then the signature.
    """
    class_name, kept = stock_class_name(pipeline), keeps_scheduler(pipeline)
    prompts, classes = has_prompts(pipeline.unet), class_name == "DiTPipeline"
    data = huggingface_hub.ModelCardData(
        base_model=base_model,
        library_name="diffusers",
        pipeline_tag="text-to-image" if prompts else "unconditional-image-generation",
        tags=["class-conditional-image-generation"] * classes
        + ["latent-diffusion", "hf-latent", "safetensors"],
    )
    config = pipeline.scheduler.config
    steps, guidance = choose_sampling(pipeline, prompts or classes)
    height, width = pipeline.latent_size
    return render_card(
        "export_card.md",
        data,
        class_name=class_name,
        format=FORMATS[class_name],
        prompts=prompts,
        text_encoder=type(pipeline.text_encoder).__name__,
        square=height == width,
        rgba=image_channels(pipeline.vae) == 4,
        latent_channels=latent_channels(pipeline.vae),
        classes=classes,
        num_classes=pipeline.num_classes,
        first_class=next(iter(pipeline.id2label.values()), "").partition(",")[0].strip(),
        guidance_scale=max(guidance.scale, 1),
        weakened=guidance.scale < 1,
        interval=None if guidance.scale == 1 else guidance.interval,
        pictures=image_channels(pipeline.vae) in PICTURE_CHANNELS,
        has_values=IMAGE_VALUES in pipeline.vae.config,
        guided=pipeline.guide_unet is not None,
        base_model=base_model,
        steps=steps,
        distilled=pipeline.config.get("distilled"),
        flow=is_flow(pipeline.scheduler),
        converted=not kept,
        heun=isinstance(pipeline.scheduler, FlowMatchHeunDiscreteScheduler),
        cut=kept or config.shift != 1,
        num_train_timesteps=config.num_train_timesteps,
        diffusers_version=diffusers.__version__,
    )
