"""A split of a latent cache in the memory of a device."""

import torch

from hf_latent.data.device import to_device
from hf_latent.data.latents.cache import LatentBatch, LatentSplit
from hf_latent.pipeline.encode import LatentPosteriors

READ_BYTES = 2**26


class ResidentSplit:
    """All latents of a split, read once and kept on a device in the dtype of the cache.

    Args:
        split: the split.
        device: that trains.
    """

    def __init__(self, split: LatentSplit, device: torch.device):
        """Copy the latents."""
        self.device, self.tensors = device, dict[str, torch.Tensor]()
        rows = max(1, READ_BYTES * len(split) // split.stored_bytes)
        for indices in torch.arange(len(split)).split(rows):
            for name, block in split.read_stored(indices).items():
                if name not in self.tensors:
                    shape = (len(split), *block.shape[1:])
                    self.tensors[name] = torch.empty(shape, dtype=block.dtype, device=device)
                self.tensors[name][indices[0] : indices[-1] + 1] = to_device(block, device)

    def read(self, indices: torch.Tensor, mirrored: torch.Tensor | None = None) -> LatentBatch:
        """Return the latents of some images, on the device; as `LatentSplit.read`."""
        views = torch.zeros_like(indices) if mirrored is None else mirrored.long()
        # One copy to the device for both.
        indices, views = to_device(torch.stack([indices, views]), self.device)
        mean, std = (self.tensors[name][indices, views].float() for name in ("mean", "std"))
        conditions = {
            name: x[indices] for name, x in self.tensors.items() if name not in ("mean", "std")
        }
        return LatentBatch(LatentPosteriors(mean, std), conditions)


def fits_on_device(split: LatentSplit, device: torch.device) -> bool:
    """Return whether a split takes at most a third of a GPU's free memory; False on a CPU."""
    if device.type != "cuda":
        return False
    free, _ = torch.cuda.mem_get_info(device)
    return split.stored_bytes <= free / 3
