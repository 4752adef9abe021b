"""What happens when a loss is not finite."""

from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import save_file

from hf_latent.errors import UserError
from hf_latent.output import replaced_whole

MAX_BAD_STEPS = 5


class NonFiniteGuard:
    """Skips steps whose loss or gradient is not finite, and ends a training that has lost it.

    Args:
        output_dir: the run's folder; the batches of skipped steps go to `bad_batches` in it.
        accelerator: the run's.
    """

    def __init__(self, output_dir: Path, accelerator: Accelerator):
        """Start with no bad step."""
        self.folder, self.accelerator = output_dir / "bad_batches", accelerator
        self.bad_steps_in_a_row = 0

    def allows(
        self,
        step: int,
        loss: torch.Tensor,
        gradient_norms: list[torch.Tensor],
        batch: dict[str, torch.Tensor],
    ) -> bool:
        """Tell whether the weights may be updated; the same answer in every process.

        With fp16, gradients that overflow are the gradient scaler's to skip: only the loss counts.

        Args:
            step: the training's, from 0.
            loss: a scalar: the sum of all this process's losses in this step.
            gradient_norms: scalars, of gradients averaged over the processes.
            batch: this process's inputs, saved if the step is bad.

        Returns:
            Whether everything is finite.

        Raises:
            UserError: after five bad steps in a row.
        """
        if self.accelerator.scaler is None:
            loss = loss + sum(gradient_norms)
        bad = (~torch.isfinite(loss)).float()
        if self.accelerator.num_processes > 1:
            bad = self.accelerator.reduce(bad, "sum")
        if bad == 0:
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
            save_file({key: x.detach().cpu().contiguous() for key, x in batch.items()}, temporary)
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
