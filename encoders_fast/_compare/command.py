"""`python -m encoders_fast compare`, step by step."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import _info, _machine
from . import agreement, demo, memory, report, timing
from . import text as texts
from .checkpoint import Checkpoint, describe, libraries, load, load_tokenizer, stock_twin
from .progress import Progress
from .refusal import RefusalError, first_line

DEFAULT_BATCH, DEFAULT_LENGTH = 4, 512


@dataclass(frozen=True)
class Options:
    checkpoint: str | None = None
    text: str | None = None
    dtype: str = "float32"
    batch: int | None = None
    length: int | None = None
    repeats: int = 5
    device: str = "cpu"
    against_float32: bool = False
    json: str | None = None

    @property
    def stock_dtype(self) -> str:
        return "float32" if self.against_float32 else self.dtype


@dataclass(frozen=True)
class Loaded:
    """Both models, ready to run, and what is worth telling about how they were loaded."""

    ours: nn.Module
    stock: nn.Module
    notes: list[str]


def run(options: Options) -> int:
    """Compare, print, save. Returns 0 where the outputs agree, else 1."""
    check_path("the checkpoint", options.checkpoint)
    check_path("--text", options.text)
    check_path("--json", options.json)
    check_writable(options.json)
    if options.device == "cuda" and not torch.cuda.is_available():
        raise RefusalError(f"there is no GPU: {_info.gpu()['missing']}")
    text = texts.read(options.text)
    # Loading, warming up, the rounds, and two measurements of memory.
    steps = 1 + 1 + options.repeats + 2
    if options.checkpoint is not None:
        with Progress(steps) as progress:
            checkpoint = describe(options.checkpoint)
            result = compare(options, checkpoint, text, progress, options.checkpoint)
        print(report.render(result))
        results = [result]
    else:
        with Progress(1 + len(demo.DEMOS) * (1 + steps)) as progress:
            results = list(demos(options, text, progress))
        print(report.render_demos(results))
        result = {"demos": results}
    if options.json is not None:
        save(result, options.json)
    return 0 if all(result["agree"] for result in results) else 1


def demos(options: Options, text: str, progress: Progress) -> Iterator[dict[str, Any]]:
    """The results of all models that are made for the occasion, one after the other."""
    progress.step("training a tokenizer")
    tokenizer = demo.train_tokenizer(texts.read(None))
    for each in demo.DEMOS:
        progress.step(f"making and saving {each.class_name}")
        with tempfile.TemporaryDirectory(prefix="encoders_fast_demo_") as folder:
            demo.build(Path(folder), each, tokenizer)
            sized = dataclasses.replace(
                options, batch=options.batch or each.batch, length=options.length or each.length
            )
            yield compare(sized, describe(folder), text, progress, each.source)


def check_path(name: str, path: str | None) -> None:
    """Refuse what cannot be a path at all, before some library meets it."""
    if path is None:
        return
    if not path:
        raise RefusalError(f"{name} is an empty path")
    try:
        os.lstat(path)
    except ValueError as error:
        # A NUL byte, or a character that the file system's encoding lacks.
        raise RefusalError(f"{name} is not a path: {first_line(error)}") from error
    except OSError as error:
        # That there is no such file yet is for others to judge.
        if error.errno == errno.ENAMETOOLONG:
            raise RefusalError(f"{name} is not a path: {error.strerror}") from error


def check_writable(path: str | None) -> None:
    """Before the work, so that nobody waits for a result that is then lost."""
    if path is None:
        return
    folder = Path(path).absolute().parent
    if Path(path).is_dir():
        raise RefusalError(f"cannot write {path}: it is a folder")
    if not folder.is_dir():
        raise RefusalError(f"cannot write {path}: there is no folder {folder}")
    if not os.access(path if Path(path).exists() else folder, os.W_OK):
        raise RefusalError(f"cannot write {path}: no permission")


def save(result: dict[str, Any], path: str) -> None:
    try:
        Path(path).write_text(json.dumps(result, indent=2) + "\n")
    except OSError as error:
        raise RefusalError(f"cannot write {path}: {error.strerror or error}") from error


def compare(options: Options, checkpoint: Checkpoint, text: str, progress: Progress, source: str) -> dict[str, Any]:
    """Everything about one checkpoint; `source` says where it came from."""
    windows = windows_for(options, checkpoint, text)
    progress.step(f"loading {checkpoint.class_name}")
    loaded = load_both(options, checkpoint)
    ours = runner(loaded.ours, checkpoint, "encoders_fast", options.dtype)
    theirs = runner(loaded.stock, checkpoint, "transformers", options.stock_dtype)

    def batches(index: int) -> Tensor:
        return windows[index].to(options.device)

    def on_round(index: int) -> None:
        progress.step(f"round {index} of {options.repeats}" if index else "warming up")

    load_of_others = _machine.OthersLoad()
    found = timing.in_turn(ours, theirs, batches, options.repeats, on_round)
    busy = load_of_others.share()
    peaks = peak_memories(options, checkpoint, {"transformers": theirs, "encoders_fast": ours}, batches(0), progress)
    return summary(options, checkpoint, source, windows, loaded, found, peaks, busy)


def windows_for(options: Options, checkpoint: Checkpoint, text: str) -> texts.Windows:
    longest = checkpoint.family.positions(checkpoint.config)
    length = options.length or min(DEFAULT_LENGTH, longest)
    if length > longest:
        raise RefusalError(
            f"--length {length} is more than the {longest} positions that {checkpoint.name} has room for"
        )
    batch = options.batch or DEFAULT_BATCH
    return texts.Windows(load_tokenizer(checkpoint), text, batch, length, checkpoint.config.vocab_size)


def load_both(options: Options, checkpoint: Checkpoint) -> Loaded:
    """Ours as a user loads it; transformers' on the same memory, where both have the same dtype."""
    _, models = libraries()
    dtype, stock_dtype = getattr(torch, options.dtype), getattr(torch, options.stock_dtype)
    ours, notes = load(checkpoint, models, dtype, options.device)
    source = ours
    if stock_dtype != dtype:
        source, _ = load(checkpoint, models, stock_dtype, options.device)
        notes.append(f"the weights are held twice, in {options.dtype} and in {options.stock_dtype}")
    return Loaded(ours, stock_twin(checkpoint, source), notes)


def runner(model: nn.Module, checkpoint: Checkpoint, library: str, dtype: str) -> Callable[[Tensor], Mapping[str, Any]]:
    """ids -> output, with a library's failure told in a sentence."""

    def run(ids: Tensor) -> Mapping[str, Any]:
        try:
            with torch.inference_mode():
                return model(**checkpoint.family.inputs(ids, checkpoint.class_name))
        except Exception as error:
            why = f"{library} cannot run {checkpoint.class_name} in {dtype} here: {first_line(error)}"
            other_length = checkpoint.family.other_length(checkpoint.config, ids.shape[1])
            if library == "transformers" and other_length is not None:
                why += f" Use --length {other_length}."
            elif library == "transformers" and dtype != "float32":
                why += "; --against-float32 compares with transformers in float32 instead"
            raise RefusalError(why) from error

    return run


def peak_memories(
    options: Options,
    checkpoint: Checkpoint,
    runners: dict[str, Callable[[Tensor], Mapping[str, Any]]],
    ids: Tensor,
    progress: Progress,
) -> dict[str, int | str]:
    peaks: dict[str, int | str] = {}
    for library, run in runners.items():
        progress.step(f"peak memory of {library}")
        dtype = options.dtype if library == "encoders_fast" else options.stock_dtype
        on_cuda = options.device == "cuda"
        peaks[library] = memory.on_cuda(run, ids) if on_cuda else memory.on_cpu(checkpoint, library, dtype, ids)
    return peaks


def summary(
    options: Options,
    checkpoint: Checkpoint,
    source: str,
    windows: texts.Windows,
    loaded: Loaded,
    found: timing.Timing,
    peaks: dict[str, int | str],
    busy: float | None,
) -> dict[str, Any]:
    """Everything that is printed and saved."""
    versions = _info.versions()
    tokens = windows.batch * windows.length
    names = {library: f"{library} {versions[library] or ''}".strip() for library in peaks}
    dtype = getattr(torch, options.dtype)
    notes = [*loaded.notes, *(peak for peak in peaks.values() if isinstance(peak, str))]
    if windows.repeats_text(options.repeats + 1):
        notes.append(f"the text has only {len(windows.tokens)} tokens, so it starts over")
    if busy is not None and busy > _machine.BUSY:
        notes.append(f"the machine was busy: other processes used {busy:.0%} of the processors meanwhile")
    on_cuda = options.device == "cuda"
    return {
        "class": checkpoint.class_name,
        "checkpoint": source,
        "parameters": sum(parameter.numel() for parameter in loaded.ours.parameters()),
        "text": options.text or texts.BUILT_IN,
        "text_tokens": len(windows.tokens),
        "batch": windows.batch,
        "length": windows.length,
        "repeats": options.repeats,
        "device": options.device,
        "device_name": torch.cuda.get_device_name() if on_cuda else _machine.cpu_name(),
        "threads": torch.get_num_threads(),
        "instruction_set": _info.instruction_set(),
        "versions": versions,
        "transformers": report.side(
            names["transformers"], options.stock_dtype, found.theirs, tokens, peaks["transformers"]
        ),
        "ours": report.side(names["encoders_fast"], options.dtype, found.ours, tokens, peaks["encoders_fast"]),
        "ratio": statistics.median(found.theirs) / statistics.median(found.ours),
        "differences": {name: worst.as_dict() for name, worst in found.differences.items()},
        "limit": agreement.LIMITS[dtype],
        "agree": agreement.agree(found.differences, dtype),
        "backends": found.backends,
        "peak_memory_is": memory.CUDA_METHOD if on_cuda else memory.CPU_METHOD,
        "others_load": busy,
        "notes": notes,
    }
