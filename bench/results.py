"""bench/results/<device>.json: what was measured, where, and with what."""

from __future__ import annotations

import datetime
import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import torch

from bench import clock
from encoders_fast import _info, _machine

ROOT = Path(__file__).parent.parent
FOLDER = Path(__file__).parent / "results"


def device_name() -> str:
    """The GPU where the benches run on one, else the processor and its threads."""
    if clock.device().type == "cuda":
        return torch.cuda.get_device_name()
    return f"{_machine.cpu_name()}, {torch.get_num_threads()} threads"


def slug(name: str) -> str:
    """A file name made of a device's name."""
    plain = re.sub(r"\((r|tm|c)\)", "", name.lower())
    return re.sub(r"[^a-z0-9.]+", "-", plain).strip("-")


def conditions() -> dict[str, Any]:
    """All that a reader needs to judge a number, or to measure it again."""
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        # Where a copy without its history is measured, COMMIT says what it is a copy of.
        "commit": os.environ.get("COMMIT") or git("rev-parse", "HEAD"),
        # What a bench run writes itself does not change what it measures.
        "dirty": bool(git("status", "--porcelain", "--", ".", ":!bench/results", ":!README.md")),
        "versions": _info.versions(),
        "build": _info.build(),
        "threads": torch.get_num_threads(),
        "instruction_set": _info.instruction_set(),
        "gpu": _info.gpu(),
        "device_type": clock.device().type,
        "environment": {
            name: value
            for name, value in sorted(os.environ.items())
            if name.startswith(("ENCODERS_FAST_", "OMP_", "MKL_", "KMP_", "GOMP_", "ONEDNN_", "LD_PRELOAD", "MALLOC_"))
        },
    }


def git(*command: str) -> str | None:
    """The answer, or None outside a repository or before its first commit."""
    try:
        answer = subprocess.run(["git", "-C", str(ROOT), *command], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return answer.stdout.strip()


def save(records: list[dict[str, Any]], folder: Path = FOLDER, device: str | None = None) -> Path:
    """Write `records` into the device's file. Cases that were not run now keep what they had, and its conditions."""
    device = device or device_name()
    path = folder / f"{slug(device)}.json"
    content: dict[str, Any] = load(path) if path.exists() else {"device": device, "runs": {}, "cases": {}}
    run = conditions()
    content["runs"][run["date"]] = run
    for record in records:
        content["cases"][f"{record['group']} {record['case']}"] = record | {"run": run["date"]}
    needed = {record["run"] for record in content["cases"].values()}
    content["runs"] = {date: run for date, run in content["runs"].items() if date in needed}
    folder.mkdir(parents=True, exist_ok=True)
    # Whole or not at all: an interrupted write must not cost the older results.
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(content, indent=1) + "\n")
    unfinished.replace(path)
    return path


def load(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())
