"""What happens when a loss or its gradients are not finite."""

from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import save

from hf_latent.errors import UserError
from hf_latent.output import replaced_whole

MAX_BAD_STEPS = 5
# The scaler of fp16 gradients starts at 2^16 and halves its scale whenever they overflow: 16 steps
# to 1, and 40 to 2^-24, the smallest number of fp16. There is no scale left to find then.
MAX_OVERFLOWS = 40


class NonFiniteGuard:
    """Skips steps whose loss or gradient is not finite, and ends a training that has lost it.

    A step that fp16's gradient scaler skips counts as one that was done: for the training's clock
    and learning rate, and for the averages, which take the unchanged weights once more. (The
    optimizer's own count, of its moments, leaves it out.) While the scaler finds its first scale,
    the averages are the weights that the training starts with either way.

    Args:
        output_dir: the run's folder; the batches of skipped steps go to `bad_batches` in it.
        accelerator: the run's.
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
        """Return whether the weights may be updated; the same answer in every process.

        With fp16, gradients that overflow are the gradient scaler's to skip: only the loss counts,
        until there are too many of them.

        Args:
            step: the training's, from 0.
            loss: a scalar: the sum of all this process's losses in this step.
            gradient_norms: scalars, of gradients averaged over the processes.
            batch: this process's inputs, saved if the step is bad.

        Returns:
            Whether everything is finite that has to be.

        Raises:
            UserError: after five bad steps in a row, or 40 whose gradients overflowed.
        """
        bad = (~torch.isfinite(torch.stack([loss, torch.stack(gradient_norms).sum()]))).float()
        if self.accelerator.num_processes > 1:
            bad = self.accelerator.reduce(bad, "sum")
        # Both at once: what is read makes the program wait for the device.
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
            self.accelerator.scaler.update()  # it must not unscale the next gradients twice
        path = (
            self.folder / f"step-{step + 1:06d}-rank-{self.accelerator.process_index}.safetensors"
        )
        self.folder.mkdir(exist_ok=True)
        with replaced_whole(path) as temporary:
            tensors = {key: x.detach().cpu().contiguous() for key, x in batch.items()}
            temporary.write_bytes(save(tensors))
        self.accelerator.print(
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
        """Count the steps in a row that the gradient scaler skips, and end the training in time."""
        self.overflows_in_a_row = self.overflows_in_a_row + 1 if overflowed else 0
        if self.overflows_in_a_row == MAX_OVERFLOWS:
            raise UserError(
                f"the gradients were not finite in {MAX_OVERFLOWS} steps in a row up to step "
                f"{step + 1}, at whatever scale for fp16: pass --mixed_precision bf16 or no, lower "
                "--learning_rate, or resume from a checkpoint before it"
            )
