"""The device to compute on, and copies to it."""

import torch


def fastest_device() -> torch.device:
    """Return the accelerator of this machine, or the CPU if there is none."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy a tensor to a device. Only a copy to the CPU waits for the device.

    Without pinned memory, a copy to a GPU would wait for all that the GPU has to do before.
    """
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=device.type != "cpu")
