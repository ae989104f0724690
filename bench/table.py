"""A case's record as text: lines for the terminal, cells for README.md."""

from __future__ import annotations

import math
from typing import Any

COLUMNS = ("contender", "median", "spread", "ratio", "to", "target", "GB/s", "GFLOP/s", "extra memory", "error")


def terminal(records: list[dict[str, Any]]) -> list[str]:
    """One block for each case."""
    lines: list[str] = []
    for record in records:
        lines += ["", f"{record['group']}  {record['case']}  ({record['rounds']} rounds)"]
        present = [line for line in record["contenders"] if "absent" not in line]
        lines += _aligned([COLUMNS, *(_cells(line) for line in present)])
        lines += [f"  {line['name']}: {line['absent']}" for line in record["contenders"] if "absent" in line]
    return lines


def _cells(line: dict[str, Any]) -> tuple[str, ...]:
    return (
        line["name"],
        time(line["median"]),
        f"{line['spread']:.0%}",
        ratio(line["ratio"]) if "ratio" in line else "",
        line.get("baseline", ""),
        target(line) if "target" in line else "",
        f"{line['gb_per_s']:.1f}" if "gb_per_s" in line else "",
        f"{line['gflop_per_s']:.1f}" if "gflop_per_s" in line else "",
        megabytes(line["extra_memory"]) if "extra_memory" in line else "",
        f"{line['error']:.1e}" if "error" in line else "",
    )


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    used = [column for column in range(len(COLUMNS)) if any(row[column] for row in rows[1:])]
    widths = {column: max(len(row[column]) for row in rows) for column in used}
    left = {0, 4, 5}
    return [
        "  "
        + "  ".join(
            row[column].ljust(widths[column]) if column in left else row[column].rjust(widths[column])
            for column in used
        ).rstrip()
        for row in rows
    ]


def markdown(records: list[dict[str, Any]], contenders: list[str]) -> list[str]:
    """One row for each case, one column for each of `contenders`; where that is empty, for each that there is."""
    names = contenders or list(dict.fromkeys(line["name"] for record in records for line in record["contenders"]))
    rows = [["", *names], ["---", *("---" for _ in names)]]
    for record in records:
        lines = {line["name"]: line for line in record["contenders"]}
        rows.append([record["case"], *(_cell(lines.get(name)) for name in names)])
    return ["| " + " | ".join(row) + " |" for row in rows]


def _cell(line: dict[str, Any] | None) -> str:
    if line is None:
        return ""
    if "absent" in line:
        return "cannot run here"
    parts = [time(line["median"])]
    if "ratio" in line:
        parts.append(f"**{ratio(line['ratio'])}**")
    if "target" in line:
        parts.append(target(line))
    if "extra_memory" in line:
        parts.append(f"+{megabytes(line['extra_memory'])}")
    return ", ".join(parts)


def baselines(records: list[dict[str, Any]], contenders: list[str]) -> dict[str, list[str]]:
    """baseline -> the contenders whose ratio is taken to it."""
    found: dict[str, list[str]] = {}
    for record in records:
        for line in record["contenders"]:
            if "baseline" in line and (not contenders or line["name"] in contenders):
                names = found.setdefault(line["baseline"], [])
                if line["name"] not in names:
                    names.append(line["name"])
    return found


def time(seconds: float) -> str:
    """Three digits."""
    if seconds < 1e-3:
        return f"{seconds * 1e6:.{0 if seconds >= 1e-4 else 1}f} us"
    if seconds < 1:
        return f"{seconds * 1e3:.{0 if seconds >= 0.1 else 1 if seconds >= 1e-2 else 2}f} ms"
    return f"{seconds:.2f} s"


def ratio(value: float) -> str:
    return f"{value:.1f}x" if value >= 10 else f"{value:.2f}x"


def target(line: dict[str, Any]) -> str:
    """What a contender has to reach, and whether it does."""
    wanted = line["target"]
    verdict = "met" if wanted["met"] else "missed"
    if wanted["against"] == line.get("baseline"):
        return f"target {wanted['at_least']:g}x: {verdict}"
    # Rounded down: 0.998 does not reach 1.
    reached = math.floor(100 * wanted["reached"]) / 100
    return f"target {wanted['at_least']:g}x {wanted['against']}: {verdict} at {ratio(reached)}"


def megabytes(value: int) -> str:
    return f"{value / 1e6:.1f} MB"
