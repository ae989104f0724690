"""Two models in turn over the same batches: times, outputs, and which backends ran."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .. import _dispatch
from .agreement import Difference, tensors, widen

Runner = Callable[[Tensor], Mapping[str, Any]]


@dataclass
class Timing:
    """What `in_turn` found."""

    ours: list[float] = field(default_factory=list)
    """Seconds of each timed round."""
    theirs: list[float] = field(default_factory=list)
    differences: dict[str, Difference] = field(default_factory=dict)
    backends: dict[str, dict[str, int]] = field(default_factory=dict)
    """op -> backend -> calls in one forward of ours."""


def in_turn(
    ours: Runner, theirs: Runner, batches: Callable[[int], Tensor], repeats: int, on_round: Callable[[int], None]
) -> Timing:
    """One untimed round, then `repeats` timed ones, each over the next piece of text. Who begins changes every round,
    so that neither always finds the caches as the other left them."""
    found = Timing()
    for index in range(repeats + 1):
        on_round(index)
        ids = batches(index)
        with _dispatch.record() as calls:
            if index % 2:
                seconds_ours, out_ours = timed(ours, ids)
                seconds_theirs, out_theirs = timed(theirs, ids)
            else:
                seconds_theirs, out_theirs = timed(theirs, ids)
                seconds_ours, out_ours = timed(ours, ids)
        widen(found.differences, tensors(out_ours), tensors(out_theirs))
        del out_ours, out_theirs
        if index:
            found.ours.append(seconds_ours)
            found.theirs.append(seconds_theirs)
        for op, backends in count(calls).items():
            found.backends[op] = backends
    return found


def timed(run: Runner, ids: Tensor) -> tuple[float, Mapping[str, Any]]:
    synchronize(ids)
    start = time.perf_counter()
    output = run(ids)
    synchronize(ids)
    return time.perf_counter() - start, output


def synchronize(tensor: Tensor) -> None:
    if tensor.device.type == "cuda":
        torch.cuda.synchronize(tensor.device)


def count(calls: list[tuple[str, str]]) -> dict[str, dict[str, int]]:
    """[(op, backend)] -> {op: {backend: how often}}."""
    counts: dict[str, dict[str, int]] = {}
    for (op, backend), number in Counter(calls).items():
        counts.setdefault(op, {})[backend] = number
    return counts
