"""Cases' records as text: lines for the terminal, cells for README.md."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from bench import targets, text

COLUMNS = ("contender", "median", "spread", "ratio", "to", "target", "GB/s", "GFLOP/s", "extra memory", "error")


def terminal(records: list[dict[str, Any]]) -> list[str]:
    """One block for each case, and one for all of a group that lie along an axis."""
    lines: list[str] = []
    for group in dict.fromkeys(record["group"] for record in records):
        mine = [record for record in records if record["group"] == group]
        if mine[0]["axis"]:
            lines += ["", f"{group}", *_aligned(_curve(mine, []), {0})]
        else:
            lines += [line for record in mine for line in _block(record)]
        lines += [f"  {line}" for line in targets.limits(mine)]
    return lines


def _block(record: dict[str, Any]) -> list[str]:
    present = [line for line in record["contenders"] if "absent" not in line]
    return [
        "",
        f"{record['group']}  {record['case']}  ({record['rounds']} rounds)",
        *_aligned([COLUMNS, *(_cells(line) for line in present)], {0, 4, 5}),
        *(f"  {line['name']}: {line['absent']}" for line in record["contenders"] if "absent" in line),
    ]


def _cells(line: dict[str, Any]) -> tuple[str, ...]:
    return (
        line["name"],
        text.time(line["median"]),
        f"{line['spread']:.0%}",
        text.ratio(line["ratio"]) if "ratio" in line else "",
        line.get("baseline", ""),
        targets.speed(line),
        f"{line['gb_per_s']:.1f}" if "gb_per_s" in line else "",
        f"{line['gflop_per_s']:.1f}" if "gflop_per_s" in line else "",
        text.memory(line["extra_memory"]) if "extra_memory" in line else "",
        f"{line['error']:.1e}" if "error" in line else "",
    )


def _aligned(rows: Sequence[Sequence[str]], left: Collection[int]) -> list[str]:
    used = [column for column in range(len(rows[0])) if any(row[column] for row in rows[1:])]
    widths = {column: max(len(row[column]) for row in rows) for column in used}
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
    head, *rows = _curve(records, contenders) if records[0].get("axis") else _grid(records, contenders)
    return ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)]


def _grid(records: list[dict[str, Any]], contenders: list[str]) -> list[list[str]]:
    names = contenders or _names(records)
    rows = [["", *names]]
    for record in records:
        lines = {line["name"]: line for line in record["contenders"]}
        rows.append([record["case"], *(_cell(lines.get(name)) for name in names)])
    return rows


def _curve(records: list[dict[str, Any]], contenders: list[str]) -> list[list[str]]:
    """A row for each point, two columns for each contender."""
    names = contenders or _names(records)
    rows = [[records[0]["axis"], *(cell for name in names for cell in (name, "memory"))]]
    for record in sorted(records, key=lambda record: float(record["case"])):
        lines = {line["name"]: line for line in record["contenders"]}
        rows.append([record["case"], *(cell for name in names for cell in _time_and_memory(lines.get(name, {})))])
    return rows


def _time_and_memory(line: dict[str, Any]) -> tuple[str, str]:
    if "median" not in line:
        return line.get("absent", ""), ""
    return text.time(line["median"]), f"+{text.memory(line['extra_memory'])}" if "extra_memory" in line else ""


def _names(records: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(line["name"] for record in records for line in record["contenders"]))


def _cell(line: dict[str, Any] | None) -> str:
    if line is None:
        return ""
    if "absent" in line:
        return "cannot run here"
    parts = [text.time(line["median"])]
    if "ratio" in line:
        parts.append(f"**{text.ratio(line['ratio'])}**")
    if wanted := targets.speed(line):
        parts.append(wanted)
    if "extra_memory" in line:
        parts.append(f"+{text.memory(line['extra_memory'])}")
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
