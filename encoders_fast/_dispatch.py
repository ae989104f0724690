"""Which implementation of an op runs: the only place in the package that decides.

Every op has a table of backends, best first. The first row without a reason to refuse the call runs it. Reasons are
sentences, they depend on static facts only (device, dtypes, widths), and the choice is remembered for each combination
of them, so that a call pays one dictionary look-up.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch


class Key(NamedTuple):
    """What a backend may know of a call before it says whether it can run it."""

    device: str
    """Device type: "cpu", "cuda", ..."""
    capability: tuple[int, int] | None
    """CUDA compute capability, None elsewhere."""
    dtypes: tuple[torch.dtype, ...]
    """Of the op's tensors, in the order of its arguments."""
    widths: tuple[int, ...]
    """The sizes that a kernel may be written for; which ones is the op's contract."""


class Backend(NamedTuple):
    """One way to run an op, named after the file that holds it.

    `forward` and `backward` take the op's arguments as its contract lists them. An op whose gradient is itself has no
    `backward`.
    """

    name: str
    why_not: Callable[[Key], str | None]
    """None where this backend can run the call, else one sentence that says why it cannot."""
    forward: Callable[..., Any]
    backward: Callable[..., Any] | None = None


class Explanation(NamedTuple):
    """The backend that an op's call would run on, and why each one that cannot does not."""

    op: str
    chosen: str | None
    refusals: dict[str, str]

    def __str__(self) -> str:
        lines = [f"{self.op}: {self.chosen or 'no backend can run this call'}"]
        return "\n".join(lines + [f"  {name}: {why}" for name, why in self.refusals.items()])


class _Table(NamedTuple):
    rows: list[Backend]
    statics: Callable[..., tuple[torch.device, tuple[torch.dtype, ...], tuple[int, ...]]]


_tables: dict[str, _Table] = {}
_chosen: dict[tuple[Any, ...], Backend] = {}
_recordings: list[list[tuple[str, str]]] = []
# One for the process, like torch's own switches: what is forced holds on autograd's threads too, and torch.compile
# guards on a plain global.
_forced: str | None = os.environ.get("ENCODERS_FAST_BACKEND") or None
_requests: list[list[str | None]] = [[_forced]]  # one for every use_backend that is open, the outermost first


def define(
    op: str,
    rows: list[Backend],
    statics: Callable[..., tuple[torch.device, tuple[torch.dtype, ...], tuple[int, ...]]],
) -> None:
    """Give `op` its table. `statics` maps the public function's arguments to (device, dtypes, widths)."""
    _tables[op] = _Table(rows, statics)


def tables() -> dict[str, tuple[Backend, ...]]:
    """Every op's backends, best first."""
    return {op: tuple(table.rows) for op, table in _tables.items()}


def key_of(device: torch.device, dtypes: tuple[torch.dtype, ...], widths: tuple[int, ...]) -> Key:
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
    return Key(device.type, capability, dtypes, widths)


def choose(
    op: str, backend: str | None, device: torch.device, dtypes: tuple[torch.dtype, ...], widths: tuple[int, ...]
) -> Backend:
    """The backend for a call: the one named `backend` if the op has it, else the first that can run the call.

    Raises NotImplementedError, with every backend's sentence, where none can, or where no op has one of that name.
    """
    row = would_choose(op, backend, device, dtypes, widths)
    will_run(op, row)
    return row


def would_choose(
    op: str, backend: str | None, device: torch.device, dtypes: tuple[torch.dtype, ...], widths: tuple[int, ...]
) -> Backend:
    """As `choose`, before it is known whether there will be a call."""
    call = (op, backend, device, dtypes, widths)
    row = _chosen.get(call)
    if row is None:
        row = _chosen[call] = _first_without_refusal(op, backend, key_of(device, dtypes, widths))
    return row


def will_run(op: str, row: Backend) -> None:
    """Tells those who record."""
    for recording in _recordings:
        recording.append((op, row.name))


def _first_without_refusal(op: str, backend: str | None, key: Key) -> Backend:
    if backend is not None and backend not in _names():
        raise NotImplementedError(f"{op}: there is no backend {backend!r}; there are {', '.join(sorted(_names()))}")
    rows = [row for row in _tables[op].rows if row.name == backend] or _tables[op].rows
    refusals = {}
    for row in rows:
        why = row.why_not(key)
        if why is None:
            return row
        refusals[row.name] = why
    raise NotImplementedError(str(Explanation(op, None, refusals)))


def _names() -> set[str]:
    return {row.name for table in _tables.values() for row in table.rows}


def explain(op: str | Callable[..., Any], *args: Any, **kwargs: Any) -> Explanation:
    """Which backend `op(*args)` would run on, and the refusals of all that cannot run it.

    `op` is an op's name or its public function. Nothing is computed. Raises ValueError for an unknown op, and for bad
    arguments what the op raises.
    """
    name = op if isinstance(op, str) else getattr(op, "__name__", None)
    if name not in _tables:
        raise ValueError(f"there is no op {op!r}; there are {', '.join(_tables)}")
    key = key_of(*_tables[name].statics(*args, **kwargs))
    refusals = {row.name: why for row in _tables[name].rows if (why := row.why_not(key)) is not None}
    able = [row.name for row in _tables[name].rows if row.name not in refusals]
    if any(row.name == _forced for row in _tables[name].rows):
        able = [_forced] if _forced in able else []
    return Explanation(name, able[0] if able else None, refusals)


def forced() -> str | None:
    """The name given to `use_backend` or ENCODERS_FAST_BACKEND, or None."""
    return _forced


@contextlib.contextmanager
def use_backend(name: str | None) -> Iterator[None]:
    """Run every op that has a backend called `name` on it, forward and, for graphs built inside, backward too.

    A call that this backend cannot run raises NotImplementedError with the reason; nothing falls back silently. An op
    without a backend of that name runs as ever. None lifts an outer choice. Holds for the whole process, like torch's
    own switches. Raises ValueError for a name that no op knows.
    """
    global _forced
    if name is not None and name not in _names():
        raise ValueError(f"no op has a backend {name!r}; there are {', '.join(sorted(_names()))}")
    request: list[str | None] = [name]
    _requests.append(request)
    _forced = name
    try:
        yield
    finally:
        # Another thread may have opened its own meanwhile: take out this one, by identity, and let the latest rule.
        _requests[:] = [other for other in _requests if other is not request]
        _forced = _requests[-1][0]


def register_backend(op: str, backend: Backend, *, first: bool = True) -> Callable[[], None]:
    """Add a backend to an op's table from outside; tests and benches that loop over the table then cover it.

    It goes before all others, or with `first=False` behind them. Returns a function that takes it out again. Raises
    ValueError where the op is unknown, has a backend of that name, or has gradients and the backend has no `backward`;
    TypeError for what is not a Backend. A graph that was built on a backend needs it until its backward pass is done.
    """
    if op not in _tables:
        raise ValueError(f"there is no op {op!r}; there are {', '.join(_tables)}")
    if not isinstance(backend, Backend):
        raise TypeError(f"a backend is made by Backend(name, why_not, forward, backward); this is {backend!r}")
    rows = _tables[op].rows
    if backend.backward is None and any(row.backward is not None for row in rows):
        raise ValueError(f"{op}'s backends have a backward; {backend.name!r} has none")
    if any(row.name == backend.name for row in rows):
        raise ValueError(f"{op} already has a backend {backend.name!r}")
    rows.insert(0 if first else len(rows), backend)
    _chosen.clear()

    def remove() -> None:
        rows[:] = [row for row in rows if row is not backend]
        _chosen.clear()

    return remove


@contextlib.contextmanager
def record() -> Iterator[list[tuple[str, str]]]:
    """Yields a list that grows by (op, backend name) with every call that runs inside."""
    calls: list[tuple[str, str]] = []
    _recordings.append(calls)
    try:
        yield calls
    finally:
        # By identity: two recordings with equal contents are still two.
        _recordings[:] = [recording for recording in _recordings if recording is not calls]
