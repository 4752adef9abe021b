import json

import pytest

from hf_latent.cli import main


@pytest.mark.slow
def test_bench_writes_both_sides_and_their_ratio(tmp_path, capsys):
    flags = "--rounds 2 --steps 3 --train_batch_size 4"
    main(["bench", "autoencoder", "--output_dir", str(tmp_path / "bench"), *flags.split()])
    report = json.loads((tmp_path / "bench" / "bench.json").read_text())
    assert len(report["trainer_images_per_second"]) == len(report["bare_images_per_second"]) == 2
    assert 0.1 < report["ratio_median"] < 2
    assert f"{report['ratio_median']:.3f}" in capsys.readouterr().out


def test_bench_refuses_what_it_does_not_know(capsys):
    with pytest.raises(SystemExit) as error:
        main(["bench", "everything"])
    assert error.value.code == 2
    assert "--what" in capsys.readouterr().err
