import json
from pathlib import Path
from statistics import median

import pytest
import torch
import yaml

from hf_latent.cli import main
from hf_latent.data.images import sources
from hf_latent.evaluation import costs
from hf_latent.experiments.benchmark import loop, shares
from hf_latent.training.dry_run.bare import BareLoop
from tests.small import few_images, small_trainings

RECIPES = Path(__file__).parents[3] / "train_scripts" / "recipes" / "fashion_mnist-32"


@pytest.fixture(autouse=True, scope="module")
def small():
    with small_trainings() as patch:
        patch.setitem(sources.BUILT_IN, "fashion_mnist", few_images)
        patch.setitem(costs.PRODUCT_SIZES, "cpu", 64)
        yield


@pytest.mark.slow
def test_bench_loop_compares_both_trainings_with_bare_loops_and_products(tmp_path, capsys):
    flags = "--rounds 1 --steps 3 --train_batch_sizes [4]"
    main(["bench", "loop", "--output_dir", str(tmp_path / "bench"), *flags.split()])
    points = json.loads((tmp_path / "bench" / "bench.json").read_text())["points"]
    printed = capsys.readouterr().out
    assert [point["training"] for point in points] == ["autoencoder", "denoiser"]
    for point in points:
        (trainer,), (bare,) = (point[f"{x}_images_per_second"] for x in ("trainer", "bare"))
        assert point["ratio_median"] == point["ratios"][0] == trainer / bare
        operations = bare * point["step_operations"] / 4
        (product,) = point["product_operations_per_second"]
        assert point["product_ratio_median"] == pytest.approx(operations / product)
        parts = point["trainer_step_shares"]
        assert parts.keys() == {*shares.PARTS, "other"}
        assert min(parts.values()) > 0 and sum(parts.values()) == pytest.approx(1)
        assert "convolution_backward" in point["bare_step_shares"]
        rate = f"{point['training']}, batch 4: {median([trainer]):.1f} images/s, "
        assert rate + f"{trainer / bare:.3f} of a bare loop" in printed
        assert f"a step: data {parts['data']:.3f}, draws" in printed


def test_the_autoencoders_training_is_that_of_the_recipe():
    recipe = yaml.safe_load((RECIPES / "vae.yaml").read_text())
    assert loop.AUTOENCODER.items() <= recipe.items()
    assert recipe["train_batch_size"] == 32


def test_a_bare_step_clips_the_gradients_and_changes_the_weights():
    model = torch.nn.Linear(3, 1, bias=False)
    before = model.weight.detach().clone()
    config = loop.AutoencoderConfig(data="fashion_mnist", output_dir="run", adam_weight_decay=0)
    bare = BareLoop([model], lambda: iter([model(100 * torch.ones(1, 3)).sum()]), config)
    gradients = []
    (optimizer,) = bare.optimizers
    optimizer.register_step_pre_hook(lambda *_: gradients.append(model.weight.grad.clone()))
    bare.run(2)
    for gradient in gradients:
        torch.testing.assert_close(gradient.norm(), torch.tensor(1.0))
    # AdamW's first steps are as long as the learning rate.
    torch.testing.assert_close(model.weight.detach(), before - 2e-4)
    assert model.weight.grad is None


def test_the_rate_of_a_product_is_that_of_its_multiplications_and_additions(monkeypatch):
    monkeypatch.setattr(costs, "seconds_per_call", lambda call: (call(), 0.5)[1])
    assert costs.product_rate(torch.float32, torch.device("cpu")) == 2 * 64**3 / 0.5


def test_the_operations_that_take_the_most_time_come_first():
    large, small = torch.ones(512, 512), torch.ones(8)
    found = shares.time_operations(lambda: (large @ large, small.exp()), count=2)
    assert next(iter(found)) == "mm" and len(found) == 2
    assert found["mm"] > 0.5 and sum(found.values()) <= 1
