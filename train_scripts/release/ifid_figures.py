"""Whether iFID ranks the autoencoders of a sweep as the generated FD does.

    python train_scripts/release/ifid_figures.py SWEEP [REPORT]

SWEEP is the folder of a finished sweep, with the runs of its pairs. Writes docs/reports/ifid.json,
or REPORT. For each pair it has iFID, measured as `hf-latent inspect` does, and figures of the
sweep; and Spearman's rank correlation of each figure with the generated FD.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from hf_latent.data.images.open import open_images
from hf_latent.errors import UserError
from hf_latent.evaluation.features.extractors import load_feature_extractor
from hf_latent.evaluation.inspect import InspectConfig, load_frozen
from hf_latent.evaluation.inspection.images import RealVectors
from hf_latent.evaluation.machine import machine_figures
from hf_latent.evaluation.measures.interpolation import measure_ifid
from hf_latent.experiments.sweep.config import SweepConfig
from hf_latent.experiments.sweep.plan import check_same_images, read_plan
from hf_latent.output import read_json, write_json

REPORT = Path(__file__).parents[2] / "docs" / "reports" / "ifid.json"
FIGURES = ("ifid", "reconstruction_fd", "floor_fd")
KEPT = ("name", "latent_shape", "reconstruction_fd", "floor_fd", "generated_fd")
RESAMPLES = 10_000


def spearman(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Return Spearman's rank correlations of values `(..., n)`; equal ones share their mean rank.

    NaN if all values of one side are equal.
    """

    def centred_ranks(values: torch.Tensor) -> torch.Tensor:
        one, other = values[..., :, None], values[..., None, :]
        ranks = (other < one).double().sum(-1) + (other == one).double().sum(-1) / 2
        return ranks - ranks.mean(-1, keepdim=True)

    a, b = centred_ranks(first), centred_ranks(second)
    return (a * b).sum(-1) / (a.square().sum(-1) * b.square().sum(-1)).sqrt()


def rank_correlation(figures: Sequence[float], generated: Sequence[float]) -> dict[str, Any]:
    """Measure how well a figure ranks pairs.

    Args:
        figures: of each pair.
        generated: the FD of each pair.

    Returns:
        `spearman_rho`; `interval`, its 2.5% and 97.5% quantiles over pairs that are drawn with
        replacement (percentile bootstrap, Efron 1979); and `p_value`, the share of permutations
        whose rho is at least as high (one-sided; the given order counts as one).
    """
    first, second = (torch.tensor(x, dtype=torch.float64) for x in (figures, generated))
    generator = torch.Generator().manual_seed(0)
    rho, shape = spearman(first, second), (RESAMPLES, len(first))
    drawn = torch.randint(len(first), shape, generator=generator)
    resampled = spearman(first[drawn], second[drawn])
    ends = torch.tensor([0.025, 0.975], dtype=torch.float64)
    permuted = spearman(first[torch.rand(shape, generator=generator).argsort(1)], second)
    as_high = int((permuted >= rho - 1e-9).sum())
    return {
        "spearman_rho": rho.item(),
        "interval": resampled.nanquantile(ends).tolist(),
        "p_value": (1 + as_high) / (1 + RESAMPLES),
    }


def measure_pairs(sweep: Path) -> dict[str, Any]:
    """Measure iFID of each pair of a finished sweep; return the content of the report.

    Raises:
        UserError: if the sweep is not finished, or its images are not those of now.
    """
    if not (sweep / "report.json").is_file():
        raise UserError(f"{sweep} is no finished sweep: run hf-latent sweep to its end")
    settings = read_json(sweep / "plan.json")["settings"]
    plan, report = read_plan(sweep / "plan.json", settings), read_json(sweep / "report.json")
    splits = open_images(SweepConfig(**settings).images_config())
    extractor = load_feature_extractor("efficientnet-lite0")
    extractor.see(splits.shown_channels)
    check_same_images(plan, splits, extractor, sweep)
    batch_size, seed = InspectConfig.batch_size, InspectConfig.seed
    held_out = splits.validation.evenly_spaced(InspectConfig.max_images)
    bar = tqdm(disable=True)
    real = RealVectors.read(held_out, splits.train, extractor, batch_size, 0, bar.update)
    rows = []
    for pair in report["pairs"]:
        vae = load_frozen(str(sweep / pair["name"] / "autoencoder"))
        ifid = measure_ifid(
            vae, held_out, real.train, real.held_out_vectors, extractor, batch_size, seed, bar
        )
        rows.append({key: pair[key] for key in KEPT} | {"ifid": ifid})
        print(f"{pair['name']}: iFID {ifid:.2f}, generated FD {pair['generated_fd']:.2f}")
    generated = [row["generated_fd"] for row in rows]
    return {
        "data": report["data"],
        "held_out_images": len(held_out),
        "neighbour_images": len(real.train),
        "preprocessing": extractor.preprocessing,
        "num_images": report["num_images"],
        "pairs": rows,
        "rank_correlations": {
            name: rank_correlation([row[name] for row in rows], generated) for name in FIGURES
        },
        **machine_figures(),
    }


if __name__ == "__main__":
    sweep, *given = sys.argv[1:]
    write_json(Path(given[0]) if given else REPORT, measure_pairs(Path(sweep)))
