"""Values that a device computes in every step, read without waiting for the device."""

import torch


class LateValues:
    """Reads values of the device one step after it was asked to compute them.

    To read them at once, the host would wait for the device, and the device then for its next work.

    Args:
        device: that computes the values.
    """

    def __init__(self, device: torch.device):
        """Keep no values yet."""
        self._copied = None if device.type == "cpu" else torch.Event(device)
        self._values: torch.Tensor | None = None

    def exchange(self, values: torch.Tensor) -> torch.Tensor | None:
        """Start to copy values to the host, and return those of the call before.

        Args:
            values: on the device, not changed later.

        Returns:
            On the CPU; None in the first call and after `take`.
        """
        before = self.take()
        self._values = values.to("cpu", non_blocking=True)  # to pinned memory
        if self._copied is not None:
            self._copied.record()
        return before

    def take(self) -> torch.Tensor | None:
        """Wait for the values of the last call, and return them; None if they were returned."""
        if self._values is None:
            return None
        if self._copied is not None:
            self._copied.synchronize()
        values, self._values = self._values, None
        return values
