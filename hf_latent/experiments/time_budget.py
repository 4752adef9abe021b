"""Keeping a command within the minutes that it was given."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from hf_latent.errors import UserError
from hf_latent.evaluation.images.sampling import sample_images
from hf_latent.evaluation.measures.reconstruction import reconstruct
from hf_latent.pipeline import LatentDiffusionPipeline

# Of the images to generate, so many are timed, at so many steps.
TIMED_IMAGES, TIMED_STEPS = 100, 2
SAFETY = 1.2  # machines slow down: what was timed once is taken to last this much longer


class TimeBudget:
    """How long a command has run, what is still to do, and what is left for training.

    Args:
        max_minutes: for the whole command.
        started: what `now` was when the command was called; None: it is called now.
        now: the clock, in seconds; trainings within the budget go by it too.
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
        """Seconds since the command was called."""
        return self.now() - self.started

    @property
    def minutes_left(self) -> float:
        """Minutes that are neither over nor reserved."""
        return self.max_minutes - (self.total_seconds + self.reserved_seconds) / 60

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time what happens inside, as `NAME_seconds` of `stage_seconds`."""
        start = self.now()
        yield
        self.stage_seconds[f"{name}_seconds"] = self.now() - start

    def reserve(self, work: Callable[[], object], times: float) -> None:
        """Run a small part of some later work, twice, and reserve the time for all of it.

        Args:
            work: the part; the first run is warm-up.
            times: how many such parts there will be.
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
        """Reserve the time that a model takes, timed on an untrained one of the same shape.

        Args:
            pipeline: the untrained model.
            images: some to time it with, `(B, C, H, W)` float in [-1, 1].
            encoded: how many images will be encoded.
            decoded: how many will be encoded and decoded.
            image_steps: how many will be generated, times their steps.
            guidance_scale: of the generated ones.
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
        """Refuse to start where the rest is too short.

        Args:
            minimum_minutes: that must be left.
            advice: how else to make room.

        Raises:
            UserError: naming the minutes that would do on this machine.
        """
        if self.minutes_left < minimum_minutes:
            needed = self.max_minutes - self.minutes_left + minimum_minutes
            raise UserError(
                f"--max_minutes {self.max_minutes:g} leaves no time to train: this machine needs "
                f"at least {needed:.2f} for the whole command ({advice})"
            )
