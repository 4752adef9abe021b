"""List the files of a folder, without opening one, and say what is passed over."""

import os
import stat
from collections import Counter
from dataclasses import dataclass, field

from hf_latent.data.images.formats import ENDINGS, HEIF_ENDINGS

METADATA_NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
# Folders that systems and their file servers make. Names that begin with a dot are hidden too.
SYSTEM_FOLDERS = {
    *("__macosx", "@eadir", "@recycle", "@tmp", "#recycle", "#snapshot", "lost+found"),
    *("$recycle.bin", "recycler", "system volume information"),
}
# Files that often lie beside images, and that nobody takes for images.
COMPANIONS = {
    *(".txt", ".json", ".xml", ".md", ".rst", ".yaml", ".yml", ".toml", ".html", ".htm", ".log"),
    *(".ini", ".db", ".py", ".ipynb", ".sh", ".url", ".lnk", ".md5", ".sha256", ".lock", ".bib"),
}
TABLES = {".csv", ".tsv", ".jsonl", ".xlsx", ".xls"}
NAMED = 8


@dataclass
class Listing:
    """The files under a folder, at any depth, by their paths from it, with slashes.

    Attributes:
        folder: absolute path.
        images: sorted; the size in bytes and the time of the last change in ns of each.
        parquet: the parquet files, sorted, without the metadata.
        metadata: files named as `datasets` names the labels of an image folder, sorted.
        texts: the text files, which may hold captions.
        bad_files: one line on each file or folder that cannot be listed.
        notes: one line on each kind of what was passed over.
    """

    folder: str
    images: dict[str, tuple[int, int]] = field(default_factory=dict)
    parquet: list[str] = field(default_factory=list)
    metadata: list[str] = field(default_factory=list)
    texts: set[str] = field(default_factory=set)
    bad_files: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def list_files(folder: str) -> Listing:
    """List the files under a folder.

    Hidden files and the folders of systems are left out. A folder that several links lead to is
    listed once, as the real folder if that is inside. Nothing is opened, because a pipe would wait.

    Args:
        folder: its path.

    Raises:
        OSError: if the folder itself cannot be read.
    """
    listing = Listing(os.path.abspath(folder))
    os.scandir(listing.folder).close()
    seen: set[tuple[int, int]] = set()
    counts: dict[str, Counter[str]] = {"hidden": Counter(), "ending": Counter(), "table": Counter()}
    again: list[str] = []
    real, linked = [""], list[str]()
    while real or linked:  # linked folders follow all real ones
        parent = real.pop() if real else linked.pop(0)
        path = os.path.join(listing.folder, parent)
        try:
            status = os.stat(path)
            with os.scandir(path) as found:
                entries = list(found)
        except OSError as error:
            listing.bad_files.append(f"{path} (cannot be listed: {error.strerror or error})")
            continue
        if (status.st_dev, status.st_ino) in seen:
            again.append(parent)
            continue
        seen.add((status.st_dev, status.st_ino))
        for entry in entries:
            name = f"{parent}/{entry.name}" if parent else entry.name
            if entry.name.startswith(".") or entry.name.lower() in SYSTEM_FOLDERS:
                counts["hidden"][entry.name if _is_folder(entry) else "files named ._* or .*"] += 1
            elif not is_utf8(entry.name):
                listing.bad_files.append(f"{entry.path!a} (its name is not UTF-8: rename it)")
            elif _is_folder(entry):
                (linked if entry.is_symlink() else real).append(name)
            else:
                _list_file(listing, name, entry, counts)
    arrays = [name for name in listing.images if name.lower().endswith(".npy")]
    if 0 < len(arrays) < len(listing.images):  # beside pictures they are features or masks
        listing.images = {x: listing.images[x] for x in listing.images.keys() - arrays}
        counts["ending"][".npy"] += len(arrays)
    listing.images = dict(sorted(listing.images.items()))
    for names in (listing.parquet, listing.metadata, listing.bad_files):
        names.sort()
    listing.notes = _describe_counts(counts, again)
    return listing


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, for example
        return False


def is_utf8(name: str) -> bool:
    """Return whether a path can be written to a data set."""
    return name.isascii() or name == name.encode(errors="ignore").decode()


def _list_file(
    listing: Listing, name: str, entry: os.DirEntry[str], counts: dict[str, Counter[str]]
) -> None:
    ending = os.path.splitext(entry.name)[1].lower()
    is_used = ending in ENDINGS or ending == ".parquet" or entry.name in METADATA_NAMES
    if is_used or entry.is_symlink():
        try:
            status = entry.stat()
        except OSError as error:
            why = f"a link to nothing: {error.strerror}" if entry.is_symlink() else error.strerror
            listing.bad_files.append(f"{entry.path} ({why or error})")
            return
        if is_used and not stat.S_ISREG(status.st_mode):
            listing.bad_files.append(f"{entry.path} (no regular file, but a pipe or a device)")
            return
    if ending in ENDINGS:
        listing.images[name] = (status.st_size, status.st_mtime_ns)
    elif entry.name in METADATA_NAMES:
        listing.metadata.append(name)
    elif ending == ".parquet":
        listing.parquet.append(name)
    elif ending == ".txt":
        if entry.is_file():  # neither a pipe nor a device
            listing.texts.add(name)
    elif ending in TABLES:
        counts["table"][name] += 1
    elif ending not in COMPANIONS:
        counts["ending"][ending if len(ending) > 1 else "without an ending"] += 1


def _describe_counts(counts: dict[str, Counter[str]], again: list[str]) -> list[str]:
    notes = []
    if counts["ending"]:
        advice = ""
        if HEIF_ENDINGS & counts["ending"].keys() - ENDINGS:
            advice = " (pip install pillow-heif to read .heic and .heif)"
        total = counts["ending"].total()
        notes.append(
            f"{total} files of other formats passed over: {_name(counts['ending'])}{advice}"
        )
    if counts["hidden"]:
        notes.append(f"hidden or of the system, left out: {_name(counts['hidden'])}")
    if counts["table"]:
        notes.append(
            f"tables not read: {', '.join(sorted(counts['table'])[:NAMED])} (labels are read from "
            "metadata.csv, .jsonl or .parquet with a column file_name)"
        )
    if again:
        notes.append(
            f"links to folders that are listed already: {', '.join(sorted(again)[:NAMED])}"
        )
    return notes


def _name(counter: Counter[str]) -> str:
    ordered = sorted(counter.items(), key=lambda item: (-item[1], item[0]))
    parts = [f"{count} {name}" for name, count in ordered[:NAMED]]
    return ", ".join(parts) + (" and others" if len(counter) > NAMED else "")
