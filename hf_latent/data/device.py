"""Copies to the device that trains."""

import torch


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy a tensor to a device. Only a copy to the CPU waits for the device.

    Without pinned memory, a copy to a GPU would wait for all that the GPU has to do before.
    """
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=device.type != "cpu")
