"""Export a model to a folder that plain diffusers loads with no remote code: `hf-latent export`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import diffusers
import huggingface_hub
from diffusers import FlowMatchEulerDiscreteScheduler

from hf_latent.command import Settings
from hf_latent.errors import UserError
from hf_latent.hub.card.render import render_card
from hf_latent.hub.ldm_pipeline import to_ldm_pipeline
from hf_latent.hub.model_files import MODEL_FILES
from hf_latent.lock import locks_output
from hf_latent.models.load import find_model, loading
from hf_latent.output import check_output_dir, replaced_whole
from hf_latent.pipeline import LatentDiffusionPipeline


@dataclass(frozen=True, kw_only=True)
class ExportConfig(Settings):
    """Export a model, for one class or none, to a folder that plain diffusers loads.

    Loading needs no remote code and not this package. The export has no guidance: from the same
    noise it draws the images of `hf-latent generate --guidance_scale 1`, within 1e-4 in [0, 1]. For
    a flow, the number of steps must divide 1,000, like 20 or 50; otherwise single pixels differ by
    a few hundredths.

    Attributes:
        model: The folder of a model or of the run that trained one, the name of a released one, or
            an id on the Hub.
        output_dir: The folder to write.
        format: The format of the export: "ldm" is diffusers' LDMPipeline.
        class_label: The label or name of the one class to draw. By default a model with classes
            draws its null label.
        overwrite_output_dir: Replace an earlier model in output_dir; other files in it stay.
    """

    model: str
    output_dir: str
    format: Literal["ldm"] = "ldm"
    class_label: int | str | None = None
    overwrite_output_dir: bool = False


@locks_output
def export(config: ExportConfig) -> Path:
    """Export a model, and print its folder and what it draws.

    Returns:
        The folder.

    Raises:
        UserError: if the model or the class cannot be exported, or the folder cannot be written.
    """
    model = find_model(config.model)
    output_dir = check_output_dir(config.output_dir, config.overwrite_output_dir)
    with loading(model, "model"):
        pipeline = LatentDiffusionPipeline.from_pretrained(model)
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
    if pipeline.num_classes is not None or pipeline.guide_unet is not None:
        print("the export has no guidance: its images are those of guidance_scale 1")
    return output_dir


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
    config = pipeline.scheduler.config
    return render_card(
        "export_card.md",
        data,
        drawn=_describe_class(pipeline, class_label),
        class_label=class_label,
        num_classes=pipeline.num_classes,
        guided=pipeline.guide_unet is not None,
        base_model=base_model,
        flow=isinstance(pipeline.scheduler, FlowMatchEulerDiscreteScheduler),
        shifted=config.get("shift") not in (None, 1),
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
