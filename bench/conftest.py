"""The `compare` fixture, its options, and the table at the end of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import clock, measure, results, table
from bench.contender import Case
from encoders_fast import _machine, _native

RECORDS = pytest.StashKey[list[dict[str, Any]]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("encoders_fast")
    group.addoption("--save", action="store_true", help="write <device>.json into --results")
    group.addoption("--device", choices=("cpu", "cuda"), default="cpu", help="where to run (default: cpu)")
    group.addoption("--results", type=Path, default=results.FOLDER, help="their folder (default: bench/results)")
    group.addoption("--seconds", type=float, default=3.0, help="timed seconds for a case, about (default: 3)")


def pytest_configure(config: pytest.Config) -> None:
    # pytest-benchmark's own table knows one time for each case; ours shows all contenders.
    config.option.benchmark_quiet = True
    # Peers run their own code here, and what they deprecate is not ours to mend.
    config.addinivalue_line("filterwarnings", "ignore")
    config.stash[RECORDS] = []
    clock.run_on(config.getoption("--device"))


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.config.getoption("benchmark_disable") and item.get_closest_marker("long"):
        pytest.skip("takes long, and --benchmark-disable asks for a quick check")


@pytest.fixture(autouse=True)
def inputs_on_the_device() -> Iterator[None]:
    with clock.made_there():
        yield


@pytest.fixture
def compare(request: pytest.FixtureRequest, benchmark: Any) -> Callable[[Case], None]:
    """Checks and times one case's contenders beside each other."""

    def run(case: Case) -> None:
        torch.manual_seed(0)
        torch.set_default_device(None)
        if clock.device().type == "cuda":
            sizes = sorted({contender.bytes for contender in case.contenders if contender.bytes})
            case = replace(case, contenders=(*case.contenders, *map(clock.copy_of, sizes)))
        record = measure.run(benchmark, case, request.config.getoption("--seconds"))
        if not benchmark.disabled:
            request.config.stash[RECORDS].append(record)

    return run


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    records = config.stash[RECORDS]
    if not records:
        return
    terminalreporter.section(f"{results.device_name()}, torch {torch.__version__}")
    for line in table.terminal(records):
        terminalreporter.write_line(line)
    if _native.missing:
        terminalreporter.write_line(f"\nThe native kernels are missing: {_native.missing}", yellow=True)
    busy = [record["others_load"] for record in records if (record["others_load"] or 0.0) > _machine.BUSY]
    if busy:
        text = f"\nThe machine was busy: others used up to {max(busy):.0%} of it in {len(busy)} of {len(records)} cases"
        terminalreporter.write_line(text, yellow=True)


def pytest_sessionfinish(session: pytest.Session) -> None:
    # Also after Ctrl-C, and after a case that failed: what was measured is kept.
    records = session.config.stash[RECORDS]
    if records and session.config.getoption("--save"):
        path = results.save(records, session.config.getoption("--results"))
        reporter = session.config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None:
            reporter.write_line(f"\n{len(records)} {'case' if len(records) == 1 else 'cases'} saved in {path}")
