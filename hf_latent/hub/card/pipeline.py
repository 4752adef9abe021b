"""What the card of a pipeline says; `pipeline_card.md` is its template."""

import json
from typing import Any

from huggingface_hub import EvalResult

from hf_latent.hub.card.autoencoder import COLOURS
from hf_latent.hub.card.facts import ModelFacts
from hf_latent.hub.card.figures import HELD_OUT, guide_name, interval_text, reconstruction_figures
from hf_latent.hub.card.origin import (
    autoencoder_limits,
    held_out_limit,
    held_out_noun,
    origin_text,
    start_text,
)
from hf_latent.hub.card.results import generation_results
from hf_latent.hub.card.tables import (
    denoiser_training_rows,
    figure_rows,
    generation_rows,
    memorisation_rows,
    memorisation_verdict,
)
from hf_latent.hub.card.text import code_block, counted, number, plain
from hf_latent.hub.card.training import hub_id, training_text, versions_text
from hf_latent.pipeline.denoise import DEFAULT_GUIDANCE_SCALE

SHOWN_CLASSES = 100


def pipeline_texts(facts: ModelFacts, source: str) -> tuple[dict[str, Any], list[EvalResult]]:
    """Say what is known of a pipeline.

    Args:
        facts: of its folder.
        source: what the examples load.

    Returns:
        What the template shows, and the results for the metadata.
    """
    training, metrics = facts.training, facts.metrics
    # A release knows another name of the data.
    about = {key: metrics[key] for key in ("data_name",) if key in metrics}
    name = (training | about).get("data_name", training.get("data"))
    data, title = plain(name), metrics.get("name") or _title(name)
    classes = list(facts.class_names.items())
    held_out = held_out_noun(training, metrics)
    texts = {
        "name": title,
        "title": plain(title),
        "tags": ["class-conditional-image-generation"] if facts.num_classes else [],
        "summary": metrics.get("summary") or _summary(facts, data),
        "samples_caption": _samples_caption(facts),
        "source": source,
        "has_code": facts.has_code,
        "arguments": _arguments(facts),
        "classes": [(label, plain(name)) for label, name in classes[:SHOWN_CLASSES]],
        "more_classes": len(classes[SHOWN_CLASSES:]),
        "num_classes": facts.num_classes,
        "compression": facts.compression,
        "vae_class": facts.vae_class,
        "autoencoder": plain(training.get("autoencoder")),
        "vae": facts.weights["vae"],
        "unet": facts.weights["unet"],
        "guide": facts.weights.get("guide_unet"),
        "scheduler": plain(facts.scheduler),
        "guidance": _own_guidance(facts.guidance),
        "objective": plain(facts.objective),
        "num_images": _images(metrics.get("num_images"), "image"),
        "generation": generation_rows(metrics),
        "measured_how": _measured_how(metrics),
        "reconstruction": figure_rows(reconstruction_figures(metrics, "reconstruction_")),
        "reconstructed": _numbered(metrics.get("reconstruction_images"), held_out),
        "memorisation": memorisation_rows(metrics),
        "compared": _images(metrics.get("train_images"), "training image"),
        "copy_ratio": number(metrics.get("memorisation_copy_ratio"), "g"),
        "held_out": held_out,
        "by_chance": _by_chance(held_out),
        "verdict": memorisation_verdict(metrics, held_out),
        "data": metrics.get("data_text") or origin_text(training | about),
        "counts": origin_text(training | about) if "data_text" in metrics else None,
        "training": training_text(training),
        "training_rows": denoiser_training_rows(training),
        "recipe": code_block(facts.recipe, "yaml") if facts.recipe else None,
        "versions": versions_text(training),
        "pictures": facts.pictures,
        "about": metrics,
        "limits": _limits(facts, data),
    }
    name = str(metrics.get("data_name", metrics.get("data")))
    named = (hub_id(metrics.get("data")) or name, name)
    return texts, generation_results(metrics, named, held_out)


def _title(data: str | None) -> str:
    return f"Latent diffusion model of {data}" if data else "Latent diffusion model"


def _images(count: Any, noun: str) -> str | None:
    return counted(count, noun) if number(count, "d") else None


def _numbered(count: Any, nouns: str) -> str:
    shown = number(count, ",d")
    return f"{shown} {nouns}" if shown else nouns


def _by_chance(held_out: str) -> str:
    shows = "how often that comes about by chance."
    if held_out == HELD_OUT:
        return f"Held-out images\nwere never trained on: they show {shows}"
    return f"The {held_out}\nmay have been trained on: they do not show {shows}"


def _summary(facts: ModelFacts, data: str | None) -> str:
    channels, height, width = facts.compression.image_shape
    colour = COLOURS.get(channels, f"{channels}-channel")
    kind = f"of any of {facts.num_classes:,} classes" if facts.num_classes else "without classes"
    of_data = f", like those of {data}" if data else ""
    return (
        f"Draws {colour} images of {height}x{width} pixels{of_data}, {kind}: a denoiser in the "
        "latent space of an autoencoder, as a diffusers pipeline."
    )


def _samples_caption(facts: ModelFacts) -> str:
    shown = "Samples, a row a class" if facts.num_classes else "Samples"
    how = _sampling(facts.metrics) or "as at the end of the training"
    return f"{shown}, {how}; not selected."


def _sampling(metrics: dict[str, Any]) -> str | None:
    """Say how measured samples were drawn; None where none were."""
    guidance, steps, evaluations = (
        number(metrics.get(key), form)
        for key, form in (
            ("guidance_scale", "g"),
            ("num_inference_steps", "d"),
            ("denoiser_evaluations_per_image", "d"),
        )
    )
    if guidance is None or steps is None:
        return None
    sampler = metrics.get("sampler")
    of = f" of {sampler}" if isinstance(sampler, str) and sampler.isidentifier() else ""
    guide = plain(guide_name(metrics))
    kind, by, evaluated = "guidance", "", "the denoiser"
    if guide:
        kind, by, evaluated = "autoguidance", f" by {guide}", "the denoiser or its guide"
    text = f"at {kind} {guidance}{by}{interval_text(metrics)}, {steps} steps{of}"
    return f"{text} ({evaluations} evaluations of {evaluated} an image)" if evaluations else text


def _own_guidance(guidance: dict[str, Any]) -> str | None:
    """Say what a call guides with where it does not say; None where that is the usual."""
    scale = number(guidance.get("guidance_scale"), "g")
    text = f"{scale or f'{DEFAULT_GUIDANCE_SCALE:g}'}{interval_text(guidance)}"
    return text if guidance else None


def _arguments(facts: ModelFacts) -> str:
    """Return an example's arguments, in Python: no text of a file leaves its quotes."""
    if facts.num_classes is None:
        return "num_images=1"
    if not facts.class_names:
        return "class_labels=[0]"
    name = next(iter(facts.class_names.values()))
    return f"class_labels=[{json.dumps(name, ensure_ascii=not name.isprintable())}]"


def _measured_how(metrics: dict[str, Any]) -> str:
    """Say what the figures of generated images mean."""
    sentences = []
    if sampling := _sampling(metrics):
        sentences.append(f"Samples {sampling}.")
    if "fd" in metrics:
        data = plain(metrics.get("data_name", metrics.get("data")))
        features = plain(metrics.get("feature_extractor"))
        sentences.append(
            "Generated images, and as many real ones, are compared with other training images of "
            f"{data} in features of {features}: FD is the Fréchet distance there. It is not the "
            "FID of papers, and depends on the number of images."
        )
    if "label_agreement" in metrics:
        sentences.append(
            "Label agreement is how often a classifier that was trained on real images sees the "
            "class that was asked for; of real images, how often it is right."
        )
    if digest := plain(metrics.get("comparable_if_equal")):
        sentences.append(f"Comparable with reports whose `comparable_if_equal` is {digest}.")
    return "\n".join(sentences)


def _limits(facts: ModelFacts, data: str | None) -> list[str]:
    """Return what the model cannot do, as far as it was measured, and what was not."""
    training, metrics = facts.training, facts.metrics
    channels, height, width = facts.compression.image_shape
    limits = [
        f"Every image has {counted(channels, 'channel')} and {height}x{width} pixels: the denoiser "
        "fixes both."
    ]
    start = start_text(training)
    if start:
        limits.append(f"Its denoiser was {start}: those held out here may be among them.")
    elif data:
        limits.append(f"Its denoiser was trained on images of {data} and no others.")
    if training:
        limits += autoencoder_limits(training, metrics)
    other = held_out_limit(training, metrics)
    if other and ("reconstruction_psnr_db" in metrics or memorisation_rows(metrics)):
        limits.append(other)
    floor, own, real = (number(metrics.get(key), ".2f") for key in ("floor_fd", "fd", "real_fd"))
    if floor and own and real:
        limits.append(
            f"A perfect denoiser in this latent space would reach an FD of {floor}, since the "
            f"autoencoder loses something; this one reaches {own}, real images {real}."
        )
    elif kept := number(metrics.get("reconstruction_psnr_db"), ".1f"):
        of = held_out_noun(training, metrics)
        limits.append(
            f"No image is better than what its autoencoder keeps of {of}: {kept} dB PSNR."
        )
    elif kept := number(training.get("autoencoder_held_out_psnr_db"), ".1f"):
        limits.append(
            f"No image is better than what its autoencoder keeps of {HELD_OUT}: {kept} dB PSNR."
        )
    counts = [report.get("train_images") for report in (training, metrics)]
    if memorisation_rows(metrics) and None not in counts and counts[0] != counts[1]:
        limits.append(
            f"Copies were looked for among {counts[1]:,} images of {plain(metrics.get('data'))}; "
            f"it was trained on {counts[0]:,}."
        )
    missing = [
        text
        for keys, text in (
            (("fd",), "how close its images come to real ones"),
            (("memorisation_latents_copies",), "whether it copies training images"),
            (
                ("reconstruction_psnr_db", "autoencoder_held_out_psnr_db"),
                "what its autoencoder loses",
            ),
        )
        if not any(key in report for key in keys for report in (metrics, training))
    ]
    if missing:
        limits.append(f"Not measured: {', '.join(missing)}; see `hf-latent evaluate`.")
    if not training:
        limits.append("Not known: what it was trained on, and how.")
    return limits
