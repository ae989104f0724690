"""Numbers as text."""

from __future__ import annotations


def time(seconds: float) -> str:
    """Three digits."""
    if seconds < 1e-3:
        return f"{seconds * 1e6:.{0 if seconds >= 1e-4 else 1}f} us"
    if seconds < 1:
        return f"{seconds * 1e3:.{0 if seconds >= 0.1 else 1 if seconds >= 1e-2 else 2}f} ms"
    return f"{seconds:.2f} s"


def ratio(value: float) -> str:
    return f"{value:.1f}x" if value >= 10 else f"{value:.2f}x"


def memory(value: float) -> str:
    return f"{value / 1e6:.1f} MB" if value < 1e9 else f"{value / 1e9:.2f} GB"
