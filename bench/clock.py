"""How long a call takes: on the CPU by the wall, on a GPU by its own events around the replay of a graph."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from bench.contender import Contender, Expected

_device = torch.device("cpu")


def device() -> torch.device:
    """Where the benches run."""
    return _device


def run_on(name: str) -> None:
    global _device
    _device = torch.device(name)


def only_on_gpus(case: bool) -> None:
    """Skips a case that is meant for a GPU where the benches run on the CPU."""
    if case and _device.type == "cpu":
        pytest.skip("of a size for GPUs: --device cuda")


@contextlib.contextmanager
def made_there() -> Iterator[None]:
    """Inside, tensors and models are made on the device unless they are given another.

    Not while calls are timed: it is a mode of torch's, which every operator asks.
    """
    torch.set_default_device(None if _device.type == "cpu" else _device)
    try:
        yield
    finally:
        torch.set_default_device(None)


def timer(contender: Contender) -> Callable[[], float]:
    """A function that calls the contender once and returns the seconds that it took."""
    if device().type == "cuda":
        return OnGpu(contender.call)

    def by_the_wall() -> float:
        start = time.perf_counter()
        contender.call()
        return time.perf_counter() - start

    return by_the_wall


class OnGpu:
    """Captures the call in a CUDA graph, so that the host's time does not count; what cannot be captured is timed as it
    is. Before each the second-level cache is overwritten: in a model, inputs come from memory."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self.graph = captured(call)
        self.replay = call if self.graph is None else self.graph.replay
        cache = torch.cuda.get_device_properties(device()).L2_cache_size
        self.elsewhere = torch.empty(2 * cache, dtype=torch.uint8, device=_device)

    def __call__(self) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.elsewhere.zero_()
        start.record()
        self.replay()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3


def captured(call: Callable[[], Any]) -> torch.cuda.CUDAGraph | None:
    """None where something in the call waits for the GPU or allocates outside of torch."""
    current, stream = torch.cuda.current_stream(), torch.cuda.Stream()
    stream.wait_stream(current)
    with torch.cuda.stream(stream):  # compiles kernels and makes plans, which is not allowed in a capture
        for _ in range(3):
            call()
    current.wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            call()
    except RuntimeError:
        torch.cuda.synchronize()
        return None
    return graph


def copy_of(size: float) -> Contender:
    """Reads and writes `size` bytes in all, as torch's copy does: what a kernel that moves as many can reach."""
    source = torch.ones(max(int(size / 2) // 4, 1), device=_device)
    target, expected = torch.empty_like(source), (Expected(source, 0.0),)
    return Contender(f"copy of {size / 1e6:.1f} MB", lambda: target.copy_(source), bytes=size, expected=expected)
