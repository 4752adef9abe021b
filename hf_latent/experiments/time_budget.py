"""Keep a command within its time limit."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import TypeVar

import torch

from hf_latent.data.device import fastest_device
from hf_latent.errors import UserError
from hf_latent.evaluation.images.sampling import sample_images
from hf_latent.evaluation.measures.reconstruction import reconstruct
from hf_latent.pipeline import LatentDiffusionPipeline

T = TypeVar("T")
TIMED_RUNS = 3
TIMED_IMAGES, TIMED_STEPS = 100, 2  # generated, to estimate the time of all
SAFETY = 1.2  # a machine may slow down after the timing


class TimeBudget:
    """The time that a command has used, reserved for later work, and left for training.

    Args:
        max_minutes: for the whole command.
        started: time of `now` at which the command started; by default the present.
        now: the clock, in seconds; trainings within the budget use it too.

    Attributes:
        stage_seconds: duration of each finished stage, as `NAME_seconds`.
        reserved: seconds for later work, by the name of its stage.
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
        self.reserved: dict[str, float] = {}

    @property
    def reserved_seconds(self) -> float:
        """Seconds that are reserved for later work."""
        return sum(self.reserved.values())

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
        """Time the body, as `NAME_seconds` of `stage_seconds`; its reserved time is used up.

        If it takes longer than reserved, the machine has slowed: what is reserved for later work
        grows by the same factor.
        """
        expected = self.reserved.pop(name, None)
        start = self.now()
        yield
        seconds = self.stage_seconds[f"{name}_seconds"] = self.now() - start
        if expected is not None and seconds > expected:
            self.reserved = {name: x * seconds / expected for name, x in self.reserved.items()}

    def fitting(self, parts: Iterable[T]) -> Iterator[T]:
        """Yield parts of a stage's work as long as another one fits; at least the first.

        A part is expected to take as long as the slowest one before it.
        """
        slowest = 0.0
        for part in parts:
            if slowest and slowest > 60 * self.minutes_left:
                return
            start = self.now()
            yield part
            slowest = max(slowest, self.now() - start)

    def reserve(
        self, stage: str, work: Callable[[], object], times: float, runs: int = TIMED_RUNS
    ) -> None:
        """Run a part of some later work, and reserve the time for all parts.

        Args:
            stage: in which the work is done.
            work: the part; its first run is warm-up.
            times: number of parts.
            runs: number of timed runs, whose median counts.
        """
        work()
        seconds = []
        for _ in range(runs):
            start = self.now()
            work()
            seconds.append(self.now() - start)
        reserved = self.reserved.get(stage, 0.0)
        self.reserved[stage] = reserved + SAFETY * times * median(seconds)

    def reserve_model(
        self,
        pipeline: LatentDiffusionPipeline,
        images: torch.Tensor,
        encoded: int,
        decoded: int,
        image_steps: int,
        guidance_scale: float = 1.0,
        stages: tuple[str, str, str] = ("measuring", "measuring", "measuring"),
    ) -> None:
        """Reserve the time that a trained model will need.

        Args:
            pipeline: an untrained model of the same shape.
            images: to time it with, `(B, C, H, W)` float in [-1, 1].
            encoded: number of images to encode.
            decoded: number of images to encode and decode.
            image_steps: number of images to generate, times their sampling steps.
            guidance_scale: of the generated images.
            stages: that encode, reconstruct and generate.
        """
        pipeline.to(fastest_device())
        pipeline.set_progress_bar_config(disable=True)
        labels, scale = (None, None) if pipeline.num_classes is None else ([0], guidance_scale)
        count = min(len(images), TIMED_IMAGES)
        timed = count, 0, count, scale, TIMED_STEPS
        encoding, reconstruction, generation = stages
        self.reserve(encoding, lambda: pipeline.encode_images(images), encoded / len(images))
        self.reserve(
            reconstruction, lambda: reconstruct(pipeline.vae, images), decoded / len(images)
        )
        self.reserve(
            generation,
            lambda: sample_images(pipeline, labels, *timed),
            image_steps / (count * TIMED_STEPS),
        )

    def check(self, minimum_minutes: float, advice: str) -> float:
        """Check that enough time is left, and return how many minutes this machine needs at least.

        Args:
            minimum_minutes: that must be left.
            advice: another way to save time, for the message.

        Raises:
            UserError: if less is left; the message says how many minutes this machine needs.
        """
        needed = self.max_minutes - self.minutes_left + minimum_minutes
        if self.minutes_left < minimum_minutes:
            raise UserError(
                f"--max_minutes {self.max_minutes:g} leaves no time to train: this machine needs "
                f"at least {needed:.2f} for the whole command ({advice})"
            )
        return needed
