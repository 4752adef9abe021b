import json

import pytest
import torch
from PIL import Image
from torch._subclasses.fake_tensor import FakeTensorMode

from hf_latent.cli import main
from hf_latent.evaluation import timing
from hf_latent.evaluation.costs import Costs
from hf_latent.experiments.benchmark import space
from hf_latent.experiments.benchmark.space_plot import cost_lines
from hf_latent.models.presets import create_autoencoder

DENOISERS = space.DENOISERS
SMALL = {
    "block_out_channels": (4, 8),
    "down_block_types": ("DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 2,
    "add_attention": False,
}


@pytest.fixture(autouse=True)
def small_models(monkeypatch):
    monkeypatch.setattr(space, "DENOISERS", {"without attention": SMALL})
    monkeypatch.setattr(space, "AUTOENCODERS", ("tiny",))
    monkeypatch.setattr(timing, "seconds_per_call", lambda call: (call(), 0.5)[1])


def measure(tmp_path, *flags):
    main(["bench", "space", "--output_dir", str(tmp_path / "bench"), "--rounds", "1", *flags])
    return json.loads((tmp_path / "bench" / "bench.json").read_text())


def test_pixels_cost_as_many_times_more_as_there_are_more_positions(tmp_path, capsys):
    report = measure(tmp_path, "--resolutions", "[64]", "--batch_size", "2")
    printed = capsys.readouterr().out
    (point,) = report["points"]
    assert point["pixels_step_seconds"] == point["latents_step_seconds"] == [0.5]
    assert point["step_ratio_median"] == point["training_step_ratio_median"] == 1
    # 20 steps against 20 steps and the decoder.
    image = point["images"]["tiny"]
    assert image["ratio"] == pytest.approx(20 / 21)
    assert image["decode_seconds"] == [0.5] and image["decode_steps"] == 1
    assert "an image decoded by tiny 1.0 times faster" in printed
    # 64 pixels have one position of latents, which has 4 channels in place of 3.
    assert 55 < point["step_operations_ratio"] < 64
    assert f"{point['step_operations_ratio']:.1f} times fewer operations" in printed
    assert 50 < point["pixels_step_activations_mb"] / point["latents_step_activations_mb"] < 65
    with Image.open(tmp_path / "bench" / "space.png") as plot:
        assert plot.width > 800


def test_a_step_that_would_take_too_long_is_counted_and_not_timed(tmp_path, capsys):
    flags = ("--resolutions", "[64,128]", "--max_step_seconds", "1")
    report = measure(tmp_path, *flags)
    small, large = report["points"]
    assert small["pixels_step_seconds"] == [0.5]
    assert "pixels_step_seconds" not in large and "ratio" not in large["images"]["tiny"]
    ratio = large["pixels_step_operations"] / small["pixels_step_operations"]
    assert large["pixels_step_estimated_seconds"] == pytest.approx(0.5 * ratio)
    assert large["latents_step_seconds"] == [0.5]
    assert "128 pixels: on latents a step not timed" in capsys.readouterr().out


def test_the_first_training_step_is_estimated_from_the_denoising_step(tmp_path):
    (point,) = measure(tmp_path, "--resolutions", "[64]", "--max_step_seconds", "1")["points"]
    ratio = point["pixels_training_step_operations"] / point["pixels_step_operations"]
    assert point["pixels_training_step_estimated_seconds"] == pytest.approx(0.5 * ratio)
    assert "pixels_training_step_seconds" not in point


def test_a_size_that_cannot_be_halved_often_enough_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        measure(tmp_path, "--resolutions", "[96]")
    assert "--resolutions 96 must be a multiple of 64" in capsys.readouterr().err


def test_the_plot_has_the_medians_of_what_was_timed():
    small = {"denoiser": "a", "resolution": 64, "pixels_cost": [5.0, 1.0, 2.0], "latents_cost": 0.5}
    large = {"denoiser": "a", "resolution": 128, "latents_cost": 0.75}
    pixels, latents = cost_lines([small, large], "cost")
    assert (pixels.label, pixels.x, pixels.y) == ("pixels, a", [64], [2.0])
    assert (latents.label, latents.x, latents.y) == ("latents, a", [64, 128], [0.5, 0.75])


@pytest.mark.parametrize("name", DENOISERS)
def test_the_fast_decoder_costs_at_most_ten_steps_on_latents_at_256_pixels(name, monkeypatch):
    monkeypatch.setattr(space, "DENOISERS", DENOISERS)
    cpu = torch.device("cpu")
    with FakeTensorMode(), torch.no_grad():
        vae = create_autoencoder("base-fast", 3, 256)
        with Costs() as decoding:
            vae.decode(torch.randn(1, 4, 32, 32))
        sides = [space.Side(name, x, cpu) for x in ((1, 3, 256, 256), (1, 4, 32, 32))]
        with Costs() as of_pixels:
            sides[0].step()
        with Costs() as of_latents:
            sides[1].step()
    decoder, pixels, latents = (x.operations for x in (decoding, of_pixels, of_latents))
    assert decoder <= 10 * latents
    assert 20 * pixels >= 40 * (20 * latents + decoder)
