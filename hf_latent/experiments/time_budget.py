"""Keep a command within its time limit."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from hf_latent.errors import UserError
from hf_latent.evaluation.images.sampling import sample_images
from hf_latent.evaluation.measures.reconstruction import reconstruct
from hf_latent.pipeline import LatentDiffusionPipeline

TIMED_IMAGES, TIMED_STEPS = 100, 2  # generated, to estimate the time of all
SAFETY = 1.2  # a machine may slow down after the timing


class TimeBudget:
    """The time that a command has used, reserved for later work, and left for training.

    Args:
        max_minutes: for the whole command.
        started: time of `now` at which the command started; by default the present.
        now: the clock, in seconds; trainings within the budget use it too.
    """

    def __init__(
        self,
        max_minutes: float,
        started: float | None = None,
        now: Callable[[], float] = time.perf_counter,
    ):
        """Start with nothing reserved."""
        self.max_minutes, self.now = max_minutes, now
        self.started = now() if started is None else started
        self.stage_seconds: dict[str, float] = {}
        self.reserved_seconds = 0.0

    @property
    def total_seconds(self) -> float:
        """Seconds since the command started."""
        return self.now() - self.started

    @property
    def minutes_left(self) -> float:
        """Minutes that are neither used nor reserved."""
        return self.max_minutes - (self.total_seconds + self.reserved_seconds) / 60

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time the body, as `NAME_seconds` of `stage_seconds`."""
        start = self.now()
        yield
        self.stage_seconds[f"{name}_seconds"] = self.now() - start

    def reserve(self, work: Callable[[], object], times: float) -> None:
        """Run a part of some later work twice, and reserve the time for all parts.

        Args:
            work: the part; its first run is warm-up.
            times: number of parts.
        """
        work()
        start = self.now()
        work()
        self.reserved_seconds += SAFETY * times * (self.now() - start)

    def reserve_model(
        self,
        pipeline: LatentDiffusionPipeline,
        images: torch.Tensor,
        encoded: int,
        decoded: int,
        image_steps: int,
        guidance_scale: float = 1.0,
    ) -> None:
        """Reserve the time that a trained model will need.

        Args:
            pipeline: an untrained model of the same shape.
            images: to time it with, `(B, C, H, W)` float in [-1, 1].
            encoded: number of images to encode.
            decoded: number of images to encode and decode.
            image_steps: number of images to generate, times their sampling steps.
            guidance_scale: of the generated images.
        """
        if torch.accelerator.is_available():
            pipeline.to(torch.accelerator.current_accelerator())
        pipeline.set_progress_bar_config(disable=True)
        labels, scale = (None, None) if pipeline.num_classes is None else ([0], guidance_scale)
        count = min(len(images), TIMED_IMAGES)
        timed = count, 0, count, scale, TIMED_STEPS
        self.reserve(lambda: pipeline.encode_images(images), encoded / len(images))
        self.reserve(lambda: reconstruct(pipeline.vae, images), decoded / len(images))
        self.reserve(
            lambda: sample_images(pipeline, labels, *timed), image_steps / (count * TIMED_STEPS)
        )

    def check(self, minimum_minutes: float, advice: str) -> None:
        """Check that enough time is left.

        Args:
            minimum_minutes: that must be left.
            advice: another way to save time, for the message.

        Raises:
            UserError: if less is left; the message says how many minutes this machine needs.
        """
        if self.minutes_left < minimum_minutes:
            needed = self.max_minutes - self.minutes_left + minimum_minutes
            raise UserError(
                f"--max_minutes {self.max_minutes:g} leaves no time to train: this machine needs "
                f"at least {needed:.2f} for the whole command ({advice})"
            )
