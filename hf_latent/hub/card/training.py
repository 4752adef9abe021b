"""What a card says of a training: data, steps, time, machine, versions."""

import re
from typing import Any

from hf_latent.data.fashion_mnist import HUB_ID as FASHION_MNIST
from hf_latent.hub.card.text import counted, duration_text, number, plain

VERSIONS = {"python": "Python", "torch": "torch", "diffusers": "diffusers"}
_HUB_IDS = {"fashion_mnist": FASHION_MNIST, "fashion_mnist_full": FASHION_MNIST}
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
_FINGERPRINT = re.compile(r"[0-9a-f]{16}")


def hub_id(data: Any) -> str | None:
    """Return a data set's id on the Hub.

    Args:
        data: as a report names it; a local folder has no slash there.

    Returns:
        None where it has no id.
    """
    name = _HUB_IDS.get(str(data), str(data))
    return name if _HUB_ID.fullmatch(name) else None


def data_text(training: dict[str, Any]) -> str | None:
    """Say what a model was trained on.

    Args:
        training: figures of a training.

    Returns:
        A sentence or two in Markdown; None where nothing is known.
    """
    if number(training.get("train_images"), "d") is None:
        return None
    text = counted(training["train_images"], "training image")
    if data := plain(training.get("data_name", training.get("data"))):
        text += f" of {data}"
    shape = training.get("image_shape")
    if isinstance(shape, list) and len(shape) == 3:
        fitted = {"pad": "padded to", "crop": "cropped to"}
        to = fitted.get(str(training.get("resize_mode")), "of")
        text += f", {to} {shape[1]}x{shape[2]} pixels, {counted(shape[0], 'channel')}"
    if training.get("horizontal_flip") is True:
        text += ", half of them mirrored at random"
    held_out = _whole(training, "held_out_split_images", 0)
    fingerprint = str(training.get("validation_fingerprint"))
    if held_out:
        was = "was" if held_out == 1 else "were"
        text += f". {counted(held_out, 'other image')} {was} held out and never trained on"
        if _FINGERPRINT.fullmatch(fingerprint):
            text += f" (fingerprint `{fingerprint}`)"
    return f"{text}."


def training_text(training: dict[str, Any]) -> str | None:
    """Say how long a training was, and on what machine.

    Args:
        training: figures of a training.

    Returns:
        A sentence in Markdown; None where nothing is known.
    """
    steps, batch = _whole(training, "steps", 0), _whole(training, "train_batch_size", 0)
    if not steps or not batch or number(training.get("seconds"), "g") is None:
        return None
    batch *= _whole(training, "gradient_accumulation_steps", 1)
    batch *= _whole(training, "processes", 1)
    seen = _whole(training, "images_seen", steps * batch)
    text = counted(steps, "step")
    if seen == steps * batch:  # else it was resumed with other batches or processes
        text += f" of {counted(batch, 'image')}"
    text += f" ({counted(seen, 'image')} seen) in {duration_text(training['seconds'])}"
    if rate := number(training.get("images_per_second"), ",.0f"):
        text += f", {rate} images a second"
    machine = machine_text(training)
    return f"{text}, on {machine}." if machine else f"{text}."


def machine_text(report: dict[str, Any]) -> str | None:
    """Say what a figure was measured on, or a model trained; None where it is not known."""
    processes = _whole(report, "processes", 1)
    many = f"{processes} processes" if processes > 1 else ""
    if report.get("device", "cpu") != "cpu":
        device = str(plain(report["device"]))
        return f"{many}, each on {device}" if many else device
    if number(report.get("cpu_cores"), "d") is None:
        return None
    text = f"a machine of {counted(report['cpu_cores'], 'CPU core')}"
    if number(report.get("torch_threads"), "d"):
        text = f"{counted(report['torch_threads'], 'thread')} of {text}"
    return f"{many}, each with {text}" if many else text


def versions_text(report: dict[str, Any]) -> str | None:
    """Name the versions that a report was made with; None where it names none."""
    named = [
        f"{label} {plain(report[f'{key}_version'])}"
        for key, label in VERSIONS.items()
        if f"{key}_version" in report
    ]
    return ", ".join(named) or None


def _whole(report: dict[str, Any], key: str, default: int) -> int:
    value = report.get(key)
    return value if isinstance(value, int) and value > 0 else default
