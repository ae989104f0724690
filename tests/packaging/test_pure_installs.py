"""Where nothing can be compiled the package is pure Python and says why; nothing is ever half installed."""

import shutil
from pathlib import Path

import pytest
import torch

from tests.packaging.conftest import NewEnvironment

pytestmark = [pytest.mark.packaging, pytest.mark.slow]

INSTALL = ("-m", "pip", "install", "--no-deps", "--no-build-isolation")
NO_TORCH = {"EF_PYTHON": "/bin/false"}
NO_COMPILER = {"CC": "/nowhere/cc", "CXX": "/nowhere/c++"}
FAILING_COMPILER = {"CC": "/bin/false", "CXX": "/bin/false"}


def break_the_last_source(source: Path) -> None:
    """Everything before it compiles, so that the build fails halfway."""
    (source / "csrc" / "zzz").mkdir()
    (source / "csrc" / "zzz" / "cpu.cpp").write_text('#error "broken on purpose"\n')


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"EF_PURE_PYTHON": "1"}, "EF_PURE_PYTHON=1 was set"),
        (NO_COMPILER, "no C++ compiler was found (/nowhere/c++)"),
        (FAILING_COMPILER, "configuring with CMake failed: The C++ compiler"),
        (NO_TORCH, "/bin/false has no torch to build against"),
    ],
    ids=["asked for", "no compiler", "failing compiler", "no torch"],
)
def test_pure_python(source: Path, new_environment: NewEnvironment, settings: dict[str, str], reason: str) -> None:
    environment = new_environment()
    output = environment.pip_install("--no-build-isolation", source, **settings)
    assert "-py3-none-any.whl" in output
    missing, cuda_missing, package = environment.state()
    assert package == environment.package
    assert missing.startswith(f"it was not compiled: {reason}")
    assert missing in cuda_missing
    assert not list(package.glob("*.so"))
    assert (package / "py.typed").exists()
    call = "import torch, encoders_fast; print(encoders_fast.fourier_mixing(torch.ones(1, 2, 2)).tolist())"
    assert environment.succeed("-c", call).strip() == "[[[4.0, 0.0], [0.0, 0.0]]]"


@pytest.mark.parametrize("settings", [NO_COMPILER, FAILING_COMPILER, NO_TORCH, {"EF_PURE_PYTHON": "1"}])
@pytest.mark.parametrize("demand", ["EF_REQUIRE_NATIVE", "EF_CUDA"])
def test_what_is_demanded_fails(
    source: Path, new_environment: NewEnvironment, settings: dict[str, str], demand: str
) -> None:
    environment = new_environment()
    process = environment.run(*INSTALL, source, **settings, **{demand: "1"})
    assert process.returncode != 0
    assert "encoders_fast could not be compiled: " in process.stderr + process.stdout
    assert not environment.package.exists()


def test_torch_in_no_reach_of_an_isolated_build(source: Path, new_environment: NewEnvironment) -> None:
    environment = new_environment(without=["torch", "torch-*"])
    output = environment.pip_install(source)
    assert "-py3-none-any.whl" in output
    assert "has no torch to build against" in (environment.package / "_build_report.json").read_text()


def test_build_that_fails_halfway(source: Path, new_environment: NewEnvironment) -> None:
    environment = new_environment()
    break_the_last_source(source)
    failure = environment.run(*INSTALL, source, EF_REQUIRE_NATIVE="1")
    assert failure.returncode != 0
    assert "broken on purpose" in failure.stderr + failure.stdout
    assert not environment.package.exists()
    assert not list(environment.package.parent.glob("encoders_fast*"))

    output = environment.pip_install("--no-build-isolation", source)
    assert "-py3-none-any.whl" in output
    assert "broken on purpose" in environment.state()[0]


def test_build_that_fails_halfway_in_the_source_tree(source: Path, new_environment: NewEnvironment) -> None:
    """Demanded, it changes nothing; otherwise it takes away an earlier build's libraries, which are out of date."""
    environment = new_environment()
    environment.pip_install("--no-build-isolation", "--editable", source, EF_REQUIRE_NATIVE="1")
    break_the_last_source(source)
    process = environment.run("setup.py", "build_ext", "--inplace", where=source, EF_REQUIRE_NATIVE="1")
    assert process.returncode != 0
    assert environment.state()[0] == "None"
    environment.succeed("setup.py", "build_ext", "--inplace", where=source)
    assert "broken on purpose" in environment.state()[0]
    assert not list((source / "encoders_fast").glob("*.so"))


@pytest.mark.skipif(not shutil.which("nvcc"), reason="nvcc was not found")
def test_cuda_by_default_that_fails(source: Path, new_environment: NewEnvironment) -> None:
    """A torch with CUDA asks for the CUDA library by default. If that fails, the CPU library is installed alone."""
    environment = new_environment(without=["torch"])
    real_torch = Path(torch.__file__).parent
    pretended = environment.package.parent / "torch"
    pretended.mkdir()
    for part in real_torch.iterdir():
        (pretended / part.name).symlink_to(part)
    (pretended / "version.py").unlink()
    (pretended / "version.py").write_text(f'__version__ = "{torch.__version__}"\ncuda = "13.0"\n')
    (source / "csrc" / "zzz").mkdir()
    (source / "csrc" / "zzz" / "cuda.cu").write_text('#error "broken on purpose"\n')

    environment.pip_install("--no-build-isolation", source)
    report = (environment.package / "_build_report.json").read_text()
    assert "broken on purpose" in report
    assert '"_cpu": null' in report
    assert {path.name for path in environment.package.glob("*.so")} == {"_cpu.so"}

    process = environment.run(*INSTALL, source, EF_CUDA="1")
    assert process.returncode != 0
    assert "broken on purpose" in process.stdout + process.stderr
