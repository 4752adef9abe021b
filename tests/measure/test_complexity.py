import ast
from pathlib import Path

import pytest

from tests.measure import call_paths, complexity
from tests.measure.call_paths import Recorder


@pytest.fixture
def package(tmp_path) -> Path:
    package = tmp_path / "hf_latent"
    files = {
        "__init__.py": "",
        "training/run.py": "class TrainingConfig:\n    pass\n",
        "training/denoiser.py": (
            "class DenoiserConfig(TrainingConfig):\n    pass\n\n\n"
            "def train(config: DenoiserConfig | None, class_labels):\n    pass\n"
        ),
        "training/push.py": "class PushConfig:\n    pass\n\n\ndef push(c: PushConfig):\n    pass\n",
        "training/notes.py": '"""Mentions class_labels."""\n',
        "hub/facts.py": 'def read(unet):\n    return unet.config["num_class_embeds"]\n',
        "hub/card.md": "A card.\n",
        "hub/__pycache__/facts.txt": "",
    }
    for name, text in files.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text)
    return package


def test_sizes_are_those_of_python_files(package):
    assert complexity.measure_sizes(package) == {
        "lines": 2 + 6 + 6 + 1 + 2,
        "files": 6,
        "entries": 3,
        "fullest_folder": "hf_latent/training",
        "files_in_fullest_folder": 4,
    }


def test_signatures_with_the_packages_settings_are_counted(package):
    assert complexity.measure_settings(package) == {
        "signatures_with_settings": 2,
        "files_of_those": 2,
        "signatures_with_training_settings": 1,
        "files_of_training_signatures": 1,
    }


def test_a_file_handles_labels_if_its_code_has_their_name(package):
    assert complexity.label_files(package) == ["hub/facts.py", "training/denoiser.py"]


@pytest.mark.parametrize("code", ["x.class_labels", "f(class_labels=1)", "'class_labels'"])
def test_names_are_found_in_all_kinds_of_code(code):
    assert "class_labels" in complexity.named(ast.parse(code))


def test_the_table_leaves_lists_out():
    table = complexity.render(
        {"lines": 21232, "way_back": {"calls": 3, "way": ["a"]}, "names": ["b"]}
    )
    assert table.splitlines()[2:] == ["| lines | 21,232 |", "| way back calls | 3 |"]


def test_the_recorder_counts_each_frame_once(tmp_path):
    (tmp_path / "a.py").write_text("def count():\n    yield 1\n    yield 2\n")
    (tmp_path / "b.py").write_text(
        "def total(numbers):\n    key = lambda x: x\n    return key(sum(numbers))\n"
    )
    names: dict = {}
    for name in ("a", "b"):
        path = tmp_path / f"{name}.py"
        exec(compile(path.read_text(), path, "exec"), names)
    recorder = Recorder(tmp_path)
    recorder.start()
    try:
        assert names["total"](names["count"]()) == 3
    finally:
        recorder.stop()
    assert recorder.figures() == {
        "calls": 3,
        "changes_of_file": 2,
        "functions": 2,
        "changes_of_file_of_functions": 1,
        "way": ["b.py: total", "a.py: count", "b.py: <lambda>"],
    }


class Source:
    """Yields numbers, as a loader yields batches."""

    def numbers(self):
        return iter([1, 2, 3])


def test_the_second_step_is_recorded_from_the_batch_to_the_loss(monkeypatch):
    asked = []
    monkeypatch.setattr("accelerate.Accelerator.backward", lambda self, loss: asked.append(loss))

    def train():
        from accelerate import Accelerator

        for number in Source().numbers():
            Accelerator.backward(None, square(number))

    figures = call_paths.record_step(Path(__file__).parent, train, Source, "numbers")
    assert asked == [1, 4, 9]
    assert figures["way"].count("test_complexity.py: square") == 1


def square(number: int) -> int:
    return number * number


def test_the_path_from_a_label_to_the_denoiser_is_short(tmp_path):
    package = Path(__file__).parents[2] / "hf_latent"
    figures, travelling_files = call_paths.record_label_to_pixels(package, tmp_path)
    assert figures["calls"] <= 20
    assert figures["changes_of_file"] <= 8
    assert travelling_files == 10
