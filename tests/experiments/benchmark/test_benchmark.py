import json

import pytest

from hf_latent.cli import main
from hf_latent.data.images import sources
from hf_latent.experiments.benchmark import reading as reading_benchmark
from hf_latent.experiments.benchmark.benchmark import median_ratio
from tests.small import few_images, small_trainings


@pytest.fixture(autouse=True, scope="module")
def small():
    with small_trainings() as patch:
        patch.setitem(sources.BUILT_IN, "fashion_mnist", few_images)
        yield


@pytest.mark.slow
def test_bench_cache_writes_both_sides_of_every_ratio(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(reading_benchmark, "READ_BATCHES", 10)
    flags = "--rounds 2 --steps 3 --train_batch_size 4 --num_latents 20000 --num_images 40"
    main(["bench", "cache", "--output_dir", str(tmp_path / "bench"), *flags.split()])
    report = json.loads((tmp_path / "bench" / "bench.json").read_text())
    printed = capsys.readouterr().out
    for name, sides, rounds in (
        (
            "reading",
            ("cache", "memory", "stream"),
            6,
        ),  # three times as many, because they are short
        ("reading_large", ("cache", "memory", "stream"), 6),
        ("encoding", ("cache", "bare"), 2),
        ("encoding_small", ("cache", "bare"), 2),
        ("training", ("cache", "every_step"), 2),
    ):
        for side in sides:
            rates = [v for k, v in report.items() if k.startswith(f"{name}_{side}_") and "per" in k]
            assert [len(rate) for rate in rates] == [rounds], (name, side)
        assert 0 < report[f"{name}_ratio_median"] < 100
        assert f"{report[f'{name}_ratio_median']:.3f}" in printed
    assert report["reading_latents"] < report["reading_large_latents"] == 20_000
    assert len(report["reading_large_anonymous_memory_mb"]) == 7
    assert [path.name for path in (tmp_path / "bench").iterdir()] == ["bench.json"]


def test_the_ratio_is_the_median_of_the_rounds():
    assert median_ratio([1.0, 8.0, 3.0], [2.0, 2.0, 3.0]) == 1.0


def test_bench_refuses_an_unknown_benchmark(capsys):
    with pytest.raises(SystemExit) as error:
        main(["bench", "everything"])
    assert error.value.code == 2
    assert "bench loop, bench cache" in capsys.readouterr().err
