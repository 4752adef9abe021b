"""The steps of a training: learning rate, time limit, progress bar and log."""

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from hf_latent.errors import UserError
from hf_latent.messages import progress_bar
from hf_latent.output import read_json
from hf_latent.training.run.accelerator import TrainingConfig
from hf_latent.training.run.late import LateValues
from hf_latent.training.run.learning_rate import constant_with_decay, cosine_with_warmup
from hf_latent.training.run.log import write_line

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingSummary:
    """What a training did.

    Attributes:
        model_dir: the folder of the saved model.
        steps: number of optimizer steps.
        images_seen: images over all steps and processes; an image counts each time it is used.
        seconds: wall-clock time of the training loop, including validation.
        images_per_second: over all processes, without validation; NaN if the run had no step left.
        train_loss: mean over the last logged steps.
        validation_losses: held-out loss of the averaged weights, by step.
    """

    model_dir: Path
    steps: int
    images_seen: int
    seconds: float
    images_per_second: float
    train_loss: float
    validation_losses: dict[int, float]


def _clock_state(checkpoint: Path) -> dict[str, Any]:
    return read_json(checkpoint / "state.json")["others"]["clock"]


class TrainingClock:
    """Counts the steps of a training, shows them in a progress bar and logs them.

    Args:
        accelerator: its first process shows and logs, and its time decides about the time limit.
        name: the progress bar's name.
        now: returns the time in seconds.

    Attributes:
        reserved_seconds: part of the time limit that is left for the work after the last step. A
            checkpoint keeps it. None: not known yet.
        decay_start: the step after which the rate of `constant_with_decay` falls; None before. From
            its checkpoint a training can be lengthened at the full rate.
    """

    LOGGING_STEPS = 20
    MINUTES_BAR = (
        "{desc}: {percentage:3.0f}%|{bar}| {n:.1f}/{total:.3g} minutes "
        "[{elapsed}<{remaining}{postfix}]"
    )

    def __init__(
        self,
        config: TrainingConfig,
        accelerator: Accelerator,
        name: str,
        now: Callable[[], float] = time.perf_counter,
    ):
        """Start the clock; see the class."""
        self.config, self.accelerator, self._now = config, accelerator, now
        # Within a step, self.step and self.images_seen already include it.
        self.step, self.images_seen, self.train_loss = 0, 0, math.nan
        self.validation_losses: dict[int, float] = {}
        self.reserved_seconds: float | None = None
        self._learning_rate = math.nan
        self.decay_start: int | None = None
        self._losses: list[torch.Tensor] = []
        self._gradient_norms: list[torch.Tensor] = []
        self._start, self._validation_seconds = self._now(), 0.0
        self._seconds_before, self._steps_before = 0.0, 0
        self._end: float | None = None
        self._progress_at, self._late = (-1, 0.0), LateValues(accelerator.device)
        settings: dict[str, Any] = {"total": config.max_train_steps}
        if config.max_train_minutes:
            settings = {"total": config.max_train_minutes, "bar_format": self.MINUTES_BAR}
        self._bar = progress_bar(desc=name, disable=not accelerator.is_main_process, **settings)

    @property
    def seconds(self) -> float:
        """Seconds from the start to now or to the end of the last step, including validation."""
        return (self._end or self._now()) - self._start

    @property
    def images_per_second(self) -> float:
        """Training images per second over all processes, without validation; NaN before a step."""
        steps = self.step - self._steps_before
        seconds = self.seconds - self._seconds_before - self._validation_seconds
        return steps * self._images_per_step / max(seconds, 1e-9) if steps else math.nan

    @property
    def _images_per_step(self) -> int:
        images = self.config.train_batch_size * self.config.gradient_accumulation_steps
        return images * self.accelerator.num_processes

    @property
    def validation_is_due(self) -> bool:
        """Whether to validate after the current step; False after the last, which always is."""
        return self.step % self.config.validation_steps == 0 and self._progress() < 1

    @property
    def checkpoint_is_due(self) -> bool:
        """Whether to save a checkpoint after the current step; True after the last one.

        `constant_with_decay` has one more, before the rate falls.
        """
        every = self.config.checkpointing_steps
        progress = self._progress()
        begins_decay = self.decay_start is None and progress >= self._constant_until
        return every is not None and (progress >= 1 or begins_decay or self.step % every == 0)

    @property
    def _constant_until(self) -> float:
        """The share of the training after which the rate of `constant_with_decay` falls."""
        constant = self.config.lr_scheduler == "constant_with_decay"
        return 1 - self.config.lr_decay_ratio if constant else math.inf

    def _progress(self) -> float:
        """Return the share that is done, the same in every process.

        The time is read once per step. If it were read again, the limit could pass between
        `checkpoint_is_due` and the end of the training, which would then lack its last checkpoint.
        """
        if self.config.max_train_minutes is None:
            return self.step / self.config.max_train_steps
        if self._progress_at[0] != self.step:
            progress = self._share_of(self.step, self.seconds, self.reserved_seconds)
            if self.accelerator.num_processes > 1:  # the first one's time, of the step before
                own = progress if self.accelerator.is_main_process else 0.0
                shared = torch.full((1,), own, device=self.accelerator.device)
                shared = self.accelerator.reduce(shared, "sum")
                late = self._late.exchange(shared)
                # The first call has no step before: it waits for its own value.
                progress = (shared if late is None else late).item()
            self._progress_at = (self.step, progress)
        return self._progress_at[1]

    def _share_of(self, step: int, seconds: float, reserved_seconds: float | None) -> float:
        """Return the share that is done after so many steps and seconds."""
        if self.config.max_train_minutes is None:
            return step / self.config.max_train_steps
        return seconds / (60 * self.config.max_train_minutes - (reserved_seconds or 0.0))

    def _rate_at(self, progress: float) -> float:
        warmup, decay = self.config.lr_warmup_ratio, self.config.lr_decay_ratio
        if self.config.lr_scheduler == "cosine":
            return self.config.learning_rate * cosine_with_warmup(progress, warmup)
        return self.config.learning_rate * constant_with_decay(progress, warmup, decay)

    def reserve(self, seconds: float) -> None:
        """Leave a part of the time limit for the work after the last step.

        Raises:
            UserError: if nothing is left to train.
        """
        limit = self.config.max_train_minutes
        if limit is not None:
            if limit <= seconds / 60:
                raise UserError(
                    f"--max_train_minutes {limit:g} leaves no time to train: the work after it "
                    f"needs about {seconds / 60:.2f} (fewer --fold_samples save time)"
                )
            self.reserved_seconds, self._bar.total = seconds, limit - seconds / 60

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {
            "step": self.step,
            "images_seen": self.images_seen,
            "seconds": self.seconds,
            "reserved_seconds": self.reserved_seconds,
            "learning_rate": None if math.isnan(self._learning_rate) else self._learning_rate,
            "decay_start": self.decay_start,
            "train_loss": None if math.isnan(self.train_loss) else self.train_loss,
            "validation_losses": list(self.validation_losses.items()),
        }

    def before_decay(self, checkpoint: Path | None) -> Path | None:
        """Return the checkpoint to resume from, if the latest one is asked for.

        Args:
            checkpoint: the latest one, or None.

        Returns:
            It; or, if its learning rate had fallen already and the training is longer now, the one
            from before the fall.
        """
        if checkpoint is None or self.config.resume_from_checkpoint != "latest":
            return checkpoint
        # A damaged state is refused with its reason when it is loaded.
        with suppress(KeyError, TypeError, ValueError, ZeroDivisionError):
            decay_start = _clock_state(checkpoint)["decay_start"]
            before = checkpoint.with_name(f"checkpoint-{decay_start}")
            state = _clock_state(before)
            done = self._share_of(state["step"], state["seconds"], state["reserved_seconds"])
            if done < self._constant_until <= 1:
                logger.info(
                    f"the training is longer now: it resumes from {before}, where the learning "
                    "rate had not fallen yet"
                )
                return before
        return checkpoint

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint's `state`."""
        self.step, self._steps_before = int(state["step"]), int(state["step"])
        # Older checkpoints have no images_seen; assume that the number of processes is the same.
        self.images_seen = state.get("images_seen", self.step * self._images_per_step)
        self._seconds_before = state["seconds"]
        if state.get("reserved_seconds") is not None:  # older checkpoints have none
            self.reserve(state["reserved_seconds"])
        self.train_loss = math.nan if state["train_loss"] is None else state["train_loss"]
        self.validation_losses = dict(state["validation_losses"])
        self._start = self._now() - self._seconds_before
        share = self._share_of(self.step, self._seconds_before, self.reserved_seconds)
        if share >= self._constant_until:
            self.decay_start = state.get("decay_start")
        before, rate = state.get("learning_rate"), self._rate_at(min(share, 1.0))
        # Older checkpoints have no rate.
        if before is not None and share >= self.config.lr_warmup_ratio and rate > 1.05 * before:
            logger.warning(
                f"the learning rate rises again, from {before:.3g} to {rate:.3g}, because it "
                "follows the new length: the loss rises with it for a while"
            )
        minutes = self.config.max_train_minutes and self._seconds_before / 60
        self._bar.initial = self._bar.n = minutes or self.step

    def steps(self, *optimizers: torch.optim.Optimizer) -> Iterator[int]:
        """Yield the index of every step, from 0, after setting the optimizers' learning rate."""
        self._start = self._now() - self._seconds_before
        while (progress := self._progress()) < 1:
            if self.decay_start is None and progress >= self._constant_until:
                self.decay_start = self.step
            self._learning_rate = self._rate_at(progress)
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = self._learning_rate
            self.step += 1
            self.images_seen += self._images_per_step
            yield self.step - 1
            minutes = self.config.max_train_minutes and self._progress() * self._bar.total
            self._bar.update(minutes - self._bar.n if minutes else 1)
        self.log_pending_losses()  # waits for the device
        self._end = self._now()
        self._bar.close()

    def log_loss(self, loss: torch.Tensor) -> None:
        """Collect a micro-step's loss.

        Args:
            loss: a scalar, of this process's rows. The log gets the mean over all processes.
        """
        self._losses.append(loss.detach())

    def log_gradient_norm(self, norm: torch.Tensor) -> None:
        """Collect a step's gradient norm, and log the means of the last steps if they are due.

        Args:
            norm: a scalar, the same in every process.
        """
        self._gradient_norms.append(norm.detach())
        if self.step % self.LOGGING_STEPS == 0:
            self.log_pending_losses()

    def log_pending_losses(self) -> None:
        """Log the means since the last log line; all processes must call it.

        Called before every checkpoint, which keeps no losses. So a resumed training logs the same
        lines as an uninterrupted one.
        """
        if not self._losses:
            return
        sums = []
        for collected in (self._losses, self._gradient_norms):
            each = torch.stack(collected)
            finite = each.isfinite()  # those of skipped steps are not
            sums += [each.where(finite, 0).sum(), finite.sum().to(each)]
            collected.clear()
        # All are read at once, since reading waits for the device.
        total, count, norms, steps = self.accelerator.reduce(torch.stack(sums), "sum").tolist()
        if count:
            self.train_loss = total / count
            norm = norms / steps if steps else math.nan
            values = {"learning_rate": self._learning_rate, "gradient_norm": norm}
            values["images_per_second"] = self.images_per_second
            values = {name: x for name, x in values.items() if math.isfinite(x)}
            self._write({"train_loss": self.train_loss, **values})

    def check_validation_loss(self, loss: float) -> None:
        """Check the held-out loss after the current step, before anything is saved.

        Raises:
            UserError: if it is not finite.
        """
        if not math.isfinite(loss):
            raise UserError(
                f"the held-out loss is {loss} after step {self.step}: the training diverged, and "
                "its model is not saved; lower --learning_rate, or resume from a checkpoint before"
            )

    def log_validation_loss(self, loss: float, **figures: float) -> None:
        """Log the held-out loss after the current step.

        Args:
            loss: of the averaged weights.
            figures: other figures for the same line, with units in their names.
        """
        self.validation_losses[self.step] = loss
        self._write({"validation_loss": loss, **figures})

    def _write(self, values: dict[str, float]) -> None:
        if not self.accelerator.is_main_process:
            return
        shown, rate = {}, self.images_per_second
        if self.config.max_train_minutes:
            shown["steps"] = f"{self.step}"
        if not math.isnan(rate):
            shown["images/s"] = f"{rate:.0f}"
        if not math.isnan(self.train_loss):
            shown["loss"] = f"{self.train_loss:.4f}"
        if self.validation_losses:
            shown["held-out"] = f"{list(self.validation_losses.values())[-1]:.4f}"
        self._bar.set_postfix(shown, refresh=False)
        write_line(Path(self.config.output_dir), self.accelerator, values, self.step)

    @contextmanager
    def validation(self) -> Iterator[None]:
        """Exclude the time inside from `images_per_second`."""
        start = self._now()
        yield
        if self._end is None:
            self._validation_seconds += self._now() - start

    def summary(self, model_dir: Path) -> TrainingSummary:
        """Return what the training did; its model is saved in `model_dir`."""
        return TrainingSummary(
            model_dir,
            self.step,
            self.images_seen,
            self.seconds,
            self.images_per_second,
            self.train_loss,
            self.validation_losses,
        )
