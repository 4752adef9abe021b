import json
import math
import os
import signal
from multiprocessing import get_context

import pytest

from hf_latent.errors import UserError
from hf_latent.output import check_output_dir, read_json, replaced_whole, write_json


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "report.json"
    write_json(path, {"psnr_db": 1.5})
    with pytest.raises(RuntimeError), replaced_whole(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert json.loads(path.read_text()) == {"psnr_db": 1.5}
    assert [p.name for p in tmp_path.iterdir()] == ["report.json"]


def test_a_folder_is_replaced_whole(tmp_path):
    path = tmp_path / "model"
    for content in ("old", "new"):
        with replaced_whole(path) as temporary:
            temporary.mkdir()
            (temporary / f"{content}.json").write_text(content)
    assert [p.name for p in path.iterdir()] == ["new.json"]
    with pytest.raises(RuntimeError), replaced_whole(path) as temporary:
        temporary.mkdir()
        raise RuntimeError
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    assert [p.name for p in path.iterdir()] == ["new.json"]


def test_a_folder_stays_if_its_replacement_was_never_written(tmp_path):
    path = tmp_path / "model"
    path.mkdir()
    (path / "old.json").write_text("old")
    with pytest.raises(FileNotFoundError), replaced_whole(path):
        pass
    assert (path / "old.json").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_a_linked_folder_is_replaced_at_its_target(tmp_path):
    (tmp_path / "disk" / "model").mkdir(parents=True)
    (tmp_path / "model").symlink_to(tmp_path / "disk" / "model")
    with replaced_whole(tmp_path / "model") as temporary:
        temporary.mkdir()
        (temporary / "new.json").write_text("new")
    assert (tmp_path / "disk" / "model" / "new.json").is_file()
    assert (tmp_path / "model").is_symlink()


def test_checking_a_missing_output_dir_leaves_no_trace(tmp_path):
    assert check_output_dir(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert list(tmp_path.iterdir()) == []


def test_relative_output_dir(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert str(check_output_dir("runs/vae")) == "runs/vae"


def test_output_dir_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match="cannot be written"):
            check_output_dir(path)


def test_output_dir_with_files_is_refused_unless_asked(tmp_path):
    (tmp_path / "work.txt").write_text("mine")
    with pytest.raises(UserError, match="--overwrite_output_dir true"):
        check_output_dir(tmp_path)
    assert check_output_dir(tmp_path, overwrite=True) == tmp_path
    assert (tmp_path / "work.txt").read_text() == "mine"


def test_numbers_that_are_not_finite_become_null(tmp_path):
    values = {"a": math.nan, "b": [1.5, math.inf, {"c": -math.inf}], "d": (2, "NaN", None)}
    write_json(tmp_path / "x.json", values)
    text = (tmp_path / "x.json").read_text()
    expected = {"a": None, "b": [1.5, None, {"c": None}], "d": [2, "NaN", None]}
    assert json.loads(text) == expected


def test_the_next_try_replaces_the_remains_of_a_killed_one(tmp_path):
    def be_killed_while_writing(path, folder):
        with replaced_whole(path) as temporary:
            if folder:
                temporary.mkdir()
                (temporary / "of the killed").write_text("half")
            else:
                temporary.write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)

    for name, folder in (("report.json", False), ("model", True)):
        process = get_context("fork").Process(
            target=be_killed_while_writing, args=(tmp_path / name, folder)
        )
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {".report.tmp.json", ".model.tmp"}
    write_json(tmp_path / "report.json", {})
    with replaced_whole(tmp_path / "model") as temporary:
        temporary.mkdir()
        (temporary / "new").touch()
    assert {path.name for path in tmp_path.iterdir()} == {"report.json", "model"}
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["new"]


def test_a_folder_killed_between_two_renames_is_written_again(tmp_path):
    (tmp_path / ".model.old").mkdir()
    with replaced_whole(tmp_path / "model") as temporary:
        temporary.mkdir()
    assert {path.name for path in tmp_path.iterdir()} == {"model"}


def test_paths_with_a_shared_temporary_name_leave_at_most_one(tmp_path):
    (tmp_path / ".checkpoint.tmp").mkdir()
    (tmp_path / ".checkpoint.tmp" / "half").touch()
    for step in (1, 2):
        with replaced_whole(tmp_path / f"checkpoint-{step}", ".checkpoint.tmp") as temporary:
            temporary.mkdir()
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-1", "checkpoint-2"}
    assert not list((tmp_path / "checkpoint-1").iterdir())


def test_written_json_is_read_back(tmp_path):
    write_json(tmp_path / "report.json", {"fd": 1.5, "data": "Müll"})
    assert read_json(tmp_path / "report.json") == {"fd": 1.5, "data": "Müll"}


@pytest.mark.parametrize("content", [None, b"{", b"[1]", b"\xff\xff", b"[" * 100_000])
def test_reading_anything_but_a_json_object_is_a_user_error(tmp_path, content):
    path = tmp_path / "report.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"report\.json .* again$"):
        read_json(path)
