"""What contenders have to reach: in a record, and as text with the verdict."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from bench import text
from bench.contender import Contender, Limit

_NUMBERS = {"median": "time", "extra_memory": "extra memory", "memory": "extra memory and weights"}


def in_record(contender: Contender, medians: dict[str, float]) -> list[dict[str, Any]]:
    """Targets with what was reached. Limits come as they are: they may compare cases, which a record knows one of."""
    found = []
    for target in contender.targets:
        if isinstance(target, Limit):
            found.append(asdict(target))
        elif target.against in medians:
            reached = medians[target.against] / medians[contender.name]
            found.append(asdict(target) | {"reached": reached, "met": reached >= target.at_least})
    return found


def speed(line: dict[str, Any]) -> str:
    """For a contender's cell: what it has to reach, and whether it does."""
    return ", ".join(_speed(line, wanted) for wanted in line.get("targets", ()) if "against" in wanted)


def _speed(line: dict[str, Any], wanted: dict[str, Any]) -> str:
    verdict = "met" if wanted["met"] else "missed"
    if wanted["against"] == line.get("baseline"):
        return f"target {wanted['at_least']:g}x: {verdict}"
    # Rounded down: 0.998 does not reach 1.
    reached = math.floor(100 * wanted["reached"]) / 100
    return f"target {wanted['at_least']:g}x {wanted['against']}: {verdict} at {text.ratio(reached)}"


def limits(records: list[dict[str, Any]]) -> list[str]:
    """For the foot of a group's table: a sentence for each limit."""
    by_case = {record["case"]: {line["name"]: line for line in record["contenders"]} for record in records}
    return [
        f"{line['name']}, {record['case']} {record.get('axis') or ''}".rstrip() + f": {_limit(line, wanted, by_case)}."
        for record in records
        for line in record["contenders"]
        for wanted in line.get("targets", ())
        if "at_most" in wanted
    ]


def _limit(line: dict[str, Any], wanted: dict[str, Any], by_case: dict[str, dict[str, Any]]) -> str:
    number, at_most, of = wanted["number"], wanted["at_most"], wanted["of"]
    reached = _number(line, number)
    show: Callable[[float], str] = text.time if number == "median" else text.memory
    bound = show(at_most)
    if of is not None:
        other = _number(by_case.get(of, {}).get(line["name"], {}), number)
        reached = reached / other if reached is not None and other else None
        show, bound = _rounded_up, f"{at_most:g}x that of {of}"
    what = f"{_NUMBERS[number]} at most {bound}"
    if reached is None:
        return f"{what}: not measured"
    return f"{what}: {'met' if reached <= at_most else 'missed'} at {show(reached)}"


def _rounded_up(ratio: float) -> str:
    """4.601 is more than 4.6. What rounding left in the last digits of a quotient is not."""
    return text.ratio(math.ceil(100 * ratio - 1e-9) / 100)


def _number(line: dict[str, Any], number: str) -> float | None:
    if number != "memory":
        return line.get(number)
    return line["extra_memory"] + line["weights"] if {"extra_memory", "weights"} <= line.keys() else None
