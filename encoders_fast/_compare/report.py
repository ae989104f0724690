"""The result of a comparison, as JSON holds it and as a person reads it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

COLUMNS = ("", "median", "spread", "tokens/s", "peak memory")
DEMO_COLUMNS = (
    "model",
    "parameters",
    "batch",
    "transformers",
    "encoders_fast",
    "faster",
    "memory, transformers",
    "encoders_fast",
    "difference",
)


def side(name: str, dtype: str, seconds: list[float], tokens: int, memory: int | str) -> dict[str, Any]:
    """One library's row. `tokens` are those of one round; `memory` is bytes, or why there are none."""
    median = statistics.median(seconds)
    return {
        "name": name,
        "dtype": dtype,
        "seconds": seconds,
        "median": median,
        "spread": interquartile_range(seconds) / median,
        "tokens_per_second": tokens / median,
        "peak_memory": memory if isinstance(memory, int) else None,
        "peak_memory_missing": memory if isinstance(memory, str) else None,
    }


def interquartile_range(values: list[float]) -> float:
    """Between the quartiles; 0 for a single value."""
    if len(values) < 2:
        return 0.0
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return third - first


def render(result: dict[str, Any]) -> str:
    """One checkpoint's table and what stands around it."""
    ours, theirs = result["ours"], result["transformers"]
    table = _aligned([COLUMNS, *(_cells(row) for row in (theirs, ours)), _ratio_cells(ours, theirs)])
    rule = "-" * max(len(line) for line in table)
    lines = [*_heading(result), "", table[0], rule, *table[1:3], rule, table[3], ""]
    lines += _differences(result)
    lines += ["backends that ran, per forward: " + (_backends(result["backends"]) or "none of this library's ops")]
    lines += [f"peak memory: {result['peak_memory_is']}"]
    lines += [f"note: {note}" for note in result["notes"]]
    return "\n".join(lines)


def render_demos(results: list[dict[str, Any]]) -> str:
    """A table with a line for each model."""
    first = results[0]
    table = _aligned([DEMO_COLUMNS, *map(_demo_cells, results)])
    rule = "-" * max(len(line) for line in table)
    lines = [
        f"transformers {first['versions']['transformers']} and encoders_fast {first['versions']['encoders_fast']} in"
        f" turn, {first['repeats']} rounds each, on {first['device_name']}, {first['threads']} threads",
        first["text"],
        "",
        table[0],
        rule,
        *table[1:],
        rule,
        "",
    ]
    for result in results:
        backends = _backends(result["backends"]) or "none of this library's ops"
        lines.append(f"{result['class']}, {result['checkpoint']}: {backends}")
        lines += [f"  note: {note}" for note in result["notes"]]
    lines.append(f"memory: {first['peak_memory_is']}")
    lines.append(f"difference: relative L2, at most {first['limit']:.0e} in {first['ours']['dtype']}")
    return "\n".join(lines)


def _demo_cells(result: dict[str, Any]) -> tuple[str, ...]:
    ours, theirs = result["ours"], result["transformers"]
    worst = max(found["l2"] for found in result["differences"].values())
    return (
        result["class"],
        f"{result['parameters'] / 1e6:.0f} M",
        f"{result['batch']} x {result['length']}",
        seconds(theirs["median"]),
        seconds(ours["median"]),
        _ratio_cells(ours, theirs)[3],
        megabytes(theirs["peak_memory"]),
        megabytes(ours["peak_memory"]),
        f"{worst:.1e}" + ("" if result["agree"] else " THEY DIFFER"),
    )


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _heading(result: dict[str, Any]) -> list[str]:
    return [
        f"{result['class']}, {result['parameters'] / 1e6:.1f} M parameters, from {result['checkpoint']}",
        f"{result['text']}: {result['text_tokens']:,} tokens; {result['repeats']} rounds of {result['batch']} x"
        f" {result['length']}, the two libraries in turn",
        f"{result['device_name']}, {result['threads']} threads",
    ]


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        f"{row['name']} {row['dtype']}",
        seconds(row["median"]),
        f"{row['spread']:.0%}",
        f"{row['tokens_per_second']:,.0f}",
        megabytes(row["peak_memory"]),
    )


def _ratio_cells(ours: dict[str, Any], theirs: dict[str, Any]) -> tuple[str, ...]:
    memory = ""
    if ours["peak_memory"] and theirs["peak_memory"]:
        memory = f"{ours['peak_memory'] / theirs['peak_memory']:.2f}x"
    speed = f"{theirs['median'] / ours['median']:.2f}x"
    return "encoders_fast / transformers", f"{ours['median'] / theirs['median']:.2f}x", "", speed, memory


def _differences(result: dict[str, Any]) -> list[str]:
    lines = [
        f"largest error in {name}: {found['absolute']:.1e}, {found['relative']:.1e} of the output's RMS;"
        f" relative L2 {found['l2']:.1e}"
        for name, found in result["differences"].items()
    ]
    verdict = "they agree" if result["agree"] else "THEY DIFFER"
    return [*lines, f"{verdict}: the limit for relative L2 in {result['ours']['dtype']} is {result['limit']:.0e}"]


def _backends(backends: dict[str, dict[str, int]]) -> str:
    return ", ".join(f"{op} on {name} x {calls}" for op, rows in backends.items() for name, calls in rows.items())


def seconds(value: float) -> str:
    return f"{value * 1e3:.1f} ms" if value < 1 else f"{value:.2f} s"


def megabytes(value: int | None) -> str:
    return "not measured" if value is None else f"{value / 1e6:,.0f} MB"
