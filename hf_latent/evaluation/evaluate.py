"""`hf-latent evaluate`: what a model keeps, how close its images come, and whether it copies."""

from pathlib import Path
from typing import Any

from hf_latent.data.shards import Shards
from hf_latent.errors import UserError
from hf_latent.evaluation.config import EvaluateConfig
from hf_latent.evaluation.evaluate_pictures import save_pictures
from hf_latent.evaluation.features.extractors import LatentVectors, load_feature_extractor
from hf_latent.evaluation.images.captioned import HeldOutCaptions, draw_conditions, measure_words
from hf_latent.evaluation.images.generated import measure_classes, write_samples
from hf_latent.evaluation.images.reference import (
    cached_neighbours,
    comparison_figures,
    open_real_images,
    vectors_by_space,
)
from hf_latent.evaluation.images.sampling import count_evaluations, load_pipeline
from hf_latent.evaluation.limit import describe_limit, name_limit
from hf_latent.evaluation.machine import machine_figures, shown_name
from hf_latent.evaluation.measures.clip_score import load_clip
from hf_latent.evaluation.measures.floor import measure_autoencoder, write_perfect_samples
from hf_latent.evaluation.measures.generation import compare_sets
from hf_latent.evaluation.measures.memorisation import (
    COPY_RATIO,
    Closeness,
    Duplicates,
    measure_closeness,
    memorisation_figures,
)
from hf_latent.evaluation.precision import choose_dtype, in_dtype
from hf_latent.evaluation.stages import Stages
from hf_latent.models.frozen import hash_weights
from hf_latent.output import check_output_dir, write_json
from hf_latent.pipeline.conditions import has_prompts
from hf_latent.pipeline.decode import shown_channels

STAGES = 9  # classes and a CLIP model add one each, captions two
PREFIXES = ("", "floor_", "real_")
SHOWN = (
    ("fd", "FD", ".2f"),
    ("kid", "KID", ".5f"),
    *((name, name, ".3f") for name in ("precision", "recall", "density", "coverage")),
)
SHOWN_OF_WORDS = (
    ("retrieval_recall_at_1", "recall at 1", ".3f"),
    ("retrieval_recall_at_5", "recall at 5", ".3f"),
    ("retrieval_median_rank", "median rank", "g"),
    ("clip_score", "CLIP score", ".2f"),
)


def measure_memorisation(
    samples: Shards, vectors: dict[str, dict[str, Shards]], stages: Stages
) -> tuple[dict[str, Any], dict[str, Closeness], dict[str, Duplicates]]:
    """Compare samples with all training images in each space, one stage per space.

    Args:
        samples: from `write_samples`.
        vectors: from `vectors_by_space`.

    Returns:
        Flat figures, and by space the samples' closeness and the training images' duplicates.
    """
    figures: dict[str, Any] = {"memorisation_found": None, "memorisation_copy_ratio": COPY_RATIO}
    closeness, duplicates = {}, {}
    for space, shards in vectors.items():
        real = {name: x.select("vectors") for name, x in shards.items()}
        total = len(real["train"]) + 2 * len(samples) + 2 * len(real["held_out"])
        with stages.stage(f"memorisation by {space}", total) as bar:
            duplicates[space] = Duplicates.from_neighbours(*cached_neighbours(shards["train"], bar))
            closeness[space], held_out = (
                measure_closeness(*images, real["train"], duplicates[space], bar.update)
                for images in (
                    (samples.select(space), samples.select(f"{space}_mirrored")),
                    (real["held_out"], real["held_out_mirrored"]),
                )
            )
        figures |= memorisation_figures(closeness[space], held_out, space)
        figures[f"train_near_duplicates_by_{space}"] = duplicates[space].count
    found = [figures[f"memorisation_{space}_found"] for space in vectors]
    figures["memorisation_found"] = None if None in found and True not in found else True in found
    return figures, closeness, duplicates


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Measure a model and write metrics.json and pictures.

    Returns:
        The content of metrics.json.

    Raises:
        UserError: if the model, the data or a setting does not fit, in one line.
    """
    folder = Path(config.output_dir)
    begun = (folder / "generated").is_dir() and not (folder / "metrics.json").exists()
    output_dir = check_output_dir(folder, config.overwrite_output_dir or begun)
    pipeline = load_pipeline(config.model, config.sampler, config.guide)
    steps, guidance = config.choose_sampling(pipeline)
    conditional, guide = pipeline.num_classes is not None, pipeline.guide_unet
    words = has_prompts(pipeline.unet)
    if config.clip_model is not None and not words:
        raise UserError("--clip_model is for a model with prompts: leave it out")
    stages = Stages(STAGES + conditional + 2 * words + (config.clip_model is not None))
    with stages.stage("setup", shown=False):
        extractor = load_feature_extractor(config.feature_extractor)
        extractor.see(shown_channels(pipeline.vae))
        spaces = {"features": extractor, "latents": LatentVectors(pipeline.vae)}
        splits, real = open_real_images(config, pipeline)
        captions = HeldOutCaptions.of(real.held_out, splits.captions) if words else None
        clip = None if config.clip_model is None else load_clip(config.clip_model)
        evaluations = count_evaluations(pipeline, steps, guidance)
        dtype = choose_dtype(pipeline, config.dtype)
        sampled = in_dtype(pipeline, dtype)  # the rest is measured in float32
    count = len(real.reference)
    texts = None if captions is None else captions.texts
    labels, prompts = draw_conditions(real.subset(real.reference), texts, conditional)
    with stages.stage("sampling", count) as bar:
        samples = write_samples(sampled, labels, count, config, spaces, bar, prompts)
    vectors = vectors_by_space(
        real, spaces, config.cache_dir, config.batch_size, config.dataloader_num_workers, stages
    )
    features = {name: shards.select("vectors") for name, shards in vectors["features"].items()}
    train = vectors["features"]["train"]
    reference, other = (train.select("vectors", rows) for rows in (real.reference, real.other))
    with stages.stage("reconstruction", len(real.held_out)) as bar:
        kept = measure_autoencoder(
            pipeline.vae, real.held_out, features["held_out"], extractor, config.batch_size, bar
        )
    with stages.stage("floor", count) as bar:
        perfect = write_perfect_samples(
            pipeline.vae,
            real.subset(real.other),
            output_dir / "perfect",
            extractor,
            config.batch_size,
            config.seed,
            bar,
        )
    with stages.stage("distances"):
        generation = compare_sets(samples.select("features"), reference)
        generation |= compare_sets(perfect.select("features"), reference, "floor_")
        generation |= compare_sets(other, reference, "real_")
    classes: dict[str, Any] = {}
    if labels is not None:
        with stages.stage("classifiers") as bar:
            classes = measure_classes(
                samples, perfect, real, splits.num_classes or 1, config.seed, bar
            )
    word_figures: dict[str, Any] = {}
    if captions is not None:
        own = captions.in_turn(min(len(captions.rows), count))
        known = real.held_out.labels if conditional else None
        with stages.stage("caption samples", len(own.rows)) as bar:
            caption_samples = write_samples(
                sampled,
                None if known is None else known[own.rows],
                *(len(own.rows), config, spaces, bar, own.prompts, "generated_from_held_out"),
            )
        word_figures = measure_words(
            caption_samples,
            *(captions, real, vectors["features"], pipeline, clip, config.seed, stages),
        )
        word_figures["clip_model"] = config.clip_model and shown_name(config.clip_model)
    memorisation, closeness, duplicates = measure_memorisation(samples, vectors, stages)
    limit, limit_reasons = name_limit(generation | classes)
    metrics = {
        "limit": limit,
        "limit_reasons": limit_reasons,
        "model": shown_name(config.model),
        "vae_weights_sha256": hash_weights(pipeline.vae),
        "unet_weights_sha256": hash_weights(pipeline.unet),
        "guide": None if guide is None else shown_name(config.guide or "guide_unet"),
        "guide_unet_weights_sha256": None if guide is None else hash_weights(guide),
        "data": shown_name(config.data),
        "feature_extractor": config.feature_extractor,
        **comparison_figures(real, extractor, config.seed),
        "train_images": len(real.train),
        "train_exact_duplicates": real.train.exact_duplicates,
        "held_out_images": len(real.held_out),
        "validation_fingerprint": splits.validation_fingerprint,
        **splits.summary.figures(),
        "sampler": type(pipeline.scheduler).__name__,
        "guidance_scale": guidance.scale,
        "guidance_interval": guidance.interval,
        "num_inference_steps": steps,
        "denoiser_evaluations_per_image": evaluations,
        "sampling_dtype": str(dtype).removeprefix("torch."),
        **generation,
        **kept,
        **classes,
        **word_figures,
        **memorisation,
    }
    write_json(output_dir / "metrics.json", metrics | stages.figures() | machine_figures())
    with stages.stage("pictures"):
        shown = None if captions is None else (captions, caption_samples)
        save_pictures(output_dir, pipeline, real, samples, closeness, duplicates, shown)
    metrics |= stages.figures() | machine_figures()
    write_json(output_dir / "metrics.json", metrics)
    print(describe_metrics(metrics, output_dir))
    return metrics


def describe_metrics(metrics: dict[str, Any], output_dir: Path) -> str:
    """Return lines for the terminal: the main figures beside those of real images."""
    n, train_images = metrics["num_images"], metrics["train_images"]
    shown = {name: f"{metrics[name]:.3f}" for name in metrics if isinstance(metrics[name], float)}
    lines = [
        f"{n:,} generated images; with a perfect denoiser; real ones:",
        *(
            f"{label} {'; '.join(f'{metrics[prefix + key]:{form}}' for prefix in PREFIXES)}"
            for key, label, form in SHOWN
        ),
        f"reconstruction {metrics['reconstruction_psnr_db']:.2f} dB, rFD "
        f"{metrics['reconstruction_fd']:.2f}",
    ]
    if "label_agreement" in metrics:
        lines += [
            f"label agreement {shown['label_agreement']}; {shown['floor_label_agreement']}; "
            f"{shown['label_agreement_judge_real_accuracy']}",
            "accuracy on real images of a classifier trained on these "
            f"{shown['train_on_generated_test_on_real_accuracy']}; "
            f"{shown['floor_train_on_generated_test_on_real_accuracy']}; "
            f"{shown['train_on_real_test_on_real_accuracy']}",
        ]
    if "retrieval_num_captions" in metrics:
        count = metrics["retrieval_num_captions"]
        lines.append(f"own caption among {count:,} held-out ones; of real images:")
    lines += [
        f"{label} {metrics[key]:{form}}; {metrics[f'real_{key}']:{form}}"
        for key, label, form in SHOWN_OF_WORDS
        if metrics.get(key) is not None
    ]
    copies = ", ".join(
        f"{metrics[f'memorisation_{space}_copies']} by {space} (held-out images: "
        f"{metrics[f'memorisation_{space}_held_out_copies']} of {metrics['held_out_images']:,})"
        for space in ("latents", "features")
    )
    verdict = {
        True: "the model copies training images",
        False: "no more than chance explains",
        None: "too few images to tell",
    }[metrics["memorisation_found"]]
    lines.append(f"copies of {train_images:,} training images: {copies}: {verdict}")
    lines += describe_limit(metrics["limit"], metrics["limit_reasons"])
    return "\n".join([*lines, f"{output_dir}/"])
