import json
import math
import os
import re
import resource
import signal
from multiprocessing import get_context

import pytest
import torch
from safetensors.torch import save_file

from hf_latent.errors import UserError
from hf_latent.output import (
    check_output_dir,
    read_json,
    remove_written,
    replaced_whole,
    write_json,
)

OURS = re.compile(r"(unet/)?(old|new)\.json")


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
        with replaced_whole(path, written=OURS) as temporary:
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


def files(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_text()
        for path in folder.rglob("*")
        if path.is_file()
    }


OTHERS = {"notes.txt": "mine", "other.png": "mine", "unet/notes": "mine", "a/b/old.json": "mine"}


def make_old_model(path):
    for name, content in {**OTHERS, "old.json": "old", "unet/old.json": "old"}.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(content)


def replace_model(path):
    with replaced_whole(path, written=OURS) as temporary:
        (temporary / "unet").mkdir(parents=True)
        (temporary / "unet" / "new.json").write_text("new")


def test_files_that_we_did_not_write_stay_when_a_folder_is_replaced(tmp_path):
    make_old_model(tmp_path / "model")
    replace_model(tmp_path / "model")
    assert files(tmp_path) == {
        f"model/{name}": content for name, content in {**OTHERS, "unet/new.json": "new"}.items()
    }


@pytest.mark.parametrize("killed_at", range(6))
def test_a_replacement_killed_at_any_rename_loses_nothing(tmp_path, killed_at):
    def replace_and_die():
        real, count = os.rename, iter(range(100))

        def rename(*args, **kwargs):
            if next(count) == killed_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)

        os.rename = rename
        replace_model(tmp_path / "model")

    make_old_model(tmp_path / "model")
    process = get_context("fork").Process(target=replace_and_die)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    left = files(tmp_path)
    kept = {path: x for path, x in left.items() if x == "mine"}
    assert {path.partition("/")[2] for path in kept} == OTHERS.keys()
    assert any(x in ("old", "new") for path, x in left.items() if ".tmp" not in path)
    replace_model(tmp_path / "model")
    assert files(tmp_path) == {
        f"model/{name}": content for name, content in {**OTHERS, "unet/new.json": "new"}.items()
    }


def test_only_written_files_are_removed(tmp_path):
    make_old_model(tmp_path / "model")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "old.json").write_text("mine")
    (tmp_path / "model" / "unet" / "link").symlink_to(tmp_path / "linked")
    remove_written(tmp_path / "model", OURS)
    assert files(tmp_path / "model") == OTHERS
    assert (tmp_path / "linked" / "old.json").exists()
    remove_written(tmp_path / "missing", OURS)


@pytest.mark.parametrize("mask", [0o022, 0o002, 0o077])
def test_files_and_folders_get_the_umasks_modes(tmp_path, mask):
    before = os.umask(mask)
    try:
        write_json(tmp_path / "report.json", {})
        with replaced_whole(tmp_path / "model") as temporary:
            (temporary / "unet").mkdir(parents=True)
            save_file({"a": torch.zeros(1)}, temporary / "unet" / "a.safetensors")
    finally:
        assert os.umask(before) == mask
    for path in tmp_path.rglob("*"):
        wanted = (0o777 if path.is_dir() else 0o666) & ~mask
        assert path.stat().st_mode & 0o777 == wanted, path


def test_a_full_disk_is_one_line_and_leaves_the_old_file(tmp_path):
    def write(limit):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        for name in ("report.json", "model"):
            with pytest.raises(UserError, match=f"{name} cannot be written.*: make room") as raised:
                if name == "model":
                    with replaced_whole(tmp_path / name) as temporary:
                        temporary.mkdir()
                        save_file({"a": torch.zeros(1000)}, temporary / "a.safetensors")
                else:
                    write_json(tmp_path / name, {"a": "b" * 4000})
            assert "\n" not in str(raised.value)

    write_json(tmp_path / "report.json", {"a": 1})
    process = get_context("fork").Process(target=write, args=(2000,))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert read_json(tmp_path / "report.json") == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


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
