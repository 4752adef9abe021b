"""Random values of a training step, the same for any number of processes."""

import torch

from hf_latent.training.run.batches import ProcessRows, draw_seeds

# One kernel draws a shard, so few shards are fast. With more processes than shards, a process draws
# more rows than it needs, which costs little.
SHARDS = 16


class ShardedDraws:
    """Standard normal values for this process's rows of every global batch.

    The global batch is cut into 16 shards of equally many rows. Each shard has a seed of its own,
    which follows from (seed, purpose, step, micro-step, shard), and a process draws only the shards
    that contain its rows. So a row's values do not depend on the number of processes, and there is
    no random state to save. Another kind of device draws other values.

    Args:
        seed: of the training.
        purpose: names what is drawn. Two purposes never share random numbers.
        rows: this process's rows of every global batch, of any size.
        device: of the values.
    """

    def __init__(self, seed: int, purpose: str, rows: ProcessRows, device: torch.device):
        """Draw nothing yet."""
        self.seed, self.purpose, self.rows = seed, purpose, rows
        self.device, self.generator = device, torch.Generator(device)

    def normal(self, place: tuple[int, int], *shape: int) -> torch.Tensor:
        """Draw `(batch_size, *shape)` float32 values from a standard normal distribution.

        Args:
            place: step and micro-step, from 0.
            shape: of a row's values.
        """
        size = -(-self.rows.global_size // SHARDS)
        first, start = divmod(self.rows.first, size)
        last = (self.rows.first + self.rows.batch_size - 1) // size
        seeds = draw_seeds(self.seed, self.purpose, *place, count=SHARDS)[first : last + 1]
        values = torch.empty(len(seeds), size, *shape, device=self.device)
        for shard, seed in zip(values, seeds, strict=True):
            shard.normal_(generator=self.generator.manual_seed(seed))
        return values.flatten(0, 1)[start : start + self.rows.batch_size]
