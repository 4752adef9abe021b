"""Keep freed memory in the process, so that the next training or sampling step reuses it."""

import ctypes
import os
import platform

# Options of glibc's mallopt (malloc.h): M_MMAP_THRESHOLD, at its largest; M_TRIM_THRESHOLD, never;
# M_TOP_PAD, 64 MB.
OPTIONS = {-3: 32 * 2**20, -1: 2**31 - 1, -2: 64 * 2**20}


def keep_freed_memory() -> None:
    """Make glibc keep the memory of freed tensors for the next ones.

    By default glibc returns a freed tensor's memory to the system, which clears and maps each page
    again for the next tensor: thousands of pages a step. Tensors above 32 MB are still returned.

    This concerns the whole process, so commands call it, and an import does not. Call it at the
    start of a script of your own. It changes nothing without glibc, or if the environment has
    settings of the allocator (`MALLOC_...`, `GLIBC_TUNABLES`). Preloaded allocators ignore it.
    """
    is_configured = any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ)
    if platform.libc_ver()[0] == "glibc" and not is_configured:
        for option, value in OPTIONS.items():
            ctypes.CDLL(None).mallopt(option, value)
