"""Keep freed memory in the process.

glibc hands large blocks back to the kernel when they are freed and faults them in again, page by
page, when they are next asked for. A forward pass does nothing but ask for and free large blocks:
half to two thirds of an eager pass on a CPU were such page faults.
"""

from __future__ import annotations

import ctypes
import sys
from functools import cache

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3


@cache
def keep_freed_memory() -> bool:
    """Raise glibc's mmap and trim thresholds for this process; True where that worked.

    A no-op where the C library is not glibc. The process then keeps its peak memory until it ends.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    settings = ((_M_MMAP_THRESHOLD, 1 << 30), (_M_TRIM_THRESHOLD, (1 << 31) - 1), (_M_TOP_PAD, 1 << 26))
    worked = [bool(mallopt(option, value)) for option, value in settings]  # all of them, in any case
    return all(worked)
