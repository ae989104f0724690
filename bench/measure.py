"""Runs a case: check, warm up, then rounds in which every contender has its turn."""

from __future__ import annotations

import contextlib
import gc
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from bench import clock, targets
from bench.contender import Case, Contender
from bench.verify import check
from encoders_fast import _machine
from encoders_fast.ops import clear_packed

ROUNDS = (5, 200)
"""Fewest and most."""


def run(benchmark: Any, case: Case, seconds: float) -> dict[str, Any]:
    """The case's record, as a result file holds it. `seconds` is about how long the timed rounds may take in all.

    pytest-benchmark drives the rounds and stores the times of the case's subject; the others run in its untimed setup,
    so that all share the same seconds of the machine. Each is timed by the same clock in the same way.
    """
    present = [contender for contender in case.contenders if contender.absent is None]
    subject = next((contender for contender in present if contender.name == case.subject), present[-1])
    others = [contender for contender in present if contender is not subject]
    samples: dict[str, list[float]] = {contender.name: [] for contender in present}

    def timed(contender: Contender) -> None:
        time.sleep(case.pause)
        samples[contender.name].append(timers[contender.name]())

    def others_turn() -> None:
        # Another one begins each time, so that nobody always inherits the same neighbour's caches.
        shift = len(samples[subject.name]) % max(1, len(others))
        for contender in others[shift:] + others[:shift]:
            timed(contender)

    with quiet(case.grad):
        errors = {contender.name: check(contender, (contender.check or contender.call)()) for contender in present}
        timers = {contender.name: clock.timer(contender) for contender in present}
        rounds = 1 if benchmark.disabled else case.rounds or rounds_in(seconds, present)
        load = _machine.OthersLoad()
        benchmark.pedantic(lambda: timed(subject), setup=others_turn, rounds=rounds, iterations=1)
        busy = load.share()
        wanted = [contender for contender in present if contender.memory and not benchmark.disabled]
        memory = {contender.name: extra_memory(contender) for contender in wanted}
    record = {
        "group": case.group,
        "case": case.name,
        "axis": case.axis,
        "rounds": rounds,
        "others_load": busy,
        "contenders": [numbers(contender, samples, errors, memory) for contender in case.contenders],
    }
    benchmark.group = case.group
    benchmark.extra_info.update(record)
    return record


@contextlib.contextmanager
def quiet(grad: bool) -> Iterator[None]:
    """No garbage collector between the clocks."""
    collects = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        with torch.enable_grad() if grad else torch.inference_mode():
            yield
    finally:
        if collects:
            gc.enable()


def rounds_in(seconds: float, contenders: list[Contender]) -> int:
    """How many rounds fit, as long as each one's second call takes, which warms up too."""
    start = time.perf_counter()
    for contender in contenders:
        contender.call()
    return min(max(int(seconds / (time.perf_counter() - start)), ROUNDS[0]), ROUNDS[1])


def extra_memory(contender: Contender) -> int | None:
    """Bytes at the highest, beyond the arguments and the outputs, of a call that is not the first.

    Packed weights, which the library keeps from call to call, count: the call has to pack them anew.
    """
    clear_packed()
    results: list[Any] = []
    peak = peak_memory(lambda: results.append(contender.call()))
    if peak is None:
        return None
    return max(0, peak - sum(output.nbytes for output in contender.outputs(results[0])))


def peak_memory(call: Callable[[], Any]) -> int | None:
    if clock.device().type != "cuda":
        return _machine.peak_memory(call)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    return torch.cuda.max_memory_allocated() - before


def numbers(
    contender: Contender,
    samples: dict[str, list[float]],
    errors: dict[str, tuple[float, float]],
    memory: dict[str, int | None],
) -> dict[str, Any]:
    """One contender's line of the record."""
    if contender.absent is not None:
        return {"name": contender.name, "absent": contender.absent}
    times = samples[contender.name]
    median = statistics.median(times)
    line: dict[str, Any] = {"name": contender.name, "median": median, "spread": spread(times) / median}
    if contender.baseline is not None and contender.baseline in samples:
        line |= {"baseline": contender.baseline, "ratio": statistics.median(samples[contender.baseline]) / median}
    if contender.targets:
        medians = {name: statistics.median(times) for name, times in samples.items()}
        line["targets"] = targets.in_record(contender, medians)
    if contender.bytes:
        line["gb_per_s"] = contender.bytes / median / 1e9
    if contender.flops:
        line["gflop_per_s"] = contender.flops / median / 1e9
    line["error"], line["allowed_error"] = errors[contender.name]
    if memory.get(contender.name) is not None:
        line["extra_memory"] = memory[contender.name]
    if contender.weights:
        line["weights"] = contender.weights
    return line


def spread(times: list[float]) -> float:
    """Between the quartiles."""
    if len(times) < 2:
        return 0.0
    first, _, third = statistics.quantiles(times, n=4, method="inclusive")
    return third - first
