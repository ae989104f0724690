"""What this machine is and how busy it is: for `info`, `compare` and the benches."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

BUSY = 0.1
"""Share of the processors that others may use before a timing is worth a warning."""


def cpu_name() -> str:
    """As the kernel calls it, or the architecture where it has no name."""
    for line in _lines("/proc/cpuinfo"):
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def cpu_flags() -> set[str]:
    """The processor's features under Linux's names; empty where the kernel does not list them."""
    for line in _lines("/proc/cpuinfo"):
        if line.startswith(("flags", "Features")):
            return set(line.partition(":")[2].split())
    return set()


def memory_bytes() -> int:
    """All the memory there is, used or not."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


class OthersLoad:
    """The share of the processors that other processes, and other machines on the same host, used since `restart`."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self._start = self._read()

    def share(self) -> float | None:
        """Between 0 and 1, or None where the kernel does not tell or too little time has passed to say."""
        now = self._read()
        if now is None or self._start is None:
            return None
        wall, everyone, own = (after - before for after, before in zip(now, self._start, strict=True))
        if wall < 0.2:
            return None
        return min(1.0, max(0.0, (everyone - own) / (wall * (os.cpu_count() or 1))))

    @staticmethod
    def _read() -> tuple[float, float, float] | None:
        """Seconds: of the clock, of processor time spent by everyone, of processor time spent by this process."""
        lines = _lines("/proc/stat")
        if not lines:
            return None
        user, nice, system, _idle, _iowait, irq, softirq, steal = (int(field) for field in lines[0].split()[1:9])
        everyone = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
        return time.monotonic(), everyone, sum(os.times()[:2])


def peak_memory(call: Callable[[], Any]) -> int | None:
    """Bytes by which this process's resident memory rose at its highest while `call` ran; its result counts too.

    The kernel's own high-water mark sees every allocator, also the scratch memory of libraries that torch's does not
    count. None where it cannot be reset: it can on Linux, for one's own process.
    """
    gc.collect()
    # What earlier calls freed goes back to the system first, else this call would find it and seem to need less.
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")
        before = _status("VmRSS")
        result = call()
        peak = _status("VmHWM")
    except OSError:
        return None
    del result
    return max(0, peak - before)


def _status(field: str) -> int:
    for line in _lines("/proc/self/status"):
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")
