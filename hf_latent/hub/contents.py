"""The files of a model or of a latent cache that a push sends: an explicit list, and a card."""

import hashlib
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import RepoCard

from hf_latent.data.latents.cache import LatentCache
from hf_latent.data.shards import hash_file
from hf_latent.errors import UserError, cause_of
from hf_latent.hub.card.cache import render_cache_card
from hf_latent.hub.card.render import card_pictures, render_model_card
from hf_latent.hub.card.signature import is_unedited
from hf_latent.hub.model_files import (
    ABOUT,
    CODE,
    COMPONENT,
    CONFIGS,
    ENTRIES,
    INDEX,
    PIPELINE,
    REPORTS,
    WEIGHTS,
    check_files,
    checkpoint_files,
    is_file,
    model_files,
)
from hf_latent.hub.remote import RemoteFiles
from hf_latent.models.load import find_component, find_model, is_own, released_models
from hf_latent.output import read_json
from hf_latent.pipeline.autoencoders import KINDS
from hf_latent.pipeline.saved_files import MODULES, RETIRED_MODULES, add_code, saved_models

SHOWN_NAMES = 5
_SHARD = re.compile(r"(train|validation)-\d{6}\.safetensors")


class _Contents:
    """What a push sends.

    Attributes:
        kind: of the repository: model or dataset.
        what: the kind of contents, in words.
        title: of the commit. It holds a hash of the contents, so a push finds its pull request.
        folder: holds the entry and the card's pictures.
        entry: name of the file that lists the others, like model_index.json.
        files: path of each file, by its name in the repository; no card and no pictures.
    """

    kind: str
    what: str
    entry: str

    def __init__(self, folder: Path, files: dict[str, Path], sha256: dict[str, str]):
        self.folder, self.files = folder, {**files, self.entry: folder / self.entry}
        known = [f"{digest} {name}" for name, digest in sorted(sha256.items())]
        text = "\n".join([hash_file(folder / self.entry), *known])
        self.title = f"Add the {self.what} {hashlib.sha256(text.encode()).hexdigest()[:12]}"

    def pictures(self, card: str) -> dict[str, Path]:
        """Return the path of each picture of a card that is in the folder, by its name."""
        paths = {name: self.folder / name for name in card_pictures(card)}
        return {name: path for name, path in paths.items() if is_file(path)}


class CacheContents(_Contents):
    """A latent cache, each file checked.

    Args:
        repo_id: of the data set, for the card.

    Raises:
        UserError: if the cache is not whole.
    """

    kind, what, entry = "dataset", "latent cache", "manifest.json"

    def __init__(self, folder: Path, repo_id: str):
        """Check every file against the manifest."""
        if not folder.is_dir():
            raise UserError(f"--cache {folder} is not a folder")
        latents = LatentCache(folder)
        shards = latents.manifest["shards"]
        check_files(folder, [self.entry, *shards])
        latents.verify()
        self.manifest, self.repo_id = latents.manifest, repo_id
        sha256 = {name: known["sha256"] for name, known in shards.items()}
        super().__init__(folder, {name: folder / name for name in shards}, sha256)

    def __str__(self) -> str:
        """Return what a push prints."""
        rows = sum(split["rows"] for split in self.manifest["splits"].values())
        return f"latents of {rows:,} images in {len(self.files) - 1:,} files"

    def card(self, license: str | None) -> str:
        """Return the cache's card."""
        return render_cache_card(self.manifest, self.repo_id, license)

    def stale(self, remote: RemoteFiles) -> list[str]:
        """Return the shards on the Hub to delete: only those that the manifest there names."""
        shards = remote.read_json(self.entry).get("shards")
        names = shards if isinstance(shards, dict) else {}
        return [x for x in names if _SHARD.fullmatch(x) and x in remote and x not in self.files]


class ModelContents(_Contents):
    """A model, each file checked.

    Args:
        folder: of the model, as `whole_model` yields it.
        repo_id: of the model on the Hub, for the card.
        license: for the card; None if the card was edited.
        run: the folder of the run whose checkpoints are sent too; None: of none.

    Raises:
        UserError: if the model is not whole, or its card cannot be read.
    """

    kind, what = "model", "model"

    def __init__(self, folder: Path, repo_id: str, license: str | None, run: Path | None):
        """Check and hash every file."""
        self.entry, self.class_name, names = model_files(folder)
        files, self.repo_id = {name: folder / name for name in names}, repo_id
        if run is not None:
            files |= {name: run / name for name in checkpoint_files(run)}
        super().__init__(folder, files, {name: hash_file(path) for name, path in files.items()})
        self._edited, self._cards = self._edited_card(license), dict[str | None, str]()
        shown = self.pictures(self.card(license))
        self.left_out = _left_out(folder, {*names, self.entry, "README.md", *shown})

    def __str__(self) -> str:
        """Return what a push prints."""
        size = sum(path.stat().st_size for path in self.files.values())
        return f"{self.class_name} of {size / 1e6:,.1f} MB in {len(self.files):,} files"

    def card(self, license: str | None) -> str:
        """Return the folder's card if it was edited, else a new one for the repository."""
        if self._edited is not None:
            return self._edited
        if license not in self._cards:  # rendering hashes all weights
            self._cards[license] = render_model_card(self.folder, self.repo_id, license)
        return self._cards[license]

    def stale(self, remote: RemoteFiles) -> list[str]:
        """Return the files of an older model on the Hub to delete.

        Weights and configurations must lie in a folder of this model or of a component there.
        Reports, pictures and code need a sign that a push sent them: other people use these names.
        """
        known = (self.entry, *ABOUT, *CODE)
        parts = {name.rpartition("/")[0] for name in self.files if name not in known}
        index = remote.read_json("model_index.json")
        if self.entry == "model_index.json":
            parts |= {x for x in index if COMPONENT.fullmatch(x) and isinstance(index[x], list)}
        card = remote.read("README.md").decode(errors="replace")
        others = set(card_pictures(card)) if is_unedited(card) else set()
        if index.get("_class_name") == [MODULES[0], PIPELINE]:
            others |= {f"{module}.py" for module in RETIRED_MODULES}
        reports = {x for x in REPORTS if "vae_weights_sha256" in remote.read_json(x)}
        others |= set(ABOUT) if "training.json" in reports else reports
        found = []
        for name in remote.names - self.files.keys():
            part, _, file = name.rpartition("/")
            weights = WEIGHTS.fullmatch(file) or INDEX.fullmatch(file)
            if name in others or (part in parts and (weights or (part and file in CONFIGS))):
                found.append(name)
        return sorted(found)

    def _edited_card(self, license: str | None) -> str | None:
        """Return the folder's card, or None if this package can render it."""
        path, rendered = self.folder / "README.md", self.class_name in (PIPELINE, *KINDS)
        if not is_file(path):
            if not rendered:
                raise UserError(f"{self.folder} has no card: write one, README.md")
            return None
        card = path.read_text(encoding="utf-8", errors="replace")
        if rendered and is_unedited(card):
            return None
        if license:
            raise UserError(f"{path} is sent unchanged, without --license: write the licence there")
        try:
            RepoCard(card)
        except Exception as error:  # the errors of YAML and of huggingface_hub share no class
            raise UserError(
                f"the metadata of {path} cannot be read ({cause_of(error)}): mend it"
            ) from error
        return card


def check_remote_class(repo_id: str, remote: RemoteFiles, class_name: str) -> None:
    """Check that a repository holds no model of another class.

    Args:
        repo_id: for the message.
        remote: the repository's files.
        class_name: of the model to push.

    Raises:
        UserError: if another class is there.
    """
    entry = next((entry for entry in ENTRIES if entry in remote), None)
    if entry is None:
        return
    name = remote.read_json(entry).get("_class_name")
    there = name[-1] if isinstance(name, list) and name else name
    if there != class_name:
        raise UserError(
            f"{repo_id} has the {entry} of {there or 'another kind of model'} on the Hub, and this "
            f"is {class_name}: choose another name"
        )


@contextmanager
def whole_model(name: str) -> Iterator[Path]:
    """Yield the folder of a model with everything that a push sends.

    A released pipeline lies in the package without the code, and perhaps without the autoencoder
    and the text encoder, that are there already. A copy of it gets them, and is removed afterwards.

    Args:
        name: as of `find_model`, but no id on the Hub.

    Raises:
        UserError: if there is no such model.
    """
    folder = Path(find_model(name))
    if not folder.is_dir():
        raise UserError(
            f"--model {name} is not a folder, nor a released model ({', '.join(released_models())})"
        )
    if not any((folder / entry).is_file() for entry in ENTRIES):
        raise UserError(
            f"--model {name} holds no model, neither model_index.json nor config.json: pass a "
            "model's folder"
        )
    if is_own(name) or not (folder / "model_index.json").is_file():
        yield folder
        return
    with TemporaryDirectory() as temporary:
        copy = Path(temporary, folder.name)
        shutil.copytree(folder, copy, copy_function=shutil.copyfile)
        for name in saved_models(read_json(folder / "model_index.json")):
            place = Path(*find_component(str(folder), name))
            for path in () if place == folder / name else place.glob("*.safetensors"):
                shutil.copyfile(path, copy / name / path.name)
        add_code(copy, PIPELINE)
        yield copy


def _left_out(folder: Path, sent: set[str]) -> str:
    """Return the names of files in the model's folders that are not sent."""
    parts = {Path(name).parent.as_posix() for name in sent}
    paths = [path for part in sorted(parts) for path in sorted((folder / part).iterdir())]
    names = [path.relative_to(folder).as_posix() for path in paths if path.name[0] != "."]
    left = [repr(name)[1:-1] for name in names if name not in sent | parts]
    more = f" and {len(left) - SHOWN_NAMES} more" if len(left) > SHOWN_NAMES else ""
    return ", ".join(left[:SHOWN_NAMES]) + more
