import json
import sys

import pytest
from PIL import Image

from hf_latent.cli import main
from hf_latent.experiments.benchmark import start
from tests import forked

REPORT = """import time: self [us] | cumulative | imported package
import time:     10000 |      10000 |   torch.nn
Loading pipeline components...: 100%|####| 3/3
import time:      5500 |      15500 | torch
import time:     20000 |      35500 | hf_latent.pipeline
import time:       900 |        900 | json
"""


def test_a_packages_import_is_the_sum_of_its_modules_without_what_they_import():
    assert start.sum_imports(REPORT) == {"hf_latent": 0.02, "torch": 0.0155}


@pytest.mark.slow
def test_every_program_runs(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path / "model")
    programs = start.list_programs(str(tmp_path / "model"), str(tmp_path / "image.png"))
    for name, arguments in programs.items():
        process = forked.run([sys.executable, *arguments], timeout=120)
        assert process.returncode == 0, (name, process.stderr)
    with Image.open(tmp_path / "image.png") as image:
        assert image.height >= 16


def test_bench_start_writes_the_seconds_of_new_processes(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(start, "SHORTEST_IMPORT_SECONDS", 0)
    programs = {"pause": ("-c", "import time; time.sleep(0.2)"), "generate": ("-c", "import json")}
    monkeypatch.setattr(start, "list_programs", lambda model, picture: programs)
    main(["bench", "start", "--output_dir", str(tmp_path / "bench"), "--rounds", "2"])
    report = json.loads((tmp_path / "bench" / "bench.json").read_text())
    assert len(report["pause_seconds"]) == len(report["generate_seconds"]) == 2
    assert report["pause_seconds_median"] >= 0.2
    assert "json" in report["import_seconds_by_package"]
    assert f"pause        {report['pause_seconds_median']:5.2f} s" in capsys.readouterr().out


def test_a_program_that_fails_ends_the_benchmark_with_its_last_line(tmp_path, capsys, monkeypatch):
    programs = {"generate": ("-c", "raise OSError('no such model')")}
    monkeypatch.setattr(start, "list_programs", lambda model, picture: programs)
    with pytest.raises(SystemExit) as error:
        main(["bench", "start", "--output_dir", str(tmp_path / "bench")])
    assert error.value.code == 2
    assert capsys.readouterr().err == "error: OSError: no such model\n"
