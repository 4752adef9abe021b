"""What a push sends of a model: weights, configurations, code, the card and what it shows."""

import hashlib
import re
from itertools import islice
from pathlib import Path

from huggingface_hub import RepoCard

from hf_latent.errors import UserError
from hf_latent.hub.card.render import card_pictures, render_model_card
from hf_latent.hub.card.signature import is_unedited
from hf_latent.hub.upload.config import PushConfig
from hf_latent.hub.upload.model_folder import (
    ABOUT,
    AUTOENCODERS,
    CODE,
    COMPONENT,
    CONFIGS,
    INDEX,
    PIPELINE,
    WEIGHTS,
    component_files,
    is_file,
    open_model_folder,
    read_json,
    read_weight_names,
)
from hf_latent.hub.upload.remote_files import LocalFile, RemoteFiles
from hf_latent.hub.upload.upload import Contents
from hf_latent.pipeline.hub_format import MODULES

ENTRIES = ("model_index.json", "config.json")
REPORTS = ("training.json", "metrics.json")
_PICTURE = re.compile(r"\w[\w.-]*\.png", re.ASCII)
_CHECKPOINT = re.compile(r"checkpoint-\d+")
_MOMENTS = re.compile(r"\w+_optimizer\.safetensors", re.ASCII)
SHOWN_NAMES = 5


class ModelContents(Contents):
    """A whole model.

    Args:
        folder: of the model, or of the run that it was trained in.
        config: the repository, for the card; whether checkpoints go along.

    Attributes:
        left_out: a few of the names in the folder that are not sent, in words; empty if there are
            none.

    Raises:
        UserError: if the model is not whole, or its card cannot be read.
    """

    kind = "model"

    def __init__(self, folder: Path, config: PushConfig):
        """Check every file."""
        self.folder, self.config = find_model(folder), config
        model = open_model_folder(self.folder)
        self.class_name = model.class_name
        paths = {name: self.folder / name for name in model.files}
        if config.checkpoints:
            paths |= checkpoint_files(folder)
        self.files = {name: LocalFile.read(path) for name, path in paths.items()}
        self.entry = (model.entry, (self.folder / model.entry).read_bytes())
        known = [f"{file.sha256} {name}" for name, file in sorted(self.files.items())]
        self.title = f"Add the model {_short_hash(self.entry[1], *map(str.encode, known))}"
        self._edited, self._cards = self._edited_card(), dict[str | None, str]()
        card = self.card(config.license)
        sent = {*model.files, model.entry, "README.md", *self.pictures(card)}
        self.left_out = _left_out(self.folder, sent)

    def __str__(self) -> str:
        """Say what it is, in a few words."""
        size = sum(file.size for file in self.files.values())
        return f"{self.class_name} of {size / 1e6:,.1f} MB in {len(self.files) + 1:,} files"

    def card(self, license: str | None) -> str:
        """Return the folder's card if it was edited, otherwise a new one for the repository."""
        if self._edited is not None:
            return self._edited
        if license not in self._cards:  # each takes a look at all the weights
            self._cards[license] = render_model_card(self.folder, self.config.repo_id, license)
        return self._cards[license]

    def pictures(self, card: str) -> dict[str, LocalFile]:
        """Return those of the model's folder itself that the card shows."""
        return {
            name: LocalFile.read(self.folder / name)
            for name in card_pictures(card)
            if _PICTURE.fullmatch(name) and is_file(self.folder / name)
        }

    def stale(self, remote: RemoteFiles) -> list[str]:
        """Return what the same list names there: of a model's repository, it is the model's."""
        parts = {name.rpartition("/")[0] for name in self.files if name not in (*ABOUT, *CODE)}
        index = remote.read_json("model_index.json")
        if self.entry[0] == "model_index.json":
            parts |= {
                name
                for name, value in index.items()
                if COMPONENT.fullmatch(name) and isinstance(value, list)
            }
        before = remote.read("README.md").decode(errors="replace") if "README.md" in remote else ""
        pictures = card_pictures(before) if is_unedited(before) else []
        others = {name for name in pictures if _PICTURE.fullmatch(name)}
        # Files of these names may be anybody's: a push sent them only with what tells so.
        if index.get("_class_name") == [MODULES[0], PIPELINE]:
            others |= set(CODE)
        reports = {x for x in REPORTS if "vae_weights_sha256" in remote.read_json(x)}
        others |= set(ABOUT) if "training.json" in reports else reports
        found = []
        for name in remote:
            part, _, file = name.rpartition("/")
            weights = WEIGHTS.fullmatch(file) or INDEX.fullmatch(file)
            if name in others or (part in parts and (weights or (part and file in CONFIGS))):
                found.append(name)
        return [name for name in found if name not in self.files]

    def refuse(self, repo_id: str, remote: RemoteFiles) -> None:
        """Refuse the repository of another kind of model."""
        refuse_other_model(repo_id, remote, self.class_name)

    def _edited_card(self) -> str | None:
        """Return the folder's card, if there is one that was edited or is another's."""
        path = self.folder / "README.md"
        if not is_file(path):
            if self.class_name not in (PIPELINE, *AUTOENCODERS):
                raise UserError(f"{self.folder} has no card: write one, README.md")
            return None
        card = path.read_text(encoding="utf-8", errors="replace")
        if is_unedited(card) and self.class_name in (PIPELINE, *AUTOENCODERS):
            return None
        if self.config.license:
            raise UserError(f"{path} is sent as it is, without --license: write the licence there")
        try:
            RepoCard(card)
        except Exception as error:  # YAML's errors have no common class with the others
            cause = " ".join(str(error).split())[:200]
            raise UserError(f"the metadata of {path} cannot be read: {cause}") from error
        return card


def find_model(folder: Path) -> Path:
    """Return the model's folder: the one given, or `model` in that of a run.

    Args:
        folder: of a model or of a run.

    Raises:
        UserError: if there is none.
    """
    if not folder.is_dir():
        raise UserError(f"--model {folder} is not a folder")
    for place in (folder, folder / "model"):
        if any((place / entry).is_file() for entry in ENTRIES):
            return place
    raise UserError(
        f"--model {folder} holds no model: there is neither model_index.json nor config.json"
    )


def checkpoint_files(run: Path) -> dict[str, Path]:
    """Find the files of a run's checkpoints, each checked like a model's.

    Args:
        run: the run's folder.

    Returns:
        Their paths, by their names in the run's folder.

    Raises:
        UserError: if there are none, or one is damaged.
    """
    found = [path for path in sorted(run.iterdir()) if _CHECKPOINT.fullmatch(path.name)]
    if not found:
        raise UserError(
            f"--checkpoints: {run} has no checkpoint-N: pass the folder of the run as --model"
        )
    names = []
    for checkpoint in found:
        if checkpoint.is_symlink():
            raise UserError(f"{checkpoint} is a link: put the folder itself in its place")
        read_json(checkpoint, "state.json")
        names.append(f"{checkpoint.name}/state.json")
        for path in sorted(checkpoint.iterdir()):
            if path.is_dir() and COMPONENT.fullmatch(path.name):
                names += component_files(run, f"{checkpoint.name}/{path.name}")
            elif _MOMENTS.fullmatch(path.name):
                read_weight_names(path)
                names.append(f"{checkpoint.name}/{path.name}")
    return {name: run / name for name in names}


def refuse_other_model(repo_id: str, remote: RemoteFiles, class_name: str) -> None:
    """Refuse to put a model over one of another class.

    Args:
        repo_id: of the repository.
        remote: its files.
        class_name: of the model that is to come.

    Raises:
        UserError: if another is there.
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


def _short_hash(*parts: bytes) -> str:
    return hashlib.sha256(b"\n".join(parts)).hexdigest()[:12]


def _left_out(folder: Path, sent: set[str]) -> str:
    """Name what is not sent of a model's folder and of its parts' folders."""
    parts = {Path(name).parent.as_posix() for name in sent}
    names = []
    for part in sorted(parts):
        for path in sorted((folder / part).iterdir()):
            name = path.relative_to(folder).as_posix()
            if name not in sent | parts and not path.name.startswith("."):
                names.append(repr(name)[1:-1])
    more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
    return ", ".join(islice(names, SHOWN_NAMES)) + more
