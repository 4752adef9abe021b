"""Operations and memory of a call."""

import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import (
    flop_registry,
    sdpa_backward_flop_count,
    sdpa_flop_count,
    shape_wrapper,
)
from torch.utils.weak import WeakIdKeyDictionary

from hf_latent.evaluation.timing import seconds_per_call

PRODUCT_SIZES = {"cpu": 2048}  # larger products are no faster; on a GPU they are


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward(output: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(output, query, key, value)


# torch counts the attention kernels of a GPU, and not that of a CPU.
FLOPS = flop_registry | {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: shape_wrapper(_attention),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: shape_wrapper(
        _attention_backward
    ),
}


def product_rate(dtype: torch.dtype, device: torch.device) -> float:
    """Return the floating-point operations a second of a product of two large square matrices."""
    size = PRODUCT_SIZES.get(device.type, 8192)
    matrix = torch.randn(size, size, dtype=dtype, device=device)
    return 2 * size**3 / seconds_per_call(lambda: matrix @ matrix)


class Costs(TorchDispatchMode):
    """Counts what happens inside the context. With fake tensors nothing is computed.

    torch's own `FlopCounterMode` and `MemTracker` allow no `autograd.grad`, and the latter takes
    minutes for a large model.

    Attributes:
        operations: floating-point operations of convolutions, products and attentions. A
            multiplication with an addition counts as two. Sums, norms and the optimizer do not
            count.
        peak_bytes: the most bytes of tensors that were made and held at once. What an operation
            needs only while it runs does not count.
    """

    def __init__(self) -> None:
        """Start with nothing."""
        super().__init__()
        self.operations, self.peak_bytes, self._bytes = 0, 0, 0
        self._known = WeakIdKeyDictionary()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation, and count it."""
        kwargs = kwargs or {}
        for storage in _storages((args, kwargs)):  # a view's memory is that of its input
            self._known.setdefault(storage, True)
        made = func(*args, **kwargs)
        if count := FLOPS.get(func._overloadpacket):
            self.operations += count(*args, **kwargs, out_val=made)
        for storage in _storages(made):
            if storage not in self._known:
                self._known[storage] = True
                self._add(storage.nbytes())
                weakref.finalize(storage, self._add, -storage.nbytes())
        return made

    def _add(self, size: int) -> None:
        self._bytes += size
        self.peak_bytes = max(self.peak_bytes, self._bytes)


def _storages(values: Any) -> Iterator[torch.UntypedStorage]:
    return (x.untyped_storage() for x in tree_leaves(values) if isinstance(x, torch.Tensor))


def measure_peak_bytes(call: Callable[[], Any]) -> int:
    """Return the most bytes that a call holds at once on the accelerator, beyond those before."""
    torch.accelerator.reset_peak_memory_stats()
    before = torch.accelerator.memory_allocated()
    call()
    torch.accelerator.synchronize()
    return int(torch.accelerator.max_memory_allocated() - before)
