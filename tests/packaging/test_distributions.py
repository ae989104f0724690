"""The sdist, the wheel made from it, and that wheel in a new environment."""

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.packaging.conftest import ROOT, Distributions, Environment

pytestmark = [pytest.mark.packaging, pytest.mark.slow]


def source_files(folder: str, pattern: str) -> set[str]:
    return {str(path.relative_to(ROOT)) for path in (ROOT / folder).rglob(pattern) if path.is_file()}


def test_sdist_holds_all_that_a_build_needs(distributions: Distributions) -> None:
    with tarfile.open(distributions.sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    needed = {"setup.py", "CMakeLists.txt", "pyproject.toml", "LICENSE", "README.md", "encoders_fast/py.typed"}
    assert needed | source_files("csrc", "*") | source_files("encoders_fast", "*.py") <= names
    built = (".so", ".pyc", ".o", "_build_report.json")
    assert not {name for name in names if name.endswith(built) or name.startswith("build")}


def test_wheel_holds_the_package_and_nothing_else(distributions: Distributions) -> None:
    assert distributions.wheel.name.endswith("-py3-none-linux_x86_64.whl")
    with zipfile.ZipFile(distributions.wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        [metadata_file] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = archive.read(metadata_file).decode().splitlines()
    libraries = {"encoders_fast/_cpu.so"} | ({"encoders_fast/_cuda.so"} if shutil.which("nvcc") else set())
    data = {"encoders_fast/py.typed", "encoders_fast/_build_report.json"}
    assert names == source_files("encoders_fast", "*.py") | libraries | data
    for line in ("License-Expression: Apache-2.0", "Requires-Dist: torch>=2.11", "Requires-Python: >=3.11"):
        assert line in metadata
    assert 'Requires-Dist: transformers>=5.0; extra == "models"' in metadata


def test_wheel_in_a_new_environment(distributions: Distributions, tmp_path: Path) -> None:
    """Installed as a user installs it, with pip resolving everything, and then tested from outside the source tree."""
    environment = Environment(tmp_path / "environment")
    subprocess.run([sys.executable, "-m", "venv", environment.folder], check=True)
    pins = (ROOT / "requirements-dev.txt").read_text().splitlines()
    pinned = [pin for pin in pins if pin.startswith(("torch==", "pytest", "scipy", "hypothesis"))]
    environment.succeed("-m", "pip", "install", *pinned, distributions.wheel)
    missing, _, package = environment.state()
    assert missing == "None"
    assert package == environment.package

    outside = tmp_path / "outside"
    # The modules reach every op, and this op's tests every native kernel; the rest has run against these files before.
    tests = [*(ROOT / "tests" / "modules").glob("*.py"), ROOT / "tests" / "ops" / "test_fourier_mixing.py"]
    tests += (ROOT / "tests" / "ops").glob("*_cases.py")  # what the modules' tests share with the ops'
    for path in (ROOT / "pyproject.toml", *tests, *(ROOT / "tests").glob("*.py")):
        to = outside / path.relative_to(ROOT)
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, to)
    print(environment.succeed("-m", "encoders_fast", "info", where=outside))
    print(environment.succeed("-m", "pytest", "-q", "-m", "not slow and not packaging", "tests", where=outside))
