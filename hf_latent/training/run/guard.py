"""Skip steps whose loss or gradients are not finite."""

import logging
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import save

from hf_latent.errors import UserError
from hf_latent.output import replaced_whole

logger = logging.getLogger(__name__)

MAX_BAD_STEPS = 5
# The scale of fp16 gradients starts at 2^16 and is halved at each overflow. After 40 overflows it
# is 2^-24, the smallest number of fp16, so no scale is left to try.
MAX_OVERFLOWS = 40


class NonFiniteGuard:
    """Skips steps whose loss or gradients are not finite, and ends the training after too many.

    With fp16, the gradient scaler itself skips steps whose gradients overflow. Such a step counts
    in the clock and in the learning rate, and the averages include the unchanged weights again. The
    optimizer does not count it.

    Args:
        output_dir: the run's folder; the batches of skipped steps are saved in its `bad_batches`.
    """

    def __init__(self, output_dir: Path, accelerator: Accelerator):
        """Start with no bad step."""
        self.folder, self.accelerator = output_dir / "bad_batches", accelerator
        self.bad_steps_in_a_row, self.overflows_in_a_row = 0, 0

    def allows(
        self,
        step: int,
        loss: torch.Tensor,
        gradient_norms: list[torch.Tensor],
        batch: dict[str, torch.Tensor],
    ) -> bool:
        """Return whether the weights may be updated, the same in every process.

        Args:
            step: the training's step, from 0.
            loss: a scalar, the sum of this process's losses in this step.
            gradient_norms: scalars, of gradients averaged over the processes.
            batch: this process's inputs, saved if the step is bad.

        Raises:
            UserError: after 5 bad steps in a row, or 40 whose fp16 gradients overflowed.
        """
        bad = (~torch.isfinite(torch.stack([loss, torch.stack(gradient_norms).sum()]))).float()
        bad = self.accelerator.reduce(bad, "sum")
        # Both values are read at once, since reading waits for the device.
        loss_is_bad, gradients_are_bad = (count > 0 for count in bad.tolist())
        if self.accelerator.scaler is not None:
            self._count_overflows(step, gradients_are_bad)
        elif gradients_are_bad:
            loss_is_bad = True
        if not loss_is_bad:
            self.bad_steps_in_a_row = 0
            return True
        self.bad_steps_in_a_row += 1
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.update()  # otherwise the next unscaling raises an error
        name = f"step-{step + 1:06d}-rank-{self.accelerator.process_index}.safetensors"
        path = self.folder / name
        self.folder.mkdir(exist_ok=True)
        with replaced_whole(path) as temporary:
            tensors = {key: x.detach().cpu().contiguous() for key, x in batch.items()}
            temporary.write_bytes(save(tensors))
        logger.warning(
            f"step {step + 1}: the loss is not finite; the step is skipped, its batch is in {path}"
        )
        if self.bad_steps_in_a_row == MAX_BAD_STEPS:
            raise UserError(
                f"the loss was not finite in {MAX_BAD_STEPS} steps in a row up to step {step + 1}: "
                f"look at the images in {self.folder}, lower --learning_rate, or resume from a "
                "checkpoint before it"
            )
        return False

    def _count_overflows(self, step: int, overflowed: bool) -> None:
        """Count the steps in a row that the gradient scaler skips, and raise after too many."""
        self.overflows_in_a_row = self.overflows_in_a_row + 1 if overflowed else 0
        if self.overflows_in_a_row == MAX_OVERFLOWS:
            raise UserError(
                f"the gradients were not finite in {MAX_OVERFLOWS} steps in a row up to step "
                f"{step + 1}, at every scale for fp16: pass --mixed_precision bf16 or no, lower "
                "--learning_rate, or resume from a checkpoint before it"
            )
