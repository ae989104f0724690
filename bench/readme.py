"""`python -m bench.readme`: fill README.md's tables from bench/results/*.json. `--check` only says whether it is due.

A table stands between two comments. The first names its group and, after a bar, the contenders to show:

    <!-- results: fourier_mixing_layer_norm forward | torch float32, cpu float32 -->
    <!-- end of results -->

`<!-- kernels on GPUs -->` in the first one's place asks for bench/gpu_kernels.py's.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import gpu_kernels, table, targets
from bench.results import FOLDER, ROOT, load
from encoders_fast import _machine

_TABLE = re.compile(
    r"(<!-- results: (?P<group>[^|>]*?)(?:\|(?P<contenders>[^>]*?))? -->\n).*?(<!-- end of results -->)", re.S
)
_KERNELS = re.compile(r"(<!-- kernels on GPUs -->\n).*?(<!-- end of results -->)", re.S)


def filled(text: str, folder: Path) -> str:
    """README's text with every table as the result files have it."""
    files = [load(path) for path in sorted(folder.glob("*.json"))]

    def fill(match: re.Match[str]) -> str:
        names = [name.strip() for name in (match["contenders"] or "").split(",") if name.strip()]
        lines = tables(files, match["group"].strip(), names)
        return match[1] + "\n" + "\n".join(lines) + "\n\n" + match[4]

    kernels = "\n".join(gpu_kernels.table(files))
    text = _KERNELS.sub(lambda match: f"{match[1]}\n{kernels}\n\n{match[2]}", text)
    return _TABLE.sub(fill, text)


def tables(files: list[dict[str, Any]], group: str, contenders: list[str]) -> list[str]:
    """One table for each device that has the group."""
    lines: list[str] = []
    for file in files:
        records = [record for record in file["cases"].values() if record["group"] == group]
        if records:
            lines += (
                ["", *device_table(file, records, contenders)] if lines else device_table(file, records, contenders)
            )
    return lines or [
        "Not measured yet; `pytest bench/ --save` on a quiet machine, then `make readme`, fills this table."
    ]


def device_table(file: dict[str, Any], records: list[dict[str, Any]], contenders: list[str]) -> list[str]:
    measured = {line["name"] for record in records for line in record["contenders"] if "absent" not in line}
    contenders = [name for name in contenders if name in measured] or contenders
    lines = [f"{file['device']}.", "", *table.markdown(records, contenders), ""]
    for baseline, names in table.baselines(records, contenders).items():
        lines.append(f"Times as fast as {baseline}: {', '.join(names)}.")
    lines += targets.limits(records)
    dates = dict.fromkeys(record["run"] for record in records)
    return lines + [provenance(file["runs"][date], [one for one in records if one["run"] == date]) for date in dates]


def provenance(run: dict[str, Any], records: list[dict[str, Any]]) -> str:
    """When and with what these records were measured, and whether the machine was busy meanwhile."""
    commit = f"commit {run['commit'][:10]}" if run["commit"] else "no commit"
    changed = " with uncommitted changes" if run["dirty"] else ""
    parts = [f"torch {run['versions']['torch']}"]
    if run["versions"]["transformers"]:
        parts.append(f"transformers {run['versions']['transformers']}")
    parts += [f"kernels for {run['instruction_set'] or 'no instruction set: not built'}", f"{commit}{changed}"]
    busy = max(record["others_load"] or 0.0 for record in records)
    if busy > _machine.BUSY:
        parts.append(f"on a busy machine (others used up to {busy:.0%} of it)")
    return f"Measured on {run['date'][:10]}: {', '.join(parts)}."


def main(arguments: Sequence[str] | None = None, root: Path = ROOT, folder: Path = FOLDER) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.readme", description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit status 1 where README.md is stale")
    options = parser.parse_args(arguments)
    readme = root / "README.md"
    old = readme.read_text()
    new = filled(old, folder)
    if old == new:
        return 0
    if options.check:
        print("README.md does not show what bench/results holds; `make readme` updates it", file=sys.stderr)
        return 1
    readme.write_text(new)
    print("README.md updated")
    return 0


if __name__ == "__main__":
    sys.exit(main())
