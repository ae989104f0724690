"""Every way to install the package where everything is there to compile it."""

import shutil
from pathlib import Path

import pytest

from tests.packaging.conftest import SHOW_STATE, NewEnvironment

pytestmark = [pytest.mark.packaging, pytest.mark.slow]


def cmake_setting(source: Path, name: str) -> str:
    [cache] = source.glob("build/native-*/CMakeCache.txt")
    [line] = [line for line in cache.read_text().splitlines() if line.startswith(f"{name}:")]
    return line.partition("=")[2]


def test_isolated_build_uses_the_torch_that_is_installed(source: Path, new_environment: NewEnvironment) -> None:
    environment = new_environment()
    output = environment.pip_install(source, EF_REQUIRE_NATIVE="1")
    assert "py3-none-linux_x86_64.whl" in output
    assert cmake_setting(source, "EF_TORCH_DIR") == str(environment.package.parent / "torch")
    missing, cuda_missing, package = environment.state()
    assert (missing, package) == ("None", environment.package)
    assert "has no CUDA" in cuda_missing


@pytest.mark.parametrize("isolation", [[], ["--no-build-isolation"]], ids=["isolated", "not isolated"])
def test_editable(source: Path, new_environment: NewEnvironment, isolation: list[str]) -> None:
    environment = new_environment()
    environment.pip_install(*isolation, "--editable", source, EF_REQUIRE_NATIVE="1")
    missing, _, package = environment.state()
    assert (missing, package) == ("None", source / "encoders_fast")


def test_in_place_and_again_after_a_change(source: Path, new_environment: NewEnvironment) -> None:
    environment = new_environment()
    environment.succeed("setup.py", "build_ext", "--inplace", where=source, EF_REQUIRE_NATIVE="1")
    first = (source / "encoders_fast" / "_cpu.so").stat()
    assert environment.succeed("-c", SHOW_STATE, where=source).startswith("None\n")

    schemas = source / "csrc" / "bindings.cpp"
    schemas.write_text(schemas.read_text().replace("build_info() -> str", "build_info() -> str ", 1))
    output = environment.succeed("setup.py", "build_ext", "--inplace", where=source, EF_REQUIRE_NATIVE="1")
    assert output.count("Building CXX object") == 1
    assert (source / "encoders_fast" / "_cpu.so").stat().st_ino != first.st_ino  # not written over: it may be in use


@pytest.mark.skipif(not shutil.which("nvcc"), reason="nvcc was not found")
def test_cuda_against_a_torch_without_cuda(source: Path, new_environment: NewEnvironment) -> None:
    environment = new_environment()
    environment.pip_install("--no-build-isolation", source, EF_CUDA="1", EF_CUDA_ARCHS="80-real")
    assert cmake_setting(source, "EF_CUDA_ARCHS") == "80-real"
    assert (environment.package / "_cuda.so").exists()
    assert environment.state()[0] == "None"
    # The next install does not ask for CUDA, and takes the library away again.
    environment.pip_install("--no-build-isolation", "--force-reinstall", source, EF_CUDA="0")
    assert not (environment.package / "_cuda.so").exists()
    assert (environment.package / "_cpu.so").exists()
