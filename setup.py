"""Compiles the native libraries with CMake, and installs pure Python where that is impossible.

pyproject.toml describes the package and CMakeLists.txt the sources; this file joins the two. Environment variables:

EF_PURE_PYTHON=1     do not compile anything
EF_REQUIRE_NATIVE=1  fail instead of installing pure Python
EF_CUDA=1 | 0        build the CUDA library or not; by default it is built where torch has CUDA and nvcc is found
EF_CUDA_ARCHS        its targets, "80-real;90a-real" if unset
EF_PYTHON            the interpreter whose torch to build against, if it is not the one that runs this
MAX_JOBS             compilers at a time
"""

import hashlib
import importlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

ROOT = Path(__file__).parent.resolve()
PACKAGE = "encoders_fast"
CPU, CUDA = "_cpu", "_cuda"  # targets of CMakeLists.txt; the files are _cpu.so and _cuda.so
REPORT = "_build_report.json"  # read by encoders_fast/_native.py: why a library was not built
OLDEST_TORCH = (2, 11)
DEFAULT_CUDA_ARCHS = "80-real;90a-real"
COMPILER_SETTINGS = ("CC", "CXX", "CFLAGS", "CXXFLAGS", "LDFLAGS", "CUDAFLAGS", "CUDAHOSTCXX")  # that CMake reads


class CannotBuildError(Exception):
    """Why a native library cannot be built here, in words that complete "it was not compiled: ..."."""


# What the machine has -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Torch:
    directory: str
    version: str
    cuda: str  # the CUDA version that torch was built for; empty without CUDA


# Reads torch/version.py instead of importing torch, which would take seconds.
FIND_TORCH = """
import importlib.util, json, pathlib
directory = pathlib.Path(importlib.util.find_spec("torch").origin).parent
version = {}
exec((directory / "version.py").read_text(), version)
print(json.dumps([str(directory), str(version["__version__"]), version.get("cuda") or ""]))
"""


def find_torch() -> Torch:
    """The torch of the environment that is installed into, also from within pip's build isolation.

    pip isolates a build by PYTHONPATH alone and keeps the interpreter, so the same interpreter without PYTHONPATH sees
    the environment that pip installs into. A front end that builds in an environment of its own (build, uv) needs
    EF_PYTHON.
    """
    plain = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONNOUSERSITE")}
    interpreter = os.environ.get("EF_PYTHON") or sys.executable
    for environment in (dict(os.environ), plain):
        found = subprocess.run([interpreter, "-c", FIND_TORCH], env=environment, capture_output=True, text=True)
        if found.returncode == 0:
            torch = Torch(*json.loads(found.stdout))
            break
    else:
        raise CannotBuildError(
            f"{interpreter} has no torch to build against; install torch first, "
            "or name an interpreter that has it in EF_PYTHON"
        )
    if tuple(int(part) for part in torch.version.split(".")[:2]) < OLDEST_TORCH:
        raise CannotBuildError(f"torch {torch.version} is older than {'.'.join(map(str, OLDEST_TORCH))}")
    if not Path(torch.directory, "include/torch/csrc/stable/library.h").exists():
        raise CannotBuildError(f"the torch in {torch.directory} came without its C++ headers")
    return torch


def find_tool(name: str, module: str, folder_attribute: str) -> str:
    """A build tool from its PyPI package, which an isolated build has installed, or else from PATH."""
    try:
        folder = getattr(importlib.import_module(module), folder_attribute)
    except (ImportError, AttributeError):
        folder = ""
    found = shutil.which(name, path=folder) or shutil.which(name)
    if found is None:
        raise CannotBuildError(f"{name} was not found; `pip install {module}` provides it")
    return found


def check_compiler() -> None:
    wanted = os.environ.get("CXX")
    names = [wanted.split()[0]] if wanted else ["c++", "g++", "clang++"]
    if not any(map(shutil.which, names)):
        raise CannotBuildError(f"no C++ compiler was found ({', '.join(names)})")


def find_nvcc() -> str | None:
    """nvcc, or None. A wrapper script is followed to the real one, from whose place CMake derives the toolkit's."""
    homes = [home for home in (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")) if home]
    candidates = [os.environ.get("CUDACXX") or "", *(f"{home}/bin/nvcc" for home in homes), "nvcc"]
    nvcc = next(filter(None, map(shutil.which, [*candidates, "/usr/local/cuda/bin/nvcc"])), None)
    if nvcc is None:
        return None
    with tempfile.NamedTemporaryFile(suffix=".cu") as empty:
        dry_run = subprocess.run([nvcc, "--dryrun", "-c", empty.name], capture_output=True, text=True)
    top = re.search(r"^#\$ _?TOP=(.+)$", dry_run.stderr, re.MULTILINE)
    real = Path(top.group(1).strip(), "bin/nvcc").resolve() if top else Path(nvcc)
    return str(real if real.exists() else nvcc)


def cuda_compiler(torch: Torch) -> tuple[str | None, str | None]:
    """(nvcc, None) if the CUDA library is to be built, otherwise (None, why not)."""
    wish = os.environ.get("EF_CUDA") or "default"
    if wish == "0":
        return None, "EF_CUDA=0 was set"
    if wish == "default" and not torch.cuda:
        return None, f"torch {torch.version} has no CUDA, and EF_CUDA=1 was not set"
    nvcc = find_nvcc()
    if nvcc is None and wish != "default":
        raise CannotBuildError(f"EF_CUDA={wish} was set, and nvcc was not found")
    return nvcc, None if nvcc else "nvcc was not found"


# Building -----------------------------------------------------------------------------------------


def run(command: list[str], what: str, summarize: Callable[[list[str]], str]) -> None:
    """Runs a build step and shows its output, of which an error carries the summary."""
    print(*command, flush=True)
    lines = []
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen(command, **pipes, text=True, errors="replace") as step:
        for line in step.stdout or ():
            print(line, end="", flush=True)
            if line.strip():
                lines.append(line.strip())
    if step.returncode != 0:
        raise CannotBuildError(f"{what} failed: {summarize(lines)}")


def cmake_summary(lines: list[str]) -> str:
    """The beginning of CMake's first error message, which stands in the lines after the word."""
    start = next((i for i, line in enumerate(lines) if line.startswith("CMake Error")), len(lines) - 1)
    return " ".join(lines[start + 1 : start + 4] or lines[-1:])


def compiler_summary(lines: list[str]) -> str:
    """The first line that a compiler or the linker calls an error."""
    return next((line for line in lines if re.search(r"error\s*:|undefined reference", line)), "".join(lines[-1:]))


def cmake_build(torch: Torch, nvcc: str | None) -> list[Path]:
    """Configures and builds everything; the libraries, which lie in the build directory.

    The directory stays for the next time and is named after all that would make its contents wrong.
    """
    cmake = find_tool("cmake", "cmake", "CMAKE_BIN_DIR")
    ninja = find_tool("ninja", "ninja", "BIN_DIR")
    settings = {"EF_TORCH_DIR": torch.directory, "EF_CUDA": "ON" if nvcc else "OFF"}
    if nvcc:
        settings["CMAKE_CUDA_COMPILER"] = nvcc
        settings["EF_CUDA_ARCHS"] = os.environ.get("EF_CUDA_ARCHS") or DEFAULT_CUDA_ARCHS
    compilers = [os.environ.get(name) for name in COMPILER_SETTINGS]
    key = hashlib.sha256(repr((torch, settings, compilers)).encode()).hexdigest()[:8]
    directory = ROOT / "build" / f"native-{key}"

    definitions = [f"-D{name}={value}" for name, value in {**settings, "CMAKE_MAKE_PROGRAM": ninja}.items()]
    configure = [cmake, "-G", "Ninja", "-S", str(ROOT), "-B", str(directory), *definitions]
    run(configure, "configuring with CMake", cmake_summary)
    jobs = os.environ.get("MAX_JOBS") or str(os.cpu_count())
    run([cmake, "--build", str(directory), "-j", jobs], "compiling", compiler_summary)
    return [directory / f"{library}.so" for library in ([CPU, CUDA] if nvcc else [CPU])]


def build() -> tuple[list[Path], dict[str, str | None]]:
    """The built libraries, and for each that is missing the reason."""
    try:
        if os.environ.get("EF_PURE_PYTHON") == "1":
            raise CannotBuildError("EF_PURE_PYTHON=1 was set")
        if platform.system() != "Linux":
            raise CannotBuildError(f"native code is supported on Linux, not on {platform.system()}")
        check_compiler()
        torch = find_torch()
        nvcc, why_no_cuda = cuda_compiler(torch)
        try:
            return cmake_build(torch, nvcc), {CPU: None, CUDA: why_no_cuda}
        except CannotBuildError as failure:
            if nvcc is None or native_is_required():
                raise
            # CUDA was only the default: the CPU library alone, if that can be built.
            return cmake_build(torch, None), {CPU: None, CUDA: str(failure)}
    except CannotBuildError as failure:
        return [], {CPU: str(failure), CUDA: str(failure)}


def native_is_required() -> bool:
    return os.environ.get("EF_REQUIRE_NATIVE") == "1" or os.environ.get("EF_CUDA") == "1"


# Installing ---------------------------------------------------------------------------------------


def install(libraries: Iterable[Path], reasons: dict[str, str | None], package: Path) -> None:
    """Puts the libraries into the package folder, each by a rename: a process that has the old file open keeps it."""
    package.mkdir(parents=True, exist_ok=True)
    for stale in {f"{CPU}.so", f"{CUDA}.so"} - {library.name for library in libraries}:
        (package / stale).unlink(missing_ok=True)  # an earlier build left it, and nobody asked for it now
    for library in libraries:
        arriving = package / f".{library.name}.arriving"
        shutil.copy2(library, arriving)
        os.replace(arriving, package / library.name)
    (package / REPORT).write_text(json.dumps(reasons, indent=2) + "\n", encoding="utf-8")


class NativeBuild(build_ext):
    """Everything is built before anything is installed, so a failure leaves no half of it behind."""

    def run(self) -> None:
        in_source = self.inplace or self.editable_mode
        package = (ROOT if in_source else Path(self.build_lib)) / PACKAGE
        libraries, reasons = build()
        if reasons[CPU] is not None and native_is_required():
            raise CompileError(f"encoders_fast could not be compiled: {reasons[CPU]}")
        install(libraries, reasons, package)
        for library, reason in reasons.items():
            if reason is not None:
                print(f"warning: encoders_fast{library}: it was not compiled: {reason}", file=sys.stderr)

    def get_outputs(self) -> list[str]:
        return []  # the libraries are copied with the rest of the build folder

    def get_output_mapping(self) -> dict[str, str]:
        return {}


class Wheel(bdist_wheel):
    """One wheel for every CPython, since the libraries link torch's stable ABI and not Python."""

    def run(self) -> None:
        package = Path(self.get_finalized_command("build").build_lib, PACKAGE)
        shutil.rmtree(package, ignore_errors=True)  # of an earlier build, perhaps with files that are gone since
        self.run_command("build")
        self.skip_build = True
        if not any(package.glob("*.so")):
            self.root_is_pure = True
            self.distribution.ext_modules = []  # or setuptools would put the files where compiled ones belong
        super().run()

    def get_tag(self) -> tuple[str, str, str]:
        return ("py3", "none", super().get_tag()[2])


setup(
    ext_modules=[Extension(f"{PACKAGE}.{CPU}", sources=[])],
    cmdclass={"build_ext": NativeBuild, "bdist_wheel": Wheel},
)
