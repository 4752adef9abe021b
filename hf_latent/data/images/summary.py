"""What the opened data is, in a few lines: counts, classes, channels, sizes, what was left out."""

import logging
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_latent.data.images.config import (
    ImagesConfig,
    parse_resolution,
    parse_shown_channels,
    parse_value_range,
)
from hf_latent.data.images.held_out import CheckedImages, read_captions
from hf_latent.data.images.sources import Source
from hf_latent.pipeline.decode import first_channels

logger = logging.getLogger(__name__)

NAMED_CLASSES, NAMED_CHANNELS = 10, 10
# Warn if the images use less than this share of the values from black to white.
LEAST_RANGE = 0.5
_LOGGED: set[tuple[str, ...]] = set()
CHANNEL_NAMES = {1: "grey", 3: "RGB", 4: "RGBA"}


@dataclass(frozen=True)
class Finding:
    """One fact about the data.

    Attributes:
        figures: for reports, flat.
        text: one line for the user; "" if there is nothing to say.
        is_warning: whether the user must notice it.
    """

    figures: dict[str, Any]
    text: str = ""
    is_warning: bool = False

    @property
    def line(self) -> str:
        """The text in one printable line: names of classes and files may hold anything."""
        return "".join(x if x.isprintable() else " " for x in self.text)


@dataclass(frozen=True)
class DataSummary:
    """What the opened data is."""

    findings: tuple[Finding, ...] = ()

    def lines(self) -> list[str]:
        """Return the lines for the user."""
        return [finding.line for finding in self.findings if finding.text]

    def figures(self) -> dict[str, Any]:
        """Return the figures for reports, flat."""
        return {key: x for finding in self.findings for key, x in finding.figures.items()}

    def log(self) -> None:
        """Say the lines, unless this process has said them already."""
        lines = tuple(self.lines())
        if lines in _LOGGED:
            return
        _LOGGED.add(lines)
        for finding in self.findings:
            if finding.text:
                logger.log(logging.WARNING if finding.is_warning else logging.INFO, finding.line)


def choose_channels(images: CheckedImages) -> int:
    """Return 1, 3 or 4: what most pictures need. Grey with alpha needs 4."""
    needed = images.facts["channels"]
    if 2 * np.isin(needed, (2, 4)).sum() >= len(needed):
        return 4
    return 3 if 2 * (needed > 1).sum() >= len(needed) else 1


def summarize_images(
    source: Source,
    config: ImagesConfig,
    train: CheckedImages,
    held_out: CheckedImages,
    labels: np.ndarray | None,
    bad_images: int,
    channels: int,
) -> DataSummary:
    """Describe the opened data.

    Args:
        source: from `open_source`.
        config: with which it was opened.
        train: all training images.
        held_out: all held-out images.
        labels: `(n,)` int64, classes of the training images that are used; None without classes.
        bad_images: number of images that cannot be used.
        channels: of the tensors.
    """
    facts = {name: np.append(train.facts[name], held_out.facts[name]) for name in train.facts}
    return DataSummary(
        (
            _count_images(source, config, len(train.rows), len(held_out.rows), bad_images),
            *_count_classes(source, labels),
            *_count_captions(source, train),
            *(_describe_measured if train.are_measured else _describe_channels)(
                facts, channels, config
            ),
            _describe_sizes(facts, config),
            _describe_frames(facts),
            _describe_profiles(facts),
            *([] if train.are_measured else _describe_values(facts, config)),
            *(Finding({}, note) for note in source.notes),
        )
    )


def _count_images(
    source: Source, config: ImagesConfig, train: int, held_out: int, bad: int
) -> Finding:
    used = min(train, config.max_train_samples or train)
    held_out_from = source.held_out_from or "chosen by content"
    text = f"{config.data}: {used:,} images to train on"
    text += f" of {train:,}" if used < train else ""
    text += f", {held_out:,} held out ({held_out_from})"
    text += f", {bad:,} left out because they cannot be used" if bad else ""
    return Finding({"bad_images": bad, "held_out_from": held_out_from}, text)


def _count_classes(source: Source, labels: np.ndarray | None) -> list[Finding]:
    if labels is None:
        why = source.no_classes_because
        return [Finding({"classes": 0}, f"no classes, because {why}" if why else "no classes")]
    names = source.train.features["label"].names
    counts = np.bincount(labels, minlength=len(names))
    order = np.argsort(counts, kind="stable")
    smallest, largest = (f"{counts[i]:,} ({names[i]})" for i in order[[0, -1]])
    text = f"{len(names):,} classes of {smallest} to {largest} training images"
    if len(names) <= NAMED_CLASSES:
        each = ", ".join(f"{name} {n:,}" for name, n in zip(names, counts, strict=True))
        text = f"{len(names)} classes: {each} training images"
    text += f", from {source.classes_from}" if source.classes_from else ""
    figures = {
        "classes": len(names),
        "smallest_class_images": int(counts.min()),
        "largest_class_images": int(counts.max()),
    }
    found = [Finding(figures, text)]
    empty = [names[i] for i in np.flatnonzero(counts == 0)]
    if empty:
        which = ", ".join(empty[:NAMED_CLASSES]) + (", ..." if empty[NAMED_CLASSES:] else "")
        which = f"{len(empty):,} of {len(names):,} classes have no training image ({which})"
        text = f"{which}: a denoiser does not learn them"
        found.append(Finding({"classes_without_images": len(empty)}, text, True))
    return found


def _count_captions(source: Source, train: CheckedImages) -> list[Finding]:
    captions = read_captions(train.dataset, train.rows)
    if captions is None:
        return []
    without = sum(not alternatives for alternatives in captions)
    every = [text for alternatives in captions for text in alternatives]
    text = f"{len(every):,} captions of {len(captions) - without:,} training images"
    text += f", {len(set(every)):,} different ones, from {source.captions_from}"
    text += f", such as {every[0]!r}" if every else ""
    text += f"; {_plural(without, 'image')} without, as if theirs were empty" if without else ""
    figures = {"captions": len(every), "images_without_captions": without}
    return [Finding(figures, text, 2 * without > len(captions))]


def _count(values: np.ndarray) -> str:
    """Return values with their numbers, as in `29 RGB, 1 grey`, the most frequent one first."""
    pairs = sorted(Counter(values.tolist()).items(), key=lambda pair: (-pair[1], pair[0]))
    return ", ".join(f"{number:,} {value}" for value, number in pairs)


def _describe_channels(
    facts: dict[str, np.ndarray], channels: int, config: ImagesConfig
) -> list[Finding]:
    kinds, needed, is_grey = _count(facts["kind"]), facts["channels"], facts["is_grey"]
    is_colour = (needed >= 3) & ~is_grey
    others = [x for x in CHANNEL_NAMES if x != channels]
    text = f"pixels: {kinds}; all become {CHANNEL_NAMES[channels]}"
    if len(np.unique(needed)) > 1 and config.channels is None:
        text += f", as most images are; --channels {others[0]} or {others[1]} changes that"
    elif (needed >= 3).all() and not is_colour.any() and channels > 1:
        text += "; all are grey (red, green and blue are equal): --channels 1 is enough"
    found = [Finding({"image_modes": kinds}, text)]
    if config.channels is None:
        lost = {
            "colour, which --channels 3 keeps": is_colour & (channels == 1),
            "transparency, which --channels 4 keeps": np.isin(needed, (2, 4)) & (channels < 4),
        }
        for what, images in lost.items():
            if images.any():
                found.append(Finding({}, f"{_plural(images.sum(), 'image')} without {what}", True))
    return found


def _describe_measured(
    facts: dict[str, np.ndarray], channels: int, config: ImagesConfig
) -> list[Finding]:
    kinds, pairs = _count(facts["kind"]), parse_value_range(config.value_range) or []
    shown = parse_shown_channels(config.shown_channels) or first_channels(channels)
    low, high = np.array(pairs).T
    outside = sum(
        (np.array(lows) < low).any() or (np.array(highs) > high).any()
        for lows, highs in zip(facts["lows"], facts["highs"], strict=True)
    )
    values = ", ".join(f"{x:g} to {y:g}" for x, y in pairs[:NAMED_CHANNELS])
    values += ", ..." if len(pairs) > NAMED_CHANNELS else ""
    text = f"values of {'each channel' if len(pairs) == 1 else 'the channels'}: {values}"
    text += f"; {_plural(outside, 'image')} with values outside" if outside else ""
    pictures = f"pictures show channel {', '.join(map(str, shown))} (--shown_channels)"
    return [
        Finding({"image_modes": kinds}, f"pixels: {kinds}; {pictures}"),
        Finding({"clipped_images": int(outside)}, text),
    ]


def _plural(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _describe_sizes(facts: dict[str, np.ndarray], config: ImagesConfig) -> Finding:
    heights, widths = facts["height"], facts["width"]
    order = np.argsort(heights.astype(np.int64) * widths, kind="stable")
    places = order[[0, len(order) // 2, -1]]
    sizes = [[int(heights[i]), int(widths[i])] for i in places]
    names = ("smallest_image", "median_image", "largest_image")
    figures: dict[str, Any] = dict(zip(names, sizes, strict=True))
    smallest, median, largest = (f"{height}x{width}" for height, width in sizes)
    text = f"height x width: {smallest} to {largest}, median {median}"
    if (heights == heights[0]).all() and (widths == widths[0]).all():
        text = f"height x width: all {smallest}"
    height, width = parse_resolution(config.resolution)
    if config.resize_mode == "crop":
        enlarged = int(((heights < height) | (widths < width)).sum())
        figures["enlarged_images"] = enlarged
        text += f"; {enlarged:,} enlarged to cover {height}x{width}" if enlarged else ""
    return Finding(figures, text)


def _describe_frames(facts: dict[str, np.ndarray]) -> Finding:
    dropped, files = int((facts["frames"] - 1).sum()), int((facts["frames"] > 1).sum())
    figures = {"dropped_frames": dropped}
    if not dropped:
        return Finding(figures)
    text = f"{_plural(files, 'file')} with several pages or frames: only the first is used, "
    text += f"{dropped:,} are left out"
    if (pages := np.unique(facts["frames"])).size == 1:
        text += (
            f"; if the pages are channels of one image, pass --channels {pages[0]} (needs tifffile)"
        )
    return Finding(figures, text, dropped > files)


def _describe_profiles(facts: dict[str, np.ndarray]) -> Finding:
    converted, ignored = (int((facts["profile"] == x).sum()) for x in ("converted", "ignored"))
    parts = [f"{_plural(converted, 'image')} converted to sRGB"] if converted else []
    if ignored:
        parts += [f"{_plural(ignored, 'profile')} ignored (damaged, or of other colours)"]
    figures = {"converted_profiles": converted, "ignored_profiles": ignored}
    return Finding(figures, f"colour profiles: {', '.join(parts)}" if parts else "")


def _describe_values(facts: dict[str, np.ndarray], config: ImagesConfig) -> list[Finding]:
    pairs, found = parse_value_range(config.value_range), []
    if pairs is not None:
        [(black, white)] = pairs
        outside = int(((facts["low"] < black) | (facts["high"] > white)).sum())
        text = f"pixel values: {black:g} becomes black, {white:g} white"
        text += f"; {_plural(outside, 'image')} with values outside" if outside else ""
        found.append(Finding({"clipped_images": outside}, text))
    for bits in np.unique(facts["bits"]).tolist():
        same = facts["bits"] == bits
        # The median, because one image with a hot pixel or a white frame says little.
        low, high = (float(np.median(facts[name][same])) for name in ("low", "high"))
        [(black, white)] = pairs or [(0, 2**bits - 1)]
        share = (min(high, white) - max(low, black)) / (white - black)
        if share < LEAST_RANGE:
            text = (
                f"half of the {bits}-bit images use {max(share, 0):.0%} of the range from black to "
                f"white or less (values {low:g} to {high:g} of {black:g} to {white:g}): pass "
                f"--value_range {_fitting_range(low, high)} if all are like that"
            )
            found.append(Finding({f"range_used_by_{bits}_bit_images": share}, text, True))
    return found


def _fitting_range(low: float, high: float) -> str:
    """Return a range for `--value_range` that holds two values: of whole bits, if it is near."""
    if 0 <= low <= high / 2 and high >= 1:
        return f"0,{2 ** int(high).bit_length() - 1}"
    return f"{low:g},{high:g}" if low >= 0 else f"={low:g},{high:g}"
