"""Operations and memory of a call."""

from collections.abc import Callable
from typing import Any

import torch
from torch.distributed._tools.mem_tracker import MemTracker
from torch.utils.flop_counter import (
    FlopCounterMode,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

from hf_latent.evaluation.timing import seconds_per_call


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward(output: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(output, query, key, value)


PRODUCT_SIZES = {"cpu": 2048}  # larger products are no faster; on a GPU they are
# torch counts the attention kernels of a GPU, and not that of a CPU.
CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


def count_operations(call: Callable[[], Any]) -> int:
    """Return the floating-point operations of a call's convolutions, products and attentions.

    A multiplication with an addition counts as two. Sums, norms and the optimizer do not count.
    With fake tensors nothing is computed.
    """
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
        call()
    return int(counter.get_total_flops())


def product_rate(dtype: torch.dtype, device: torch.device) -> float:
    """Return the floating-point operations a second of a product of two large square matrices."""
    size = PRODUCT_SIZES.get(device.type, 8192)
    matrix = torch.randn(size, size, dtype=dtype, device=device)
    return 2 * size**3 / seconds_per_call(lambda: matrix @ matrix)


def count_peak_bytes(call: Callable[[], Any], *held: Any) -> int:
    """Return the most bytes of tensors that a call holds at once, of fake or CPU tensors.

    Args:
        call: makes the tensors to count.
        held: the modules, optimizers and tensors that it uses, which do not count.
    """
    modules = [x for x in held if isinstance(x, torch.nn.Module)]
    frozen = [x for module in modules for x in module.parameters() if not x.requires_grad]
    tracker = MemTracker()
    tracker.track_external(*held)
    before = _total(tracker)
    for parameter in frozen:  # the tracker hooks every parameter, which needs a gradient for it
        parameter.requires_grad_(True)
    try:
        with tracker:
            call()
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
    return max(_total(tracker, "peak") - before, 0)


def _total(tracker: MemTracker, kind: str = "current") -> int:
    snapshot = tracker.get_tracker_snapshot(kind)
    return sum(values["Total"] for values in snapshot.values())


def measure_peak_bytes(call: Callable[[], Any]) -> int:
    """Return the most bytes that a call holds at once on the accelerator, beyond those before."""
    torch.accelerator.reset_peak_memory_stats()
    before = torch.accelerator.memory_allocated()
    call()
    torch.accelerator.synchronize()
    return int(torch.accelerator.max_memory_allocated() - before)
