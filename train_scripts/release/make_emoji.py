"""Make a data set of small RGBA images, Noto emoji from an npm package, split by emoji.

    npm pack emoji-datasource-google && tar xf emoji-datasource-google-*.tgz
    python train_scripts/release/make_emoji.py --package package --output_dir emoji

Use the folder as a source of images: `--data emoji --channels 4 --resolution 64`. With `--captions`
each image also has its names in words, and the split is by combinations of words.
"""

import hashlib
import json
import os
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, List, Value

from hf_latent.command import Settings, run_command
from hf_latent.data.images.held_out import content_hash
from hf_latent.data.images.pixels import decode_image, to_channels
from hf_latent.data.quiet import quiet_datasets
from hf_latent.errors import UserError
from hf_latent.output import check_output_dir, replaced_whole

PACKAGE = "emoji-datasource-google"
IMAGE_NAME = re.compile(r"[0-9a-f]+(-[0-9a-f]+)*\.png")
TEST_PERCENT = 10
COMBINATION_PERCENT = 5

# Variation selector, joiner, gender signs, arrow of a figure facing right; skin tones; hair.
DROPPED = {*"\ufe0f\u200d\u2640\u2642\u27a1"}
DROPPED |= {chr(code) for code in (*range(0x1F3FB, 0x1F400), *range(0x1F9B0, 0x1F9B4))}
# The emoji of a word look nearly alike, mirrored or turned; the first stands for the others.
DRAWN_ALIKE = """🧑👨👩 🧒👦👧 🧓👴👵 👫👬👭 🤴👸🫅 🎅🤶 🤰🫃🫄 🤛🤜 🫱🫲 🫷🫸 👈👉👆👇 ☃⛄ 🌛🌜
🌒🌘 🌓🌗 🌔🌖 🔍🔎 🔅🔆 ↔↕↖↗↘↙⬅⬆⬇➡ ◀▶🔼🔽 ⏪⏩⏫⏬ ⏮⏭
🕐🕑🕒🕓🕔🕕🕖🕗🕘🕙🕚🕛🕜🕝🕞🕟🕠🕡🕢🕣🕤🕥🕦🕧"""
STANDS_FOR = {ord(other): row[0] for row in DRAWN_ALIKE.split() for other in row[1:]}
SPELLED_OUT = {"🧑🤝🧑": "👫", "🧑❤🧑": "💑", "🧑❤💋🧑": "💏", "🧑🎄": "🎅", "🧑🍼": "🤱"}
SKIN_TONES = {
    "1F3FB": "light skin tone",
    "1F3FC": "medium-light skin tone",
    "1F3FD": "medium skin tone",
    "1F3FE": "medium-dark skin tone",
    "1F3FF": "dark skin tone",
}
# These are held out too. Their colours and their shapes are in other names.
COLOURED = {"blue heart", "large green circle", "large orange square", "green book"}
FAMILY, FAMILY_MEMBERS, KEYCAP = "👪", {"🧑", "🧒"}, "\u20e3"

README = """# Noto emoji, RGBA

Made by `train_scripts/release/make_emoji.py` of hf_latent from the npm package {package} {version}
(https://github.com/iamcal/emoji-data). The bytes of the PNG files are unchanged.

Licence: the images are Google's Noto Emoji (https://github.com/googlefonts/noto-emoji), Apache
License 2.0 (https://www.apache.org/licenses/LICENSE-2.0); its flags are in the public domain or
exempt from copyright. The package's data, from which the labels come, has the MIT licence in
LICENSE-{package}.

{rule} The five bare skin swatches (category Component) are left out.

| category | train | test |
|---|---|---|
{rows}
"""


BY_EMOJI = f"""Split: by emoji, never by variant. Skin tones, hair, genders and directions of one
emoji, all families, all clock faces, all keycaps, mirrored pairs such as the fists, and emoji with
identical images are one group. A group is in the test split if the sha256 of its key, read as a
share, is below {TEST_PERCENT}%."""
BY_COMBINATION = f"""Captions: the column text has each image's names, which are alternatives.

Split: by combinations of words. In the test split are some skin tones of each emoji that has some,
and some genders of what women, men and persons do or are, if the sha256 of their name, read as a
share, is below {COMBINATION_PERCENT}%; and {", ".join(sorted(COLOURED))}. Other combinations of
each word are in the train split, and an emoji never has its mirror image in the other split."""


@dataclass(frozen=True, kw_only=True)
class EmojiConfig(Settings):
    """Turn the npm package emoji-datasource-google into a data set with train and test splits.

    Attributes:
        package: The folder of the unpacked package, which has emoji.json.
        output_dir: The new folder; it must be missing or empty.
        captions: Add a column text with the names, and split by combinations of words, for a model
            with prompts. By default the split is by emoji, for an autoencoder.
    """

    package: str
    output_dir: str
    captions: bool = False


@dataclass(frozen=True)
class EmojiImage:
    """One image of the package: an emoji, or one of its skin tones.

    Attributes:
        name: the file's name.
        category: the emoji's category, such as Food & Drink.
        group: the emoji's `group_key`.
        captions: its names, which are alternatives; the first one is the whole name.
    """

    name: str
    category: str
    group: str
    captions: tuple[str, ...] = ()


def group_key(unified: str) -> str:
    """Return the group of an emoji: equal for emoji that look nearly alike.

    Args:
        unified: its code points in hexadecimal, joined by hyphens.

    Returns:
        The code points without skin tones, hair and gender, in the same form. All families are one
        group, and so are all clock faces and all keycaps.

    Example:
        >>> group_key("1F469-1F3FD-200D-1F680")  # woman astronaut, medium skin tone
        '1f9d1-1f680'
    """
    text = "".join(chr(int(code, 16)) for code in unified.split("-"))
    # A gender sign or an arrow can also be an emoji itself.
    kept = "".join(character for character in text if character not in DROPPED) or text[0]
    key = kept.translate(STANDS_FOR)
    if KEYCAP in key:
        key = KEYCAP
    elif len(key) > 1 and set(key) <= FAMILY_MEMBERS:
        key = FAMILY
    return "-".join(f"{ord(character):x}" for character in SPELLED_OUT.get(key, key))


def join_groups(groups: Sequence[str], hashes: Sequence[str]) -> list[str]:
    """Join the groups that share an image.

    Args:
        groups: each image's group.
        hashes: each image's content hash.

    Returns:
        Each image's joined group, with the alphabetically first of their names.
    """
    joined = {group: {group} for group in groups}
    first_with: dict[str, str] = {}
    for group, content in zip(groups, hashes, strict=True):
        both = joined[group] | joined[first_with.setdefault(content, group)]
        joined.update(dict.fromkeys(both, both))
    return [min(joined[group]) for group in groups]


def is_held_out(group: str) -> bool:
    """Return whether a group is in the test split: its sha256, read as a share, is below 10%."""
    return _share(group) < TEST_PERCENT


def _share(text: str) -> float:
    """Return the SHA-256 of a text as a percentage, from 0 to 100."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:16], 16) / 2**64 * 100


def caption_emoji(emoji: dict[str, Any], tones: str | None = None) -> tuple[str, ...]:
    """Return the names of an emoji, or of one of its variants.

    Args:
        emoji: an entry of emoji.json.
        tones: the variant's key, one skin tone or two with a hyphen between.

    Example:
        >>> caption_emoji({"name": "FIREFIGHTER", "short_names": ["firefighter"]}, "1F3FF")
        ('firefighter, dark skin tone',)
    """
    names = [str(emoji["name"]).lower()]
    names += [re.sub("[-_]", " ", str(name)).strip() for name in emoji["short_names"]]
    skin = " and ".join(dict.fromkeys(SKIN_TONES[x] for x in tones.split("-"))) if tones else ""
    ending = f", {skin}" if skin else ""
    return tuple(dict.fromkeys(f"{name}{ending}" for name in names if name))


def is_held_out_combination(caption: str, others: Collection[str]) -> bool:
    """Return whether an emoji is in the test split for its combination of words.

    Args:
        caption: its whole name, see `caption_emoji`.
        others: the whole names of all emoji.
    """
    name, _, skin = caption.replace(" facing right", "").partition(", ")
    gender, _, does = name.partition(" ")
    gendered = gender in ("man", "woman") and {f"man {does}", f"woman {does}"} <= set(others)
    return (
        name in COLOURED
        or (bool(skin) and "skin tone" in skin and _share(f"{name}, {skin}") < COMBINATION_PERCENT)
        or (gendered and _share(name) < COMBINATION_PERCENT)
    )


def list_images(package: Path, captions: bool = False) -> Iterator[EmojiImage]:
    """Yield the images that emoji.json names: each emoji, followed by its skin tones.

    The category Component is left out: it holds only five bare skin swatches.

    Raises:
        UserError: if an entry of the file is not valid.
    """
    for number, emoji in enumerate(_read_json(package, "emoji.json", list)):
        where = f"{package / 'emoji.json'}: entry {number}"
        try:
            category, group = str(emoji["category"]), group_key(emoji["unified"])
            # A couple's skin tones have other code points than the couple, but are variants too.
            variants = {None: emoji} | emoji.get("skin_variations", {})
            named = {
                str(variant["image"]): caption_emoji(emoji, tones) if captions else ()
                for tones, variant in variants.items()
                if variant["has_img_google"]
            }
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            what = f"{type(error).__name__}: {error}"
            raise UserError(f"{where} is not an emoji ({what}): unpack {PACKAGE} again") from error
        for name, texts in named.items():
            if not IMAGE_NAME.fullmatch(name):
                raise UserError(f"{where} names the image {name!r}, not one like 1f600.png")
            if category != "Component":
                yield EmojiImage(name, category, group, texts)


def make_splits(package: Path, captions: bool = False) -> tuple[DatasetDict, dict[str, int]]:
    """Read the package's images, and split them by emoji, or by combinations of words.

    Args:
        package: holds emoji.json and img/google/64.
        captions: split by combinations of words, and add them.

    Returns:
        Splits `train` and `test` with `image` (the unchanged bytes of a file), `label` (the
        category) and with captions `text` (a list); and each split's number of groups.

    Raises:
        UserError: if a file is missing or damaged, or a split would be empty.
    """
    images = list(list_images(package, captions))
    contents, hashes = [], []
    for image in images:
        contents.append(_read_bytes(package, f"img/google/64/{image.name}"))
        try:
            array = to_channels(decode_image(contents[-1]), 4)
        # Decoders raise many exception types for damaged files; treat them all as unreadable.
        except Exception as error:
            raise UserError(f"{image.name} is damaged ({error}): unpack {PACKAGE} again") from error
        # Ignore colours under full transparency.
        hashes.append(content_hash(array * (array[:, :, 3:] > 0)))
    groups = join_groups([image.group for image in images], hashes)
    whole = {image.captions[0] for image in images if image.captions}
    tested = [
        is_held_out_combination(image.captions[0], whole) if captions else is_held_out(group)
        for image, group in zip(images, groups, strict=True)
    ]
    names = sorted({image.category for image in images})
    features = Features({"image": Image(), "label": ClassLabel(names=names)})
    features |= {"text": List(Value("string"))} if captions else {}
    splits, group_counts = DatasetDict(), {}
    for split in ("train", "test"):
        rows = [row for row, held_out in enumerate(tested) if held_out == (split == "test")]
        if not rows:
            raise UserError(f"{package} has too few emoji: the {split} split would be empty")
        encoded = [{"bytes": contents[row], "path": None} for row in rows]
        columns: dict[str, Any] = {"image": encoded}
        columns["label"] = [images[row].category for row in rows]
        if captions:
            columns["text"] = [list(images[row].captions) for row in rows]
        splits[split] = Dataset.from_dict(columns, features)
        group_counts[split] = len({groups[row] for row in rows})
    return splits, group_counts


def make_emoji(config: EmojiConfig) -> None:
    """Write train.parquet, test.parquet, README.md and the package's licence.

    Raises:
        UserError: if the package is not valid or the folder cannot be written.
    """
    package, output_dir = Path(config.package), Path(config.output_dir)
    if not (package / "emoji.json").is_file():
        what = "has no emoji.json" if package.is_dir() else "is not a folder"
        raise UserError(f"--package {package} {what}: give the unpacked npm package {PACKAGE}")
    if output_dir.is_dir() and any(output_dir.iterdir()):
        raise UserError(f"--output_dir {output_dir} has files in it: choose another")
    check_output_dir(output_dir)
    version = _read_json(package, "package.json", dict).get("version", "unknown")
    licence = _read_bytes(package, "LICENSE")
    splits, groups = make_splits(package, config.captions)
    names = splits["train"].features["label"].names
    labels = [splits["train"]["label"][:], splits["test"]["label"][:]]
    rows = [(name, *(own.count(i) for own in labels)) for i, name in enumerate(names)]
    rows += [("all images", *map(len, labels)), ("groups", *groups.values())]
    table = "\n".join(f"| {name} | {train} | {test} |" for name, train, test in rows)
    rule = BY_COMBINATION if config.captions else BY_EMOJI
    readme = README.format(package=PACKAGE, version=version, rule=rule, rows=table)
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    with replaced_whole(output_dir) as temporary, quiet_datasets():
        temporary.mkdir()
        for split, dataset in splits.items():
            dataset.to_parquet(temporary / f"{split}.parquet")
            print(f"{split}: {len(dataset)} images of {groups[split]} groups of emoji")
        (temporary / f"LICENSE-{PACKAGE}").write_bytes(licence)
        (temporary / "README.md").write_text(readme, encoding="utf-8")


def _read_json(package: Path, name: str, kind: type) -> Any:
    encoded = _read_bytes(package, name)
    try:
        content = json.loads(encoded)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{package / name} is not JSON ({error}): unpack it again") from error
    if not isinstance(content, kind):
        raise UserError(f"{package / name} holds no {kind.__name__}: unpack {PACKAGE} again")
    return content


def _read_bytes(package: Path, name: str) -> bytes:
    """Read a file of the package, and refuse links to files outside."""
    file = package / name
    if not Path(os.path.realpath(file)).is_relative_to(os.path.realpath(package)):
        raise UserError(f"{file} is a link that leads out of the package, and is not opened")
    try:
        return file.read_bytes()
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}): unpack it again") from error


if __name__ == "__main__":
    run_command(EmojiConfig, make_emoji)
