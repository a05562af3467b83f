"""The most memory that this process has had, on every system."""

from __future__ import annotations

import sys

import psutil

try:
    import resource
except ImportError:
    # Windows has none.
    resource = None  # type: ignore[assignment]


def peak_memory() -> int:
    """Bytes of the host that were in use at once; where the system keeps no such peak, those in use now."""
    if resource is None:
        memory = psutil.Process().memory_info()
        return int(getattr(memory, "peak_wset", memory.rss))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # macOS counts bytes, the others KiB.
    return peak if sys.platform == "darwin" else peak * 1024
