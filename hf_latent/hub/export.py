"""Export a model for programs that do not have this package: `hf-latent export`."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import diffusers
import huggingface_hub
from diffusers import FlowMatchEulerDiscreteScheduler

from hf_latent.command import Settings
from hf_latent.errors import UserError
from hf_latent.hub.card.render import render_card
from hf_latent.hub.ldm_pipeline import keeps_scheduler, to_ldm_pipeline
from hf_latent.hub.model_files import MODEL_FILES
from hf_latent.hub.page.write import PAGE_FILES, write_page
from hf_latent.lock import locks_output
from hf_latent.models.load import find_model, loading
from hf_latent.output import check_output_dir, replaced_whole
from hf_latent.pipeline import LatentDiffusionPipeline
from hf_latent.pipeline.add_noise import is_flow
from hf_latent.pipeline.denoise import DEFAULT_INFERENCE_STEPS, choose_sampling

PAGE_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True, kw_only=True)
class ExportConfig(Settings):
    """Export a model to a folder that plain diffusers loads, or to a page that runs it.

    Format ldm is for one class or none. Loading needs no remote code and not this package. The
    export has no guidance: from the same noise it draws the images of `hf-latent generate
    --guidance_scale 1`, within 1e-4 in [0, 1]. For a flow, the number of steps must divide 1,000,
    like 20 or 50; otherwise single pixels differ by a few hundredths. A flow is exported with the
    sampler euler, whatever its own is, and a distilled model with its own, within some thousandths.

    Format page is a folder of static files that runs the model in a visitor's browser, with
    all classes and guidance. Any web server serves it, such as `python -m http.server`, and so does
    a static Space. It needs the extra page: `pip install 'hf-latent[page]'`.

    Attributes:
        model: The folder of a model or of the run that trained one, the name of a released one, or
            an id on the Hub.
        output_dir: The folder to write.
        format: The format of the export: ldm is diffusers' LDMPipeline, page a web page.
        class_label: The label or name of the one class that ldm draws. By default a model with
            classes draws its null label.
        runtime: The folder dist of the npm package onnxruntime-web, for format page. By default
            the page loads it from a public address, and compares its hash.
        title: The title of a page. By default the name of the model's run or folder.
        overwrite_output_dir: Replace an earlier export in output_dir; other files in it stay.
    """

    model: str
    output_dir: str
    format: Literal["ldm", "page"] = "ldm"
    class_label: int | str | None = None
    runtime: str | None = None
    title: str | None = None
    overwrite_output_dir: bool = False

    def __post_init__(self) -> None:
        """Check that the settings are those of the format."""
        unused = {"ldm": ("runtime", "title"), "page": ("class_label",)}
        for name in unused[self.format]:
            if getattr(self, name) is not None:
                raise UserError(f"--{name} is not for --format {self.format}: leave it out")


@locks_output
def export(config: ExportConfig) -> Path:
    """Export a model, and print its folder and what it is.

    Returns:
        The folder.

    Raises:
        UserError: if the model or the class cannot be exported, or the folder cannot be written.
    """
    model = find_model(config.model)
    output_dir = check_output_dir(config.output_dir, config.overwrite_output_dir)
    with loading(model, "model"):
        pipeline = LatentDiffusionPipeline.from_pretrained(model)
    formats = {"ldm": _export_ldm, "page": _export_page}
    formats[config.format](pipeline, model, output_dir, config)
    return output_dir


def _export_ldm(
    pipeline: LatentDiffusionPipeline, model: str, output_dir: Path, config: ExportConfig
) -> None:
    class_label = None
    if config.class_label is not None:
        try:
            (class_label,) = pipeline.get_label_ids([str(config.class_label)])
        except ValueError as error:
            raise UserError(f"--class_label: {error}") from error
    exported = to_ldm_pipeline(pipeline, class_label)
    base_model = None if Path(model).is_dir() else model
    card = render_export_card(pipeline, class_label, base_model)
    for part in (exported.vqvae, exported.unet, exported.scheduler):
        part.register_to_config(_name_or_path="")  # no path of this machine in the files
    with replaced_whole(output_dir, written=MODEL_FILES) as temporary:
        exported.save_pretrained(temporary)
        (temporary / "README.md").write_text(card, encoding="utf-8")
    print(f"{_describe_class(pipeline, class_label)}, as a stock LDMPipeline: {output_dir}")
    _, guidance = choose_sampling(pipeline, pipeline.num_classes is not None)
    if guidance.scale != 1:
        print("the export has no guidance: its images are those of guidance_scale 1")


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


def render_export_card(
    pipeline: LatentDiffusionPipeline,
    class_label: int | None = None,
    base_model: str | None = None,
) -> str:
    """Render the card of an exported model.

    Args:
        pipeline: the model that was exported.
        class_label: the exported class; None: the null label.
        base_model: the model's id on the Hub, if it has one.

    Returns:
        The card: metadata as YAML, then Markdown, then the signature.
    """
    data = huggingface_hub.ModelCardData(
        base_model=base_model,
        library_name="diffusers",
        pipeline_tag="unconditional-image-generation",
        tags=["latent-diffusion", "hf-latent", "safetensors"],
    )
    config, kept = pipeline.scheduler.config, keeps_scheduler(pipeline)
    euler = isinstance(pipeline.scheduler, FlowMatchEulerDiscreteScheduler)
    steps, _ = choose_sampling(pipeline, pipeline.num_classes is not None)
    if not (kept or euler):
        steps = max(steps, DEFAULT_INFERENCE_STEPS)  # Euler needs more than the model's own sampler
    return render_card(
        "export_card.md",
        data,
        drawn=_describe_class(pipeline, class_label),
        class_label=class_label,
        num_classes=pipeline.num_classes,
        guided=pipeline.guide_unet is not None,
        base_model=base_model,
        steps=steps,
        distilled=pipeline.config.get("distilled"),
        flow=is_flow(pipeline.scheduler),
        converted=not kept,
        euler=euler,
        cut=kept or config.get("shift", config.get("flow_shift")) != 1,
        num_train_timesteps=config.num_train_timesteps,
        diffusers_version=diffusers.__version__,
    )


def _describe_class(pipeline: LatentDiffusionPipeline, class_label: int | None) -> str:
    if pipeline.num_classes is None:
        return "an unconditional model"
    if class_label is None:
        return f"no class (the null label of {pipeline.num_classes} classes)"
    name = pipeline.id2label.get(class_label)
    return f"class {class_label}" + (f" ({' '.join(str(name).split())})" if name else "")
