import json
from dataclasses import asdict

import pytest
import torch
from torchmetrics.functional import spearman_corrcoef

import ifid_figures
from hf_latent.data.images.open import open_images
from hf_latent.errors import UserError
from hf_latent.evaluation import inspect
from hf_latent.evaluation.inspect import InspectConfig, inspect_autoencoders
from hf_latent.experiments.sweep.config import SweepConfig
from hf_latent.experiments.sweep.plan import Plan
from hf_latent.output import write_json
from ifid_figures import measure_pairs, rank_correlation, spearman
from tests.conftest import make_autoencoder
from tests.evaluation.features.short_vectors import ShortVectors

CLOTHES = {"data": "fashion_mnist", "resize_mode": "pad"}


def test_spearman_is_that_of_torchmetrics():
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randint(6, (2, 50, 9), generator=generator).double()  # with ties
    expected = [spearman_corrcoef(a, b) for a, b in zip(first, second, strict=True)]
    expected = torch.stack(expected).double()
    torch.testing.assert_close(spearman(first, second), expected, rtol=0, atol=1e-6)


def test_the_interval_and_the_p_value_tell_order_from_chance():
    generated = [float(x) for x in range(9)]
    equal = rank_correlation(generated, generated)
    assert equal["spearman_rho"] == pytest.approx(1)
    assert equal["interval"] == pytest.approx([1, 1])
    assert equal["p_value"] < 0.001  # 1 of 362,880 orders
    mixed = rank_correlation([3.0, 8, 1, 6, 0, 7, 2, 5, 4], generated)
    assert mixed["interval"][0] < mixed["spearman_rho"] < mixed["interval"][1]
    assert mixed["interval"][0] < 0 < mixed["interval"][1]
    assert 0.3 < mixed["p_value"] < 0.7
    assert rank_correlation(generated[::-1], generated)["p_value"] == 1


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    """The folder of a finished sweep, as far as it is read, with untrained autoencoders."""
    monkeypatch.setattr(ifid_figures, "load_feature_extractor", lambda name: ShortVectors())
    monkeypatch.setattr(inspect, "load_feature_extractor", lambda name: ShortVectors())
    monkeypatch.setattr(InspectConfig, "max_images", 12)
    monkeypatch.setattr(ifid_figures, "RESAMPLES", 50)
    folder = tmp_path / "sweep"
    config = SweepConfig(**CLOTHES, output_dir=str(folder))
    splits = open_images(config.images_config())
    pairs = []
    for channels in (2, 4, 8):
        vae = make_autoencoder(sample_size=32, latent_channels=channels)
        vae.save_pretrained(folder / f"f4-c{channels}" / "autoencoder" / "model")
        figures = {
            "reconstruction_fd": channels / 2,
            "floor_fd": 1.0,
            "generated_fd": 9.0 - channels,
        }
        pairs.append({"name": f"f4-c{channels}", "latent_shape": [channels, 8, 8]} | figures)
    report = {"data": "fashion_mnist", "num_images": 500, "pairs": pairs}
    features = ShortVectors().preprocessing
    identity = (splits.train.identity, splits.validation_fingerprint, features)
    write_json(folder / "plan.json", asdict(Plan(config.settings(), *identity, 1, 1, 1)))
    write_json(folder / "report.json", report)
    return folder


def test_a_sweeps_pairs_have_the_ifid_of_inspect(sweep, tmp_path):
    report = measure_pairs(sweep)
    assert (report["held_out_images"], report["neighbour_images"]) == (12, 12)
    for pair in report["pairs"]:
        config = InspectConfig(
            **CLOTHES,
            vae=str(sweep / pair["name"] / "autoencoder"),
            output_dir=str(tmp_path / pair["name"]),
            max_images=12,
        )
        assert pair["ifid"] == pytest.approx(inspect_autoencoders(config)["ifid"], rel=1e-4)
    assert report["rank_correlations"]["reconstruction_fd"]["spearman_rho"] == pytest.approx(-1)
    assert report["rank_correlations"].keys() == {"ifid", "reconstruction_fd", "floor_fd"}
    write_json(tmp_path / "ifid.json", report)
    floor = json.loads((tmp_path / "ifid.json").read_text())["rank_correlations"]["floor_fd"]
    assert floor["spearman_rho"] is None  # all floors are equal


def test_an_unfinished_sweep_is_refused(sweep):
    (sweep / "report.json").unlink()
    with pytest.raises(UserError, match="is no finished sweep"):
        measure_pairs(sweep)
