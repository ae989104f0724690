"""Copies of the source tree, and environments to install them into."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOT_INHERITED = ("EF_", "ENCODERS_FAST_", "PYTHONPATH")
PACKAGE_FILES = ("encoders_fast*", "__editable__*", "*.pth")
SHOW_STATE = "from encoders_fast import _native as n; print(n.missing, n.cuda_missing, n.__file__, sep='\\n')"


@dataclass(frozen=True)
class Environment:
    """A Python environment, and commands that run in it, outside any source tree."""

    folder: Path

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    @property
    def package(self) -> Path:
        return next((self.folder / "lib").glob("python3*")) / "site-packages" / "encoders_fast"

    def run(self, *arguments: object, where: Path | None = None, **settings: str) -> subprocess.CompletedProcess[str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(NOT_INHERITED)}
        return subprocess.run(
            [str(self.python), *map(str, arguments)],
            cwd=where or self.folder,
            env={**inherited, **settings},
            capture_output=True,
            text=True,
            check=False,
        )

    def succeed(self, *arguments: object, where: Path | None = None, **settings: str) -> str:
        process = self.run(*arguments, where=where, **settings)
        assert process.returncode == 0, f"{arguments}\n{process.stdout[-6000:]}\n{process.stderr[-6000:]}"
        return process.stdout

    def pip_install(self, *arguments: object, **settings: str) -> str:
        return self.succeed("-m", "pip", "install", "-v", "--no-deps", *arguments, **settings)

    def state(self) -> tuple[str, str, Path]:
        """Why the CPU library is missing there, why the CUDA library is, and where the package lies."""
        missing, cuda_missing, file = self.succeed("-c", SHOW_STATE).splitlines()
        return missing, cuda_missing, Path(file).parent


NewEnvironment = Callable[..., Environment]


@pytest.fixture
def new_environment(tmp_path: Path) -> NewEnvironment:
    """Makes environments that hold what this one holds, by symbolic links, except this package and what is named."""

    def make(name: str = "environment", without: Sequence[str] = ()) -> Environment:
        environment = Environment(tmp_path / name)
        venv.create(environment.folder, symlinks=True)
        packages = environment.package.parent
        for installed in Path(sysconfig.get_path("purelib")).iterdir():
            if not any(installed.match(pattern) for pattern in (*PACKAGE_FILES, *without)):
                (packages / installed.name).symlink_to(installed)
        return environment

    return make


def copy_source(to: Path) -> Path:
    """What a fresh clone would hold: nothing that was built, installed or cached here."""
    built = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__", "*.so", "_build_report.json")
    return shutil.copytree(ROOT, to, ignore=built)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Without the ops' native code, which takes long to compile and changes nothing about the ways to install."""
    copy = copy_source(tmp_path / "source")
    for folder in (copy / "csrc").iterdir():
        if folder.is_dir() and folder.name != "common":
            shutil.rmtree(folder)
    return copy


@dataclass(frozen=True)
class Distributions:
    sdist: Path
    wheel: Path


@pytest.fixture(scope="session")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Distributions:
    """The sdist, and the wheel that is built from what the sdist holds."""
    folder = tmp_path_factory.mktemp("distributions")
    source = copy_source(folder / "source")
    here = Environment(Path(sys.prefix))
    settings = {"EF_REQUIRE_NATIVE": "1", "EF_CUDA": "1" if shutil.which("nvcc") else "0"}
    here.succeed("-m", "build", "--no-isolation", "--outdir", folder, where=source, **settings)
    return Distributions(next(folder.glob("*.tar.gz")), next(folder.glob("*.whl")))
