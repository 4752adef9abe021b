"""A stand-in for a GPU: a device named `standin` that computes on the CPU and counts waiting.

A GPU works through a queue, so the host waits for it whenever it needs a value: `.item()`,
`.cpu()`, a mask as an index, and any copy that is not asked to be `non_blocking`. Tensors of this
device hide a tensor on the CPU. Every operation on them runs on the hidden ones, and those for
which the host would wait for a GPU are counted. Import it only in a process of its own: a device
stays registered.
"""

from collections import Counter
from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

_setup_privateuseone_for_python_backend("standin")
DEVICE = torch.device("standin:0")
CPU = torch.device("cpu")
READING = {
    *("_local_scalar_dense", "nonzero", "equal", "masked_select", "_unique2", "unique_dim"),
    *("unique_consecutive", "repeat_interleave", "bincount"),
}
waits: Counter[str] = Counter()


class OnDevice(torch.Tensor):
    """A tensor of the device; `host` holds its values."""

    host: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, host: torch.Tensor) -> "OnDevice":
        tensor = torch.Tensor._make_wrapper_subclass(
            cls,
            host.size(),
            strides=host.stride(),
            storage_offset=host.storage_offset(),
            dtype=host.dtype,
            device=DEVICE,
        )
        tensor.host = host
        return tensor

    def tolist(self) -> list[Any]:
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, operation, types, arguments=(), options=None):
        return compute(operation, *arguments, **options or {})


def compute(operation, *arguments, **options):
    """Run an operation on the hidden tensors, and count it if the host would wait for a GPU."""
    tensors = [x for x in pytree.tree_leaves((arguments, options)) if isinstance(x, torch.Tensor)]
    on_device = {id(x.host): x for x in tensors if isinstance(x, OnDevice)}
    to_cpu = torch.device(options.get("device") or DEVICE) == CPU
    asynchronous = options.get("non_blocking") or any(x is True for x in arguments[2:])
    count_wait(operation.overloadpacket.__name__, tensors, len(on_device), to_cpu, asynchronous)

    def hidden(x: Any) -> Any:
        if isinstance(x, OnDevice):
            return x.host
        return CPU if isinstance(x, torch.device) else x

    def shown(x: Any) -> Any:
        if not isinstance(x, torch.Tensor) or to_cpu:
            return x
        return on_device[id(x)] if id(x) in on_device else OnDevice(x)

    arguments, options = pytree.tree_map(hidden, (arguments, options))
    return pytree.tree_map(shown, operation(*arguments, **options))


def count_wait(name, tensors, count_on_device, to_cpu, asynchronous) -> None:
    """Count an operation for which the host would wait; raise an error if it mixes devices."""
    if name == "copy_":
        if count_on_device == 1 and not asynchronous:
            waits["copy"] += 1
    elif name == "_to_copy":
        if to_cpu and not asynchronous:
            waits["copy to the host"] += 1
    elif count_on_device and any(x.ndim and not isinstance(x, OnDevice) for x in tensors):
        raise RuntimeError(f"{name} of tensors on the CPU and on the device")
    elif name in READING and count_on_device:
        waits[name] += 1
    elif name.startswith("index") and any(x.dtype == torch.bool for x in tensors[1:]):
        waits["mask as an index"] += 1


fallback = torch.library.Library("_", "IMPL")
fallback.fallback(compute, "PrivateUse1")


class Event:
    """In place of `torch.Event`; waiting for what was recorded in the same step counts."""

    step = 0

    def __init__(self, device: torch.device):
        self.recorded = -1

    def record(self) -> None:
        self.recorded = Event.step

    def synchronize(self) -> None:
        if self.recorded == Event.step:
            waits["event of this step"] += 1


class Generator(torch.Generator):
    """In place of `torch.Generator`, always on the CPU."""

    def __new__(cls, device: torch.device | str = CPU) -> "Generator":
        return super().__new__(cls)


def tensor(data: Any, *, device: torch.device | str = CPU, **options: Any) -> torch.Tensor:
    """In place of `torch.tensor`, which cannot make a tensor of the device."""
    return create_tensor(data, **options).to(device)


torch.Event = Event
torch.Generator = Generator
create_tensor, torch.tensor = torch.tensor, tensor
