import json
import math
from dataclasses import asdict, fields, replace

import jsonargparse
import pytest
import torch

from hf_latent.command import parse_config
from hf_latent.data.images.config import ImagesConfig
from hf_latent.data.images.open import open_images
from hf_latent.errors import UserError
from hf_latent.evaluation.features.extractors import FeatureExtractor
from hf_latent.experiments.sweep import plan as sweep_plan
from hf_latent.experiments.sweep.config import Pair, SweepConfig
from hf_latent.experiments.sweep.pair import latent_kl_weight
from hf_latent.experiments.sweep.plan import (
    Plan,
    check_same_images,
    create_models,
    divide_minutes,
    read_plan,
    reserve_measuring,
)
from hf_latent.experiments.time_budget import SAFETY, TimeBudget
from hf_latent.models.presets import Compression
from hf_latent.output import write_json
from hf_latent.training.autoencoder_config import AutoencoderConfig
from tests.evaluation.features.short_vectors import ShortVectors
from tests.small import HELD_OUT, small_trainings


@pytest.mark.parametrize("given", ["8,2,4", "[8,2,4]", [8, 2, 4], "2, 4, 8"])
def test_numbers_are_given_with_commas_or_as_a_list(given):
    config = SweepConfig(factors=given, latent_channels=given)
    assert config.pairs() == [Pair(f, c) for f in (2, 4, 8) for c in (2, 4, 8)]
    assert config.settings()["factors"] == config.settings()["latent_channels"] == [2, 4, 8]


def test_flags_and_recipe(tmp_path):
    (tmp_path / "sweep.yaml").write_text("factors: [2, 4]\nlatent_channels: 4\nchannels: 3\n")
    recipe = ["--config", str(tmp_path / "sweep.yaml")]
    config = parse_config(SweepConfig, [*recipe, "--latent_channels", "1,16"])
    assert [pair.name for pair in config.pairs()] == ["f2-c1", "f2-c16", "f4-c1", "f4-c16"]
    assert config.images_config().channels == 3
    assert [pair.name for pair in parse_config(SweepConfig, recipe).pairs()] == ["f2-c4", "f4-c4"]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"factors": "2,3"}, "--factors 3 must be a power of 2"),
        ({"factors": "6"}, "--factors 6 must be a power of 2"),
        ({"factors": "1"}, "--factors 1 must be a power of 2, at least 2"),
        ({"factors": "2,x"}, "--factors 2,x must be numbers above 0, as in --factors 2,4,8"),
        ({"factors": ""}, "--factors needs a value"),
        ({"factors": []}, r"--factors \[\] must be numbers"),
        ({"latent_channels": [0]}, r"--latent_channels \[0\] must be numbers above 0"),
        ({"latent_channels": "4,2,4"}, "--latent_channels has 4 twice"),
        ({"factors": [2, 2]}, "--factors has 2 twice"),
        ({"max_minutes": 0}, "--max_minutes must be a number above 0"),
        ({"num_images": 1}, "--num_images 1 must be at least 2"),
        ({"num_seeds": 0}, "--num_seeds must be a whole number above 0"),
        ({"num_seeds": 1}, "--num_seeds 1 must be at least 2"),
        ({"ldm_kl_weight": -1}, "--ldm_kl_weight must be a number at least 0"),
        ({"channels": 0}, "--channels must be a whole number above 0, not 0"),
        ({"crop": "random"}, "--crop random does not go with"),
        ({"block_out_channels": []}, "--block_out_channels"),
    ],
)
def test_invalid_values_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        SweepConfig(**changes)


def test_widths_are_shared_and_the_last_is_repeated():
    config = SweepConfig(block_out_channels=[16, 32, 64])
    assert [config.widths(2**n) for n in (1, 2, 3, 4)] == [
        (16, 32),
        (16, 32, 64),
        (16, 32, 64, 64),
        (16, 32, 64, 64, 64),
    ]
    assert SweepConfig().widths(4) == (8, 16, 32)


def test_a_nat_of_an_image_has_the_same_price_for_all_pairs():
    for latent in ((4, 8, 8), (8, 16, 16), (2, 4, 4)):
        compression = Compression((1, 32, 32), latent)
        weight = latent_kl_weight(1.2e-3, compression)
        # The trainer averages over the latent's values and over the image's values.
        nat_of_an_image = weight / math.prod(latent)
        assert nat_of_an_image * 1024 == pytest.approx(1.2e-3)
    assert latent_kl_weight(1.2e-3, Compression((1, 32, 32), (4, 8, 8))) == pytest.approx(3e-4)


def test_a_factor_that_does_not_fit_is_refused():
    config = SweepConfig(factors="4,16", latent_channels="4")

    def check_pairs(config, image_shape, num_classes):
        with torch.device("meta"):
            for pair in config.pairs():
                create_models(config, pair, image_shape, num_classes)

    check_pairs(config, (1, 32, 32), 10)
    with pytest.raises(UserError, match=r"f16-c4 is not possible.*of 16 to be encoded.*of 32 to"):
        check_pairs(config, (1, 48, 32), 10)
    with pytest.raises(UserError, match="f4-c4 is not possible"):
        check_pairs(config, (1, 33, 33), None)
    check_pairs(replace(config, block_out_channels=[6, 9]), (1, 32, 32), None)


def test_minutes_are_divided_equally():
    autoencoder, denoiser = divide_minutes(18.0, 9)
    assert 9 * (autoencoder + denoiser) == pytest.approx(18.0)
    assert autoencoder / denoiser == pytest.approx(0.4 / 0.6)


@pytest.fixture
def plan():
    settings = SweepConfig(factors="2,4", max_minutes=3.0).settings()
    return Plan(json.loads(json.dumps(settings)), "train", "held out", "features", 0.1, 0.2, 0.3)


def test_a_written_plan_is_read_back(plan, tmp_path):
    write_json(tmp_path / "plan.json", asdict(plan))
    config = SweepConfig(factors=[2, 4], max_minutes=3.0, output_dir="elsewhere")
    assert read_plan(tmp_path / "plan.json", config.settings()) == plan
    assert plan.pair_minutes == pytest.approx(0.6)


def test_other_settings_are_refused_and_named(plan, tmp_path):
    write_json(tmp_path / "plan.json", asdict(plan))
    config = SweepConfig(factors="2,4,8", max_minutes=5.0)
    message = r"--factors \[2, 4\] \(now \[2, 4, 8\]\), --max_minutes 3.0 \(now 5.0\); give the"
    with pytest.raises(UserError, match=message):
        read_plan(tmp_path / "plan.json", config.settings())


@pytest.mark.parametrize("text", ["{", "[]", '{"settings": 1}', '{"a": 1}'])
def test_a_damaged_plan_is_refused(text, tmp_path):
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(UserError, match=r"plan.json is damaged"):
        read_plan(tmp_path / "plan.json", SweepConfig().settings())


@pytest.mark.parametrize(
    "change, message",
    [
        ("train_identity", "not those of the sweep in"),
        ("validation_fingerprint", "not those of the sweep in"),
        ("preprocessing", r"by other features \(other; now features\): choose another"),
    ],
)
def test_other_images_and_features_are_refused(plan, tmp_path, change, message):
    class Train:
        identity = "train"

    class Splits:
        train, validation_fingerprint = Train(), "held out"

    extractor = FeatureExtractor()
    extractor.preprocessing = "features"
    check_same_images(plan, Splits(), extractor, tmp_path)
    with pytest.raises(UserError, match=message):
        check_same_images(replace(plan, **{change: "other"}), Splits(), extractor, tmp_path)


def test_the_parts_of_a_plan_add_up_to_the_given_time(monkeypatch):
    class Budget:
        """A budget of 100 minutes; 45 of them are used."""

        reserved_seconds = 0.0
        checked: float

        @property
        def minutes_left(self):
            return 100 - 45 - self.reserved_seconds / 60

        def check(self, minimum_minutes, advice):
            self.checked = minimum_minutes
            return 45 + self.reserved_seconds / 60 + minimum_minutes

    class Train:
        identity = "train"

    class Splits:
        train, validation_fingerprint = Train(), "held out"

    def reserve(config, splits, extractor, budget):
        budget.reserved_seconds += 600

    monkeypatch.setattr(sweep_plan, "reserve_measuring", reserve)
    config, budget = SweepConfig(), Budget()
    made = sweep_plan.make_plan(config, Splits(), ShortVectors(), budget)
    assert 9 * made.pair_minutes == pytest.approx(100 - 45)
    assert made.measuring_minutes == pytest.approx(10 / 9)
    # An autoencoder's training is the shortest.
    shortest, _ = divide_minutes(budget.checked, 9)
    assert shortest == pytest.approx(sweep_plan.MINIMUM_MINUTES)


def help_texts(config_class) -> dict[str, str]:
    """Return what the command line says of each setting."""
    parser = jsonargparse.ArgumentParser()
    parser.add_class_arguments(config_class)
    return {action.dest: action.help for action in parser._actions}


def test_a_word_means_the_same_in_a_sweep_and_in_a_training():
    sweep, training = help_texts(SweepConfig), help_texts(AutoencoderConfig)
    own = {"output_dir", "overwrite_output_dir"}  # each command has its folder
    plural = {"preset", "latent_channels", "block_out_channels"}  # of several autoencoders
    shared = (sweep.keys() & training.keys()) - own - plural
    assert {field.name for field in fields(ImagesConfig)} <= shared
    assert {name: sweep[name] for name in shared} == {name: training[name] for name in shared}
    assert "numbers of latent channels" in sweep["latent_channels"]
    assert "Number of latent channels" in training["latent_channels"]


def test_hopeless_minutes_are_refused_before_any_timing():
    config = SweepConfig(factors="2,4", latent_channels="4", max_minutes=0.1)
    budget = TimeBudget(config.max_minutes, now=lambda: 0.0)
    with pytest.raises(UserError, match=r"needs at least 0\.45 for the whole command"):
        sweep_plan.reserve_known(config, budget)


def test_measuring_is_estimated_from_the_median_of_three_batches():
    seconds, durations = [0.0], [9.0, 1.0, 5.0, 2.0, 0.0]  # the first is warm-up

    class Timed(ShortVectors):
        """Takes time, unlike the models."""

        def vectors(self, images):
            seconds[0] += durations.pop(0)
            assert len(images) == sweep_plan.TIMED_IMAGES == HELD_OUT
            return super().vectors(images)

    config = SweepConfig(
        factors="4", latent_channels="2,4", resize_mode="pad", num_images=20, num_seeds=3
    )
    budget = TimeBudget(10.0, now=lambda: seconds[0])
    with small_trainings():
        reserve_measuring(config, open_images(config.images_config()), Timed(), budget)
    assert durations == []
    # Real images: 50 held out, two sets of 20. Each pair: 50 reconstructed, 20 of the floor, 60
    # generated.
    images = 50 + 2 * 20 + 2 * (50 + 20 + 3 * 20)
    assert budget.reserved == {"measuring": pytest.approx(SAFETY * 2.0 * images / 50)}
