"""A card's `model-index`: every measured figure, under a name that says how it was measured."""

from collections.abc import Iterable
from typing import Any

from huggingface_hub import EvalResult

from hf_latent.hub.card.figures import (
    HELD_OUT,
    Figure,
    generation_figures,
    latent_figures,
    memorisation_figures,
    reconstruction_figures,
)
from hf_latent.hub.card.text import one_line

GENERATION = ("unconditional-image-generation", "Image generation")  # the Hub has none with classes
RECONSTRUCTION = ("image-to-image", "Reconstruction")


def generation_results(
    metrics: dict[str, Any], data: tuple[str, str], held_out: str = HELD_OUT
) -> list[EvalResult]:
    """Return a pipeline's figures.

    Args:
        metrics: of metrics.json.
        data: its id on the Hub, or else its name; and its name.
        held_out: what to call the images that were held out in the evaluation.

    Returns:
        A result a figure, its features, guidance, steps and number of images in its name.
    """
    copies = [x for pair in memorisation_figures(metrics, held_out).values() for x in pair]
    figures = [*generation_figures(metrics).values(), *copies]
    kept = reconstruction_figures(metrics, "reconstruction_", held_out=held_out)
    return _results(GENERATION, figures, data) + _results(RECONSTRUCTION, kept, data)


def reconstruction_results(figures: Iterable[Figure], data: tuple[str, str]) -> list[EvalResult]:
    """Return an autoencoder's figures.

    Args:
        figures: what it keeps.
        data: as of `generation_results`.

    Returns:
        A result a figure.
    """
    return _results(RECONSTRUCTION, figures, data)


def latent_results(report: dict[str, Any], data: tuple[str, str]) -> list[EvalResult]:
    """Return the statistics of an autoencoder's latents, a result a channel.

    Args:
        report: flat figures.
        data: as of `generation_results`.
    """
    figures = [x for channels in latent_figures(report).values() for x in channels]
    return _results(RECONSTRUCTION, figures, data)


def _results(
    task: tuple[str, str], figures: Iterable[Figure], data: tuple[str, str]
) -> list[EvalResult]:
    return [
        EvalResult(
            task_type=task[0],
            task_name=task[1],
            dataset_type=one_line(data[0]),
            dataset_name=one_line(data[1]),
            metric_type=x.kind,
            metric_name=one_line(", ".join((x.name, *_features(x), *x.how))),
            metric_value=x.value if isinstance(x.value, int) else float(f"{x.value:.5g}"),
        )
        for x in figures
        if x.network or not x.needs_network
    ]


def _features(figure: Figure) -> tuple[str, ...]:
    return (f"{figure.network} features",) if figure.network else ()
