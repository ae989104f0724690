"""`python -m encoders_fast info`: what is installed, what this machine has, and which backends run here."""

from __future__ import annotations

import importlib.metadata
import platform
from typing import Any

import torch

from . import _dispatch, _machine, _native

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_PACKAGES = ("encoders_fast", "torch", "numpy", "transformers", "tokenizers", "triton")
# Linux's names for the instruction sets that kernels are written for here.
_INSTRUCTION_SETS = ["avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "avx512_fp16"]
_INSTRUCTION_SETS += ["amx_tile", "amx_bf16", "asimd", "bf16", "sve"]


def collect() -> dict[str, Any]:
    """Everything that `info` prints, as JSON can hold it."""
    return {
        "versions": versions(),
        "build": build(),
        "cpu": {
            "name": _machine.cpu_name(),
            "found": [name for name in _INSTRUCTION_SETS if name in _machine.cpu_flags()],
            "in_use": instruction_set(),
            "threads": torch.get_num_threads(),
        },
        "gpu": gpu(),
        "forced_backend": _dispatch.forced(),
        "ops": {op: [backend(row) for row in rows] for op, rows in _dispatch.tables().items()},
    }


def versions() -> dict[str, str | None]:
    """Of Python and of each package that matters; None for those that are not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    # Metadata says "2.13.0" where the library itself knows its build: "2.13.0+cpu".
    found["torch"] = str(torch.__version__)
    return found


def build() -> dict[str, dict[str, Any]]:
    """What each native library was built with, or under "missing" the sentence why there is none."""
    sentences = {"cpu": _native.missing, "cuda": _native.cuda_missing}
    return {library: found or {"missing": sentences[library]} for library, found in _native.build_info().items()}


def instruction_set() -> str | None:
    """The one that the native kernels use here."""
    return _native.instruction_set()


def gpu() -> dict[str, Any]:
    """The devices, or why there are none."""
    if not torch.backends.cuda.is_built():
        return {"missing": f"torch {torch.__version__} is built without CUDA"}
    if not torch.cuda.is_available():
        return {"missing": f"torch {torch.__version__} has CUDA {torch.version.cuda}, but finds no GPU or no driver"}
    devices = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return {
        "devices": [
            {"name": device.name, "capability": f"{device.major}.{device.minor}", "memory": device.total_memory}
            for device in devices
        ]
    }


def backend(row: _dispatch.Backend) -> dict[str, Any]:
    """For each device type that is here: the dtypes this backend runs, and the sentences for those it does not."""
    devices = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
    found: dict[str, Any] = {"name": row.name, "runs": {}, "why_not": {}}
    for device in devices:
        for dtype in _DTYPES:
            name = str(dtype).removeprefix("torch.")
            # A key for any op: more tensors than one has, all of this dtype, and a width that kernels like.
            why = row.why_not(_dispatch.key_of(torch.device(device), (dtype,) * 8, (768,) * 8))
            if why is None:
                found["runs"].setdefault(device, []).append(name)
            else:
                found["why_not"].setdefault(device, {})[name] = why
    return found


def render(info: dict[str, Any]) -> str:
    """`collect()`'s dictionary for people."""
    lines = ["versions"]
    lines += [f"  {name:14} {version or 'not installed'}" for name, version in info["versions"].items()]
    lines += ["native libraries", *(f"  {library:14} {_build_text(built)}" for library, built in info["build"].items())]
    cpu = info["cpu"]
    lines += ["processor", f"  {'name':14} {cpu['name']}", f"  {'threads':14} {cpu['threads']}"]
    lines += [f"  {'found':14} {' '.join(cpu['found']) or 'no instruction set that matters here'}"]
    lines += [f"  {'in use':14} {cpu['in_use'] or 'none: the native kernels are missing'}"]
    if "missing" in info["gpu"]:
        lines += [f"  {'gpu':14} none: {info['gpu']['missing']}"]
    for device in info["gpu"].get("devices", ()):
        lines += [f"  {'gpu':14} {device['name']}, {device['memory'] / 2**30:.0f} GiB, sm {device['capability']}"]
    if info["forced_backend"]:
        lines += [f"  {'forced backend':14} {info['forced_backend']}"]
    for op, rows in info["ops"].items():
        lines.append(op)
        for row in rows:
            lines += [f"  {row['name']:14} {text}" for text in _row_texts(row)]
    return "\n".join(lines)


def _build_text(built: dict[str, Any]) -> str:
    if "missing" in built:
        return f"missing: {built['missing']}"
    parts = [f"{name.replace('_', ' ')} {_listed(value)}" for name, value in built.items()]
    return "built with " + ", ".join(parts)


def _listed(value: Any) -> str:
    return " ".join(value) if isinstance(value, list) else str(value)


def _row_texts(row: dict[str, Any]) -> list[str]:
    texts = [f"runs on {device}: {', '.join(dtypes)}" for device, dtypes in row["runs"].items()]
    for device, refusals in row["why_not"].items():
        sentences: dict[str, list[str]] = {}
        for dtype, why in refusals.items():
            sentences.setdefault(why, []).append(dtype)
        for why, dtypes in sentences.items():
            which = device if len(dtypes) == len(_DTYPES) else f"{device} in {', '.join(dtypes)}"
            texts.append(f"not on {which}: {why}")
    return texts
