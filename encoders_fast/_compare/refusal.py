"""The one exception that a user of the command line sees, as its sentence."""

from __future__ import annotations


class RefusalError(Exception):
    """A sentence for the user: what was asked cannot be done, and why."""


def first_line(error: BaseException) -> str:
    """An error's own words, cut to what fits in a sentence."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    # Some errors say what on one line, and only after its colon why.
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
