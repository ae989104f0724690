"""README's table of the kernels for GPUs: which have been measured on one, by the result files, and which by none."""

from __future__ import annotations

from typing import Any

from encoders_fast import _dispatch

BACKENDS = ("triton", "cuda")
_NONE = "no GPU has run it yet"


def table(files: list[dict[str, Any]]) -> list[str]:
    """Lines of Markdown. `files` are the contents of result files; those of CPUs count for nothing."""
    on_gpu = [file for file in files if any(run.get("device_type") == "cuda" for run in file["runs"].values())]
    rows = [
        [f"`{op}`", f"`{row.name}`", *(_devices(on_gpu, f"{op} {job}", row.name) for job in _JOBS)]
        for op, table in _dispatch.tables().items()
        for row in table
        if row.name in BACKENDS
    ]
    head = ["op", "backend", *_JOBS]
    return ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows)]


_JOBS = ("forward", "forward and backward")


def _devices(files: list[dict[str, Any]], group: str, backend: str) -> str:
    found = [
        file["device"]
        for file in files
        for case in file["cases"].values()
        for line in case["contenders"]
        if case["group"] == group and line["name"].startswith(f"{backend} ") and "median" in line
    ]
    return ", ".join(dict.fromkeys(found)) or _NONE
