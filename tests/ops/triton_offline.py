"""Triton kernels as a GPU would get them, without one: what the launchers launch is recorded, and compiled offline.

python -m tests.ops.triton_offline        writes triton_resources.json anew, for the installed triton
"""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch

RESOURCES = Path(__file__).with_name("triton_resources.json")
ARCHITECTURES = (80, 90)


class Launch(NamedTuple):
    kernel: Any
    grid: tuple[int, ...]
    arguments: tuple[Any, ...]
    constants: dict[str, Any]

    @property
    def name(self) -> str:
        return self.kernel.__name__.strip("_")


@contextlib.contextmanager
def recorded(module: Any) -> Iterator[list[Launch]]:
    """Launches of `module`, an op's triton.py, which do nothing meanwhile."""
    launches: list[Launch] = []

    def launch(device: torch.device, kernel: Any, grid: Sequence[int], *arguments: Any, **constants: Any) -> None:
        launches.append(Launch(kernel, tuple(grid), arguments, constants))

    with mock.patch.object(module, "launch", launch):
        yield launches


def resources(launch: Launch, architecture: int) -> dict[str, int]:
    """Registers of a thread, bytes that they spill, bytes of shared memory."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.backends.nvidia import __file__ as nvidia
    from triton.compiler import ASTSource

    signature, constants, attributes = _specialized(launch)
    options = {name: launch.constants[name] for name in ("num_warps", "num_stages") if name in launch.constants}
    compiled = triton.compile(
        ASTSource(launch.kernel, signature, constants, attributes),
        target=GPUTarget("cuda", architecture, 32),
        options=options | {"enable_fp_fusion": True},
    )
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [str(Path(nvidia).with_name("bin") / "cuobjdump"), "--dump-resource-usage", file.name]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = {name: int(number) for name, number in re.findall(r"(REG|STACK|LOCAL):(\d+)", report)}
    return {
        "registers": found["REG"],
        "spilled": found["STACK"] + found["LOCAL"],
        "shared": int(compiled.metadata.shared),
    }


def _specialized(launch: Launch) -> tuple[dict[str, Any], dict[Any, Any], dict[Any, Any]]:
    """The signature, constants and divisibilities that triton's just-in-time compiler would find for the arguments."""
    from triton.backends.compiler import BaseBackend
    from triton.runtime.jit import native_specialize_impl

    signature: dict[str, Any] = {}
    constants: dict[Any, Any] = {}
    attributes: dict[Any, Any] = {}
    for i, parameter in enumerate(launch.kernel.params):
        if parameter.name in launch.constants:
            signature[parameter.name] = "constexpr"
            constants[(i,)] = launch.constants[parameter.name]
            continue
        signature[parameter.name], keys = native_specialize_impl(BaseBackend, launch.arguments[i], False, True, True)
        for path, kind, key in _leaves((i,), signature[parameter.name], keys):
            if kind == "constexpr":
                constants[path] = key
            elif key == "D":
                attributes[path] = [["tt.divisibility", 16]]
    return signature, constants, attributes


def _leaves(path: tuple[int, ...], kind: Any, key: Any) -> Iterator[tuple[tuple[int, ...], str, Any]]:
    """An argument, or all that are in a tuple of them, with their places."""
    if isinstance(kind, tuple):
        for i, (each, its_key) in enumerate(zip(kind, key, strict=True)):
            yield from _leaves((*path, i), each, its_key)
    else:
        yield path, kind, key


def measured(cases: dict[str, Callable[[], list[Launch]]]) -> dict[str, dict[str, dict[str, int]]]:
    """{"sm_80": {"<case> <kernel>": resources}}. A kernel's second launch in a case is <kernel>_2."""
    launches: dict[str, Launch] = {}
    for case, run in cases.items():
        names: list[str] = []
        for launch in run():
            names.append(launch.name)
            count = names.count(launch.name)
            launches[f"{case} {launch.name}" + (f"_{count}" if count > 1 else "")] = launch
    return {
        f"sm_{each}": {name: resources(launch, each) for name, launch in launches.items()} for each in ARCHITECTURES
    }


def main() -> int:
    import triton

    from tests.ops.triton_cases import CASES

    known = json.loads(RESOURCES.read_text()) if RESOURCES.exists() else {}
    known[triton.__version__] = measured(CASES)
    RESOURCES.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
