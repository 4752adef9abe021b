"""Skip steps whose loss or gradients are not finite."""

import logging
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import save

from hf_latent.errors import SharedError
from hf_latent.output import replaced_whole
from hf_latent.training.run.late import LateValues

logger = logging.getLogger(__name__)

MAX_BAD_STEPS = 5
# The scale of fp16 gradients starts at 2^16 and is halved at each overflow. After 40 overflows it
# is 2^-24, the smallest number of fp16, so no scale is left to try.
MAX_OVERFLOWS = 40


class NonFiniteGuard:
    """Skips steps whose loss or gradients are not finite, and ends the training after too many.

    The device itself skips the step. The host reads one step later that it did, then counts it and
    saves its batch. So no step waits for the device.

    A skipped step counts in the clock and in the learning rate, and the averages include the
    unchanged weights again. The optimizers do not count it. With fp16, steps whose gradients
    overflow are skipped until the gradient scaler has found a scale, and their batches are not
    saved.

    Args:
        output_dir: the run's folder; the batches of skipped steps are saved in its `bad_batches`.
    """

    def __init__(self, output_dir: Path, accelerator: Accelerator):
        """Start with no bad step."""
        self.folder, self.accelerator = output_dir / "bad_batches", accelerator
        self.bad_steps_in_a_row, self.overflows_in_a_row = 0, 0
        self._late = LateValues(accelerator.device)
        self._step, self._batch = 0, dict[str, torch.Tensor]()

    def check(
        self,
        step: int,
        loss: torch.Tensor,
        gradient_norms: list[torch.Tensor],
        batch: dict[str, torch.Tensor],
    ) -> torch.Tensor:
        """Return whether to skip a step, and see to the step before.

        Args:
            step: the training's step, from 0.
            loss: a scalar, the sum of this process's losses in this step.
            gradient_norms: scalars, of gradients averaged over the processes.
            batch: this process's inputs, kept until the next call and saved if the step is bad.

        Returns:
            A scalar on the device, the same in every process: 1 to skip the step, otherwise 0.

        Raises:
            SharedError: as `catch_up`, about the step before.
        """
        finite = torch.isfinite(torch.stack([loss, torch.stack(gradient_norms).sum()]))
        bad = self.accelerator.reduce((~finite).float(), "sum").clamp(max=1)
        self._see_to(self._late.exchange(bad))
        self._step, self._batch = step, batch
        return bad.amax()

    def catch_up(self) -> None:
        """See to the last step now; every process must call it before anything is saved.

        Raises:
            SharedError: after 5 bad steps in a row, or 40 whose fp16 gradients overflowed.
        """
        self._see_to(self._late.take())

    def _see_to(self, bad: torch.Tensor | None) -> None:
        """Count a step, given whether its loss and its gradients are bad, and save a bad batch."""
        if bad is None:
            return
        loss_is_bad, gradients_are_bad = map(bool, bad)
        if self.accelerator.scaler is not None:
            self._count_overflows(gradients_are_bad)
        elif gradients_are_bad:
            loss_is_bad = True
        if not loss_is_bad:
            self.bad_steps_in_a_row = 0
            return
        self.bad_steps_in_a_row += 1
        number = self._step + 1
        name = f"step-{number:06d}-rank-{self.accelerator.process_index}.safetensors"
        path = self.folder / name
        self.folder.mkdir(exist_ok=True)
        with replaced_whole(path) as temporary:
            tensors = {key: x.detach().cpu().contiguous() for key, x in self._batch.items()}
            temporary.write_bytes(save(tensors))
        logger.warning(
            f"step {number}: the loss is not finite; the step is skipped, its batch is in {path}"
        )
        if self.bad_steps_in_a_row == MAX_BAD_STEPS:
            raise SharedError(
                f"the loss was not finite in {MAX_BAD_STEPS} steps in a row up to step {number}: "
                f"look at the images in {self.folder}, lower --learning_rate, or resume from a "
                "checkpoint before it"
            )

    def _count_overflows(self, overflowed: bool) -> None:
        """Count the steps in a row whose gradients overflowed, and raise after too many."""
        self.overflows_in_a_row = self.overflows_in_a_row + 1 if overflowed else 0
        if self.overflows_in_a_row == MAX_OVERFLOWS:
            raise SharedError(
                f"the gradients were not finite in {MAX_OVERFLOWS} steps in a row up to step "
                f"{self._step + 1}, at every scale for fp16: pass --mixed_precision bf16 or no, "
                "lower --learning_rate, or resume from a checkpoint before it"
            )
