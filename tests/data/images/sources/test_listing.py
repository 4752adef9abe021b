import os
import socket

import numpy as np
import pytest
from PIL import Image

from hf_latent.data.images import ImagesConfig, open_images
from hf_latent.data.images.formats import ENDINGS, HEIF_ENDINGS
from hf_latent.data.images.pixels import decode_image
from hf_latent.data.images.sources import listing as module
from hf_latent.data.images.sources import open_source
from hf_latent.data.images.sources.listing import list_files
from hf_latent.errors import UserError
from tests.data.images.image_folders import write


def listed(folder):
    """The images, after nothing was passed over or failed."""
    listing = list_files(str(folder))
    assert listing.bad_files == listing.notes == []
    return list(listing.images)


def bad_files(folder):
    """What could not be listed, without the folder; every line is printable and whole."""
    found = list_files(str(folder)).bad_files
    assert all(line.isascii() and line.isprintable() for line in found)
    return [line.replace(f"{folder}/", "").replace(str(folder), ".") for line in found]


def test_images_are_listed_sorted_at_any_depth(tmp_path):
    paths = ["b.JPG", "a/x.TIFF", "a/deep/er/y.webp", "c.PNG", "[odd] name*.png", "a.png"]
    assert listed(write(tmp_path, *paths)) == sorted(paths)


def test_sizes_and_times_are_those_of_the_files(tmp_path):
    write(tmp_path, "a.png")
    os.utime(tmp_path / "a.png", ns=(1, 2))
    size = (tmp_path / "a.png").stat().st_size
    assert list_files(str(tmp_path)).images == {"a.png": (size, 2)}


def test_hidden_and_system_folders_are_counted(tmp_path):
    write(tmp_path, "cat/a.png", "cat/@eaDir/a.png/SYNO.jpg", "dog/@eaDir/b.png/SYNO.jpg")
    write(
        tmp_path, "._a.png", ".b.png", ".thumbnails/a.png", "__MACOSX/c.png", "$RECYCLE.BIN/d.png"
    )
    write(tmp_path, "lost+found/e.png", "System Volume Information/f.png", "#recycle/g.png")
    write(tmp_path, ".ipynb_checkpoints/h.png", ".Trash-1000/i.png", ".AppleDouble/j.png")
    listing = list_files(str(tmp_path))
    assert list(listing.images) == ["cat/a.png"] and not listing.bad_files
    [note] = listing.notes
    assert note == (
        "hidden or of the system, left out: 2 @eaDir, 2 files named ._* or .*, 1 #recycle, "
        "1 $RECYCLE.BIN, 1 .AppleDouble, 1 .Trash-1000, 1 .ipynb_checkpoints, 1 .thumbnails "
        "and others"
    )


@pytest.mark.parametrize("name", ["@home", "#1", "thumbnails", "recycle"])
def test_class_folders_with_odd_names_stay(tmp_path, name):
    assert listed(write(tmp_path, f"{name}/a.png")) == [f"{name}/a.png"]


def test_files_of_other_formats_are_counted_by_ending(tmp_path):
    write(tmp_path, "a.png", "b.psd", "c.PSD", "d.svg", "e.cr2", "IMG_0001", "f.jpg.part", "g.npy")
    for name in ("a.txt", "b.json", "c.xml", "Thumbs.db", "desktop.ini", "README.md"):
        (tmp_path / name).write_text("no image")
    listing = list_files(str(tmp_path))
    assert list(listing.images) == ["a.png"]
    assert listing.notes == [
        "7 files of other formats passed over: 2 .psd, 1 .cr2, 1 .npy, 1 .part, 1 .svg, 1 without "
        "an ending"
    ]


def test_a_folder_of_other_formats_only_is_refused_with_their_counts(tmp_path):
    write(tmp_path, "a.zip", "b.dcm", "c.dcm")
    (tmp_path / "d.png").symlink_to("/nowhere")
    with pytest.raises(UserError, match=r"holds no image.*2 \.dcm, 1 \.zip.*d\.png"):
        open_source(str(tmp_path))


def test_tables_that_are_no_metadata_are_named(tmp_path):
    write(tmp_path, "a.png")
    for name in ("labels.csv", "part/train.tsv", "metadata.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("file_name,label")
    [note] = list_files(str(tmp_path)).notes
    assert note.startswith("tables not read: labels.csv, part/train.tsv (labels are read from")


def test_heic_is_read(tmp_path):
    colours = np.zeros((48, 64, 3), np.uint8)
    colours[:24], colours[24:] = (255, 0, 0), (0, 0, 255)
    turned = Image.Exif()
    turned[0x112] = 6  # turn by 90 degrees clockwise
    for place, name in enumerate(("a.HEIC", "b.heif", "c.hif")):
        image = Image.fromarray(np.roll(colours, 8 * place, 0))
        image.save(tmp_path / name, "HEIF", quality=95, exif=turned.tobytes())
    found = decode_image(str(tmp_path / "a.HEIC"))
    assert found.shape == (64, 48, 3)
    assert np.abs(found.astype(int) - np.rot90(colours, -1)).mean() < 4
    splits = open_images(ImagesConfig(data=str(tmp_path), resolution=16, validation_fraction=0.3))
    assert splits.image_shape == (3, 16, 16)


def test_heic_without_its_package_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "ENDINGS", ENDINGS - HEIF_ENDINGS)
    write(tmp_path, "a.png", "IMG_1.HEIC", "IMG_2.heic")
    [note] = open_source(str(tmp_path)).notes
    assert note == (
        "2 files of other formats passed over: 2 .heic (pip install pillow-heif to read .heic and "
        ".heif)"
    )


def test_links_to_nothing_are_bad_files(tmp_path):
    write(tmp_path, "a.png")
    (tmp_path / "gone.png").symlink_to("/nowhere/gone.png")
    (tmp_path / "dogs").symlink_to("/nowhere/dogs")  # a class on a disk that is not there
    (tmp_path / "self.png").symlink_to("self.png")
    (tmp_path / "self").symlink_to("self")
    assert bad_files(tmp_path) == [
        "dogs (a link to nothing: No such file or directory)",
        "gone.png (a link to nothing: No such file or directory)",
        "self (a link to nothing: Too many levels of symbolic links)",
        "self.png (a link to nothing: Too many levels of symbolic links)",
    ]
    assert open_source(str(tmp_path)).bad_files == tuple(list_files(str(tmp_path)).bad_files)


def test_pipes_sockets_and_devices_are_never_opened(tmp_path, monkeypatch):
    write(tmp_path, "a.png")
    os.mkfifo(tmp_path / "pipe.png")
    os.mkfifo(tmp_path / "metadata.csv")
    os.mkfifo(tmp_path / "b.parquet")
    os.mkfifo(tmp_path / "notes")
    (tmp_path / "device.jpg").symlink_to("/dev/zero")
    monkeypatch.chdir(tmp_path)  # the path of a socket is short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.png")
        found = bad_files(tmp_path)
    names = ["b.parquet", "device.jpg", "metadata.csv", "pipe.png", "socket.png"]
    assert found == [f"{name} (no regular file, but a pipe or a device)" for name in names]
    assert len(open_source(str(tmp_path)).train) == 1


def test_a_folder_that_cannot_be_read_is_a_bad_file(tmp_path, monkeypatch):
    write(tmp_path, "a/1.png", "b/2.png", "c/3.png")
    scandir = os.scandir

    def denied(path):  # as for a folder of mode 000, which root could read
        if str(path).endswith("/c"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    assert bad_files(tmp_path) == ["c (cannot be listed: Permission denied)"]
    with pytest.raises(UserError, match=r"c cannot be read: .*Permission denied"):
        open_source(str(tmp_path / "c"))


def test_a_file_that_vanishes_meanwhile_is_a_bad_file(tmp_path, monkeypatch):
    write(tmp_path, "a.png", "b.png")
    scandir = os.scandir

    class Entries(list):
        def __enter__(self):
            return self

        def __exit__(self, *_):
            (tmp_path / "b.png").unlink(missing_ok=True)

        close = __exit__

    monkeypatch.setattr(os, "scandir", lambda path: Entries(scandir(path)))
    monkeypatch.setattr(Entries, "close", lambda self: None)
    listing = list_files(str(tmp_path))
    assert list(listing.images) == ["a.png"]
    assert listing.bad_files == [f"{tmp_path}/b.png (No such file or directory)"]


def test_names_that_are_not_utf_8_are_bad_files(tmp_path):
    write(tmp_path, "a.png", "b.png", "cats/c.png")
    (tmp_path / "b.png").rename(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9\n.png"))
    (tmp_path / "cats").rename(os.fsdecode(os.fsencode(tmp_path) + b"/\xffcats"))
    assert list(list_files(str(tmp_path)).images) == ["a.png"]
    second, first = bad_files(tmp_path)
    assert "caf\\udce9\\n.png' (its name is not UTF-8" in first
    assert "\\udcffcats' (its name is not UTF-8" in second


def test_a_root_that_is_not_utf_8_is_refused(tmp_path):
    folder = write(tmp_path / os.fsdecode(b"caf\xe9"), "a.png")
    with pytest.raises(UserError, match="is not UTF-8") as caught:
        open_source(str(folder))
    assert str(caught.value).isascii()


def test_linked_folders_are_listed_once(tmp_path):
    folder = write(tmp_path / "images", "b/1.png", "c/2.png")
    write(tmp_path / "elsewhere", "3.png")
    (folder / "loop").symlink_to(folder)
    (folder / "b" / "up").symlink_to(folder / "b")
    (folder / "a").symlink_to(folder / "c")  # the real folder wins, though it comes later
    (folder / "d").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(folder)
    listing = list_files(str(folder))
    assert list(listing.images) == ["b/1.png", "c/2.png", "d/3.png"]
    assert listing.notes == ["links to folders that are listed already: a, b/up, d/back, loop"]
