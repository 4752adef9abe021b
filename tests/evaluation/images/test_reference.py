import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from tqdm.auto import tqdm

from hf_latent.data import shards
from hf_latent.data.images.config import ImagesConfig
from hf_latent.data.images.open import open_images
from hf_latent.errors import UserError
from hf_latent.evaluation.config import EvaluateConfig
from hf_latent.evaluation.images import reference
from hf_latent.evaluation.images.reference import (
    RealImages,
    cached_neighbours,
    cached_vectors,
    comparison_figures,
    vectors_by_space,
)
from hf_latent.evaluation.measures.memorisation import LOCAL_NEIGHBOURS
from hf_latent.evaluation.stages import Stages
from tests.evaluation.features.short_vectors import ShortVectors, as_bytes

CONFIG = ImagesConfig(resize_mode="pad", max_train_samples=90)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(shards, "SHARD_ROWS", 40)
    monkeypatch.setattr(reference, "LARGEST_DEFAULT", 50)


@pytest.fixture(scope="module")
def splits():
    return open_images(CONFIG)


def evaluation(tmp_path, **changes) -> EvaluateConfig:
    given = {
        "model": "m",
        "output_dir": str(tmp_path / "out"),
        "cache_dir": str(tmp_path / "cache"),
    }
    return EvaluateConfig(**given | changes)


def everything(written) -> torch.Tensor:
    return torch.cat(list(written.select("vectors")))


def test_the_seed_chooses_two_disjoint_sets_of_equal_size(splits):
    real = RealImages.choose(splits, 30, seed=0)
    assert len(real.reference) == len(real.other) == 30
    assert len(set(real.reference.tolist()) | set(real.other.tolist())) == 60
    again, other = (RealImages.choose(splits, 30, seed) for seed in (0, 1))
    assert torch.equal(real.reference, again.reference)
    assert not torch.equal(real.reference, other.reference)
    everyone = RealImages.choose(splits, 45, seed=0)
    assert sorted([*everyone.reference, *everyone.other]) == list(range(90))


def test_images_have_no_random_crops_or_flips():
    splits = open_images(replace(CONFIG, crop="random", horizontal_flip=True, resize_mode="crop"))
    real = RealImages.choose(splits, 30, seed=0)
    assert (len(real.train), len(real.held_out)) == (90, 50)
    plain = open_images(replace(CONFIG, resize_mode="crop"))
    rows = torch.arange(90)
    assert torch.equal(real.train.read_uint8(rows), plain.train.read_uint8(rows))
    subset = real.subset(real.reference)
    expected = plain.train.read_uint8(real.reference)
    assert torch.equal(subset.read_uint8(torch.arange(30)), expected)


def test_vectors_are_in_the_data_sets_order(splits, tmp_path):
    extractor = ShortVectors()
    expected = extractor(splits.train.read_uint8(torch.arange(90)))
    for batch_size in (7, 100):
        with tqdm(total=90, disable=False) as bar:
            written = cached_vectors(
                splits.train, extractor, tmp_path / str(batch_size), batch_size, bar
            )
            assert bar.n == 90
        torch.testing.assert_close(everything(written), expected)


def test_vectors_are_computed_once(splits, tmp_path):
    first = everything(cached_vectors(splits.train, ShortVectors(), tmp_path, 20))
    again = ShortVectors(killed_after=0)
    assert torch.equal(everything(cached_vectors(splits.train, again, tmp_path, 30)), first)
    assert again.count == 0


def test_a_killed_run_resumes(splits, tmp_path):
    whole = everything(cached_vectors(splits.train, ShortVectors(), tmp_path / "whole", 20))
    with pytest.raises(KeyboardInterrupt):
        cached_vectors(splits.train, ShortVectors(killed_after=50), tmp_path / "killed", 20)
    second = ShortVectors()
    found = cached_vectors(splits.train, second, tmp_path / "killed", 20)
    assert second.count == 50
    assert torch.equal(everything(found), whole)


def test_other_images_or_preprocessing_have_another_folder(splits, tmp_path):
    train = splits.train
    datasets = [train, train.view(mirrored=True), train.subset(torch.arange(50).numpy())]
    datasets += [train.subset(torch.arange(90).flip(0).numpy()), splits.validation]
    datasets += [open_images(replace(CONFIG, resize_mode="crop", resolution=36)).train]
    cases = [(dataset, ShortVectors()) for dataset in datasets]
    cases += [(train, ShortVectors("other"))]
    folders = [cached_vectors(*case, tmp_path, 100).folder for case in cases]
    assert len(set(folders)) == len(cases)
    for (dataset, extractor), folder in zip(cases, folders, strict=True):
        manifest = json.loads((folder / "manifest.json").read_text())
        assert manifest["rows"] == len(dataset)
        assert manifest["images"] == dataset.identity
        assert manifest["preprocessing"] == extractor.preprocessing


def test_neighbours_are_found_once(splits, tmp_path, monkeypatch):
    vectors = cached_vectors(splits.train, ShortVectors(), tmp_path, 100)

    def read():
        with tqdm(total=90, disable=False) as bar:
            found = cached_neighbours(vectors, bar)
            assert bar.n == 90
        return found

    distances, places = read()
    whole = everything(vectors).double()
    expected = torch.cdist(whole, whole).fill_diagonal_(torch.inf).topk(5, largest=False)
    assert LOCAL_NEIGHBOURS == 5
    torch.testing.assert_close(distances.double(), expected.values, rtol=1e-4, atol=1e-6)
    assert torch.equal(places, expected.indices)
    monkeypatch.delattr(reference, "nearest_neighbours")
    again = read()
    assert torch.equal(again[0], distances) and torch.equal(again[1], places)


def test_each_space_has_vectors_of_all_real_images(splits, tmp_path):
    real, spaces = RealImages.choose(splits, 30, 0), {x: ShortVectors(x) for x in ("one", "two")}
    stages = Stages(1)
    found = vectors_by_space(real, spaces, tmp_path / "cache", 25, 0, stages)
    assert list(stages.figures()) == ["real_vectors_seconds", "total_seconds"]
    for space, extractor in spaces.items():
        assert list(found[space]) == ["train", "held_out", "held_out_mirrored"]
        held_out = real.held_out.read_uint8(torch.arange(50))
        torch.testing.assert_close(everything(found[space]["held_out"]), extractor(held_out))
        torch.testing.assert_close(
            everything(found[space]["held_out_mirrored"]), extractor(held_out.flip(3))
        )
        train = real.train.read_uint8(torch.arange(90))
        torch.testing.assert_close(everything(found[space]["train"]), extractor(train))
        assert extractor.seen == as_bytes(torch.cat([train, held_out, held_out.flip(3)]))


def test_only_reports_of_equal_images_and_preprocessing_are_comparable(splits):
    real, extractor = RealImages.choose(splits, 30, 0), ShortVectors()
    identity = comparison_figures(real, extractor, 0)
    assert identity["num_images"] == 30
    assert identity["reference_fingerprint"] == real.subset(real.reference).fingerprint
    assert "pad to 32x32, 1 channels; short vectors" in identity["preprocessing"]
    same = [
        comparison_figures(RealImages.choose(splits, 30, 0), ShortVectors(), 0),
        # The same set in another order.
        comparison_figures(replace(real, reference=real.reference.flip(0)), extractor, 0),
    ]
    assert {x["comparable_if_equal"] for x in same} == {identity["comparable_if_equal"]}
    resized = open_images(replace(CONFIG, resize_mode="crop"))
    different = [
        comparison_figures(RealImages.choose(splits, 30, 1), extractor, 0),
        comparison_figures(RealImages.choose(splits, 29, 0), extractor, 0),
        comparison_figures(replace(real, reference=real.other), extractor, 0),
        comparison_figures(real, ShortVectors("other"), 0),
        comparison_figures(RealImages.choose(resized, 30, 0), extractor, 0),
    ]
    digests = {x["comparable_if_equal"] for x in (identity, *different)}
    assert len(digests) == 1 + len(different)


def test_a_damaged_neighbours_file_is_named_in_one_line(splits, tmp_path):
    vectors = cached_vectors(splits.train, ShortVectors(), tmp_path, 100)
    (vectors.folder / "neighbours.safetensors").write_bytes(b"cut off")
    with tqdm(disable=True) as bar, pytest.raises(UserError) as error:
        cached_neighbours(vectors, bar)
    assert "neighbours.safetensors cannot be read" in str(error.value)
    assert "\n" not in str(error.value)


def test_parallel_evaluations_compute_the_vectors_once(splits, tmp_path):
    extractors = [ShortVectors(), ShortVectors()]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda x: cached_vectors(splits.train, x, tmp_path, 20), extractors))
    assert torch.equal(everything(found[0]), everything(found[1]))
    assert sorted(x.count for x in extractors) == [0, 90]


def test_no_more_held_out_images_are_embedded_than_training_images(tmp_path):
    splits = open_images(ImagesConfig(resize_mode="pad", max_train_samples=24))
    real = RealImages.choose(splits, 12, seed=0)
    assert (len(real.train), len(real.held_out)) == (24, 24)
    extractor = ShortVectors()
    vectors_by_space(real, {"short": extractor}, tmp_path, 8, 0, Stages(1))
    assert extractor.count == 3 * 24  # the held-out images also mirrored
