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
from hf_latent.models.load import find_released, loading
from hf_latent.output import check_output_dir, replaced_whole
from hf_latent.pipeline import LatentDiffusionPipeline

EXPORTED = {"README.md", "model_index.json", "scheduler", "unet", "vqvae"}


@dataclass(frozen=True, kw_only=True)
class ExportConfig(Settings):
    """Export a model, for one class or none, to a folder that plain diffusers loads.

    It is loaded with no remote code and without this package. There is no guidance in it: from the
    same noise it draws the images of `hf-latent generate --guidance_scale 1`, within 1e-4 in
    [0, 1]. Those of a flow are so at numbers of steps that divide 1,000, like 20 or 50; at others
    single pixels differ by some hundredths.

    Attributes:
        model: The folder or Hub id of a model, or the name of a released one.
        output_dir: The folder to write.
        format: What to write: "ldm" is diffusers' LDMPipeline.
        class_label: The label or name of the one class to draw. By default none: the null label of
            a model with classes.
        overwrite_output_dir: Replace an earlier export in output_dir.
    """

    model: str
    output_dir: str
    format: Literal["ldm"] = "ldm"
    class_label: int | str | None = None
    overwrite_output_dir: bool = False


def export(config: ExportConfig) -> Path:
    """Export a model, and print where to and what it draws.

    Args:
        config: which model, what of it, and where to.

    Returns:
        The folder.

    Raises:
        UserError: if the model, the class or the folder is not fit.
    """
    output_dir = check_output_dir(config.output_dir, config.overwrite_output_dir)
    if output_dir.is_dir():
        kept = sorted({path.name for path in output_dir.iterdir()} - EXPORTED)
        if kept:  # the folder is replaced as a whole
            raise UserError(
                f"--output_dir {output_dir} has {kept[0]} in it, which is of no export: "
                "choose another"
            )
    model = find_released(config.model)
    with loading(model, "model"):
        pipeline = LatentDiffusionPipeline.from_pretrained(model)
    class_label = _chosen_label(pipeline, config.class_label)
    exported = to_ldm_pipeline(pipeline, class_label)
    base_model = None if Path(model).is_dir() else model
    card = render_export_card(pipeline, class_label, base_model)
    for part in (exported.vqvae, exported.unet, exported.scheduler):
        part.register_to_config(_name_or_path="")  # no path of this machine in the files
    with replaced_whole(output_dir) as temporary:
        exported.save_pretrained(temporary)
        (temporary / "README.md").write_text(card, encoding="utf-8")
    print(f"{_drawn(pipeline, class_label)}, as a stock LDMPipeline: {output_dir}")
    if pipeline.num_classes is not None or pipeline.guide_unet is not None:
        print("there is no guidance in it: its images are those of guidance_scale 1")
    return output_dir


def render_export_card(
    pipeline: LatentDiffusionPipeline,
    class_label: int | None = None,
    base_model: str | None = None,
) -> str:
    """Write the card of an exported model.

    Args:
        pipeline: the model that was exported.
        class_label: the class that was, or None.
        base_model: the model's id on the Hub; None: it has none.

    Returns:
        The card: metadata as YAML, then Markdown, then its signature.
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
        drawn=_drawn(pipeline, class_label),
        class_label=class_label,
        num_classes=pipeline.num_classes,
        guided=pipeline.guide_unet is not None,
        base_model=base_model,
        flow=isinstance(pipeline.scheduler, FlowMatchEulerDiscreteScheduler),
        shifted=config.get("shift") not in (None, 1),
        num_train_timesteps=config.num_train_timesteps,
        diffusers_version=diffusers.__version__,
    )


def _chosen_label(pipeline: LatentDiffusionPipeline, asked: int | str | None) -> int | None:
    if asked is None:
        return None
    try:
        (label,) = pipeline.get_label_ids([str(asked)])
    except ValueError as error:
        raise UserError(f"--class_label: {error}") from error
    return label


def _drawn(pipeline: LatentDiffusionPipeline, class_label: int | None) -> str:
    """Say what an export draws."""
    if pipeline.num_classes is None:
        return "an unconditional model"
    if class_label is None:
        return f"no class (the null label of {pipeline.num_classes} classes)"
    name = pipeline.id2label.get(class_label)
    return f"class {class_label}" + (f" ({' '.join(str(name).split())})" if name else "")
