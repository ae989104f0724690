"""The libraries that are installed here need torch's stable ABI as of torch 2.11, and nothing else of torch."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from encoders_fast import _native

FOLDER = Path(_native.__file__).parent
LIBRARIES = [path for path in (FOLDER / "_cpu.so", FOLDER / "_cuda.so") if path.exists()]


def output_of(*command: str | Path) -> list[str]:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def undefined(library: Path, kind: str) -> set[str]:
    """The names that the library expects from others: kind "U" if it cannot be loaded without them, "w" if it can."""
    rows = [line.strip().split(maxsplit=1) for line in output_of("nm", "-D", "-C", "--undefined-only", library)]
    return {name for letter, name in rows if letter == kind}


@pytest.mark.skipif(not LIBRARIES, reason=f"no native library: {_native.missing}")
@pytest.mark.parametrize("library", LIBRARIES, ids=lambda path: path.name)
def test_stable_abi(library: Path) -> None:
    audit = json.loads("".join(output_of(sys.executable, "-m", "torch_abi_audit.cli", "--json", library)))
    [verdict] = [found["torch"] for found in audit["extensions"] + audit["bundled_libs"]]
    assert verdict["uses_torch"]
    assert not verdict["unknown_shim_symbols"]
    assert tuple(map(int, verdict["min_torch_version"].split(".")))[:2] <= _native.OLDEST_TORCH
    # Other functions of torch may be used where they exist: as weak symbols, without which the library still loads.
    assert not set(verdict["unstable_symbols"]) & undefined(library, "U")


@pytest.mark.skipif(not LIBRARIES, reason=f"no native library: {_native.missing}")
@pytest.mark.parametrize("library", LIBRARIES, ids=lambda path: path.name)
def test_nothing_of_python_and_no_second_openmp(library: Path) -> None:
    rows = output_of("readelf", "-d", library)
    needed = {row.rpartition("[")[2].rstrip("]") for row in rows if "(NEEDED)" in row}
    unwanted = ("libpython", "libtorch_python", "libgomp", "libomp", "libiomp")
    assert not {name for name in needed if name.startswith(unwanted)}
    assert "libtorch_cpu.so" in needed
    assert not [row for row in rows if "RPATH" in row or "RUNPATH" in row]


def test_kernel_files_share_no_inline_functions() -> None:
    """A weak function that was compiled for AVX-512 may become the only copy in the library, also for older CPUs."""
    builds = sorted(FOLDER.parent.glob("build/native-*/kernels"), key=lambda folder: folder.stat().st_mtime)
    if not builds:
        pytest.skip("the package was not built here, so there are no object files to look into")
    objects = list(builds[-1].parent.glob("CMakeFiles/kernels_*.dir/**/*.o"))
    assert objects
    for file in objects:
        [folder] = [part for part in file.parts if part.startswith("kernels_")]
        namespace = f"encoders_fast::{folder.removeprefix('kernels_').removesuffix('.dir')}::"
        weak = [row for row in output_of("nm", "-C", "--defined-only", file) if row.split()[1] in "WwVvu"]
        assert not [row for row in weak if namespace not in row], file
