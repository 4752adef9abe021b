"""Record the calls on three paths through the package, and print them as JSON.

`complexity.py` runs this with a checkout on PYTHONPATH, and explains the figures.
"""

import contextlib
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any
from unittest.mock import patch

SETTINGS = {
    "resize_mode": "pad",
    "max_train_samples": 8,
    "max_train_steps": 3,
    "train_batch_size": 1,
    "max_validation_samples": 8,
    "checkpointing_steps": None,
}


class FirstForward(Exception):
    """Raised when the denoiser is entered, to end the pipeline's call."""


@dataclass
class Recorder:
    """The calls of one package between `start` and `stop`.

    Attributes:
        package: the folder whose files are recorded.
        calls: file and function of each call, in order.
    """

    package: Path
    calls: list[tuple[str, str]] = field(default_factory=list)
    _frames: set[FrameType] = field(default_factory=set)

    def start(self) -> None:
        """Start recording."""
        sys.setprofile(self._profile)

    def stop(self) -> None:
        """Stop recording."""
        sys.setprofile(None)

    def _profile(self, frame: FrameType, event: str, _: Any) -> None:
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.is_relative_to(self.package) and frame not in self._frames:
            self._frames.add(frame)
            self.calls.append((str(path.relative_to(self.package)), frame.f_code.co_name))

    def figures(self) -> dict[str, Any]:
        """Count the calls and changes of file, of all frames and of functions alone."""
        functions = [call for call in self.calls if not call[1].startswith("<")]
        return {
            "calls": len(self.calls),
            "changes_of_file": count_changes(self.calls),
            "functions": len(functions),
            "changes_of_file_of_functions": count_changes(functions),
            "way": [f"{file}: {name}" for file, name in self.calls],
        }


def count_changes(calls: list[tuple[str, str]]) -> int:
    """Count the calls in another file than the call before."""
    return sum(a[0] != b[0] for a, b in pairwise(calls))


def record_label_to_pixels(package: Path, folder: Path) -> tuple[dict[str, Any], int]:
    """Return the figures of the path to the denoiser, and the number of files beside a model."""
    from hf_latent.pipeline import LatentDiffusionPipeline

    def stop(*_: Any) -> None:
        recorder.stop()
        raise FirstForward

    released = next(package.rglob("fashion-mnist/model_index.json")).parent
    pipeline = LatentDiffusionPipeline.from_pretrained(released)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(folder)
    pipeline("Coat")  # the first call tries the sampler, which is no part of the path
    recorder = Recorder(package)
    pipeline.unet.register_forward_pre_hook(stop)
    with contextlib.suppress(FirstForward):
        recorder.start()
        pipeline("Coat")
    return recorder.figures(), len(list(folder.rglob("*.py")))


def record_step(package: Path, train: Callable, source: type, method: str) -> dict[str, Any]:
    """Return the figures of the path from image to loss, in a training's second step.

    Args:
        package: the folder of hf_latent.
        train: runs the training.
        source: the class that yields the batches.
        method: its method that returns an iterator over them.
    """
    from accelerate import Accelerator

    recorder, backwards = Recorder(package), []
    open_batches, backward = getattr(source, method), Accelerator.backward

    def ask(batches: Iterator) -> Any:
        if len(backwards) == 1:
            recorder.start()
        return next(batches, None)

    def recorded_batches(*arguments: Any) -> Iterator:
        return iter(partial(ask, open_batches(*arguments)), None)

    def stop(accelerator: Accelerator, loss: Any) -> None:
        recorder.stop()
        backwards.append(loss)
        backward(accelerator, loss)

    with (
        patch.object(source, method, recorded_batches),
        patch.object(Accelerator, "backward", stop),
    ):
        train()
    return recorder.figures()


def record_paths(package: Path) -> dict[str, Any]:
    """Return the figures of the three paths, and the number of files saved with a model."""
    from torch.utils.data import DataLoader

    autoencoder = import_module("hf_latent.training.autoencoder")
    denoiser = import_module("hf_latent.training.denoiser")
    cached = next(
        vars(module)["CachedLatents"]
        for name, module in list(sys.modules.items())
        if name.startswith(package.name) and "CachedLatents" in vars(module)
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        to_pixels, travelling = record_label_to_pixels(package, folder / "saved")
        first = autoencoder.AutoencoderConfig(output_dir=str(folder / "vae"), **SETTINGS)
        second = denoiser.DenoiserConfig(
            vae=str(folder / "vae" / "model"), output_dir=str(folder / "denoiser"), **SETTINGS
        )
        return {
            "travelling_files": travelling,
            "label_to_pixels": to_pixels,
            "image_to_loss_of_autoencoder": record_step(
                package, partial(autoencoder.train_autoencoder, first), DataLoader, "__iter__"
            ),
            "image_to_loss_of_denoiser": record_step(
                package, partial(denoiser.train_denoiser, second), cached, "batches"
            ),
        }


if __name__ == "__main__":
    with contextlib.redirect_stdout(sys.stderr):  # the trainings print
        ways = record_paths(Path(str(import_module("hf_latent").__file__)).parent)
    print(json.dumps(ways))
