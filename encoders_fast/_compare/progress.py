"""A progress bar for the terminal, plain lines for a log."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any


class Progress:
    """Counts `total` steps on stderr. tqdm draws the bar; it comes with transformers."""

    def __init__(self, total: int) -> None:
        self._bar: Any = None
        self._total, self._done = total, 0
        if sys.stderr.isatty():
            from tqdm import tqdm  # type: ignore[import-untyped]

            layout = "{desc:34.34} |{bar:30}| {n_fmt}/{total_fmt} {elapsed}"
            self._bar = tqdm(total=total, bar_format=layout, leave=False)

    def step(self, name: str) -> None:
        """Say what comes next; the step before it is done."""
        if self._bar is None:
            print(f"[{self._done + 1}/{self._total}] {name}", file=sys.stderr, flush=True)
        else:
            self._bar.update(self._done - self._bar.n)
            self._bar.set_description_str(name)
        self._done += 1

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
