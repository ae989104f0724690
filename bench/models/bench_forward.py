"""Models' forward passes, ours against transformers and against what users would pick instead, on the same weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from bench import clock
from bench.contender import Case, Contender, Expected, Target
from bench.models.families import (
    ACCELERATED,
    COMPILED,
    FAMILIES,
    ONNX,
    OPENVINO,
    OURS,
    OUTPUT_FLOOR,
    STOCK,
    accelerated,
    encode,
    in_dtype,
    label,
    token_ids,
)
from bench.peers import Peer, onnx_runtime, openvino, torch_compile, tried
from bench.verify import expect

FLOORS = {torch.float32: OUTPUT_FLOOR, torch.bfloat16: 0.0}


# (family, batch, tokens): what ours has to reach by its dtype, on two AVX-512 cores with BF16. Compiling takes minutes:
# a family's first case shows what it brings.
CASES: dict[tuple[str, int, int], dict[str, tuple[Target, ...]]] = {
    ("FNet-base", 1, 512): {
        "float32": tuple(Target(f"{name} float32", 1.3) for name in (STOCK, COMPILED, OPENVINO)),
        "bfloat16": (Target(f"{STOCK} float32", 2.2), Target(f"{OPENVINO} bfloat16", 1.3)),
    },
    ("FNet-base", 4, 512): {},
    ("MobileBERT", 1, 128): {
        "float32": (Target(f"{STOCK} float32", 1.7), Target(f"{OPENVINO} float32", 1.0)),
        "bfloat16": (Target(f"{STOCK} bfloat16", 2.2), Target(f"{OPENVINO} bfloat16", 1.2)),
    },
    ("MobileBERT", 8, 128): {
        "float32": (Target(f"{STOCK} float32", 1.45), Target(f"{OPENVINO} float32", 0.95)),
        "bfloat16": (Target(f"{STOCK} bfloat16", 1.45), Target(f"{OPENVINO} bfloat16", 1.05)),
    },
    ("RoBERTa-PreLayerNorm-base", 1, 512): {
        "float32": (Target(f"{STOCK} float32", 1.3), Target(f"{OPENVINO} float32", 1.1)),
        "bfloat16": (Target(f"{STOCK} bfloat16", 1.3), Target(f"{OPENVINO} bfloat16", 1.1)),
    },
    ("XLM-RoBERTa-XL, 2 of 36 layers", 1, 512): {
        "float32": (Target(f"{STOCK} float32", 1.25), Target(f"{OPENVINO} float32", 1.0)),
        "bfloat16": (Target(f"{STOCK} bfloat16", 1.12), Target(f"{OPENVINO} bfloat16", 1.0)),
    },
    ("XLM-RoBERTa-XL, 2 of 36 layers", 1, 128): {},
    ("FNet-base", 32, 512): {},
    ("MobileBERT", 32, 128): {},
}
ON_GPUS = [("FNet-base", 32, 512), ("MobileBERT", 32, 128)]
PAUSE = 0.005
BERT = "BERT-base"
AGAINST_BERT = (
    Target(f"{BERT} {STOCK} float32", 4.5),
    Target(f"{BERT} {COMPILED} float32", 4.5),
    Target(f"{BERT} {OPENVINO} float32", 3.8),
)


def ways(fast: Any | None, stock: Any, ids: Tensor, dtype: torch.dtype, compiles: bool) -> dict[str, Peer]:
    """transformers, other runtimes with its model, and ours where `fast` is one."""
    model = in_dtype(stock, dtype)
    found = {STOCK: tried(STOCK, lambda: partial(encode, model, ids))}
    if compiles:
        found[COMPILED] = torch_compile(model, ids)
    if dtype == torch.float32:
        found[ONNX] = onnx_runtime(stock, ids)
    found[OPENVINO] = openvino(stock, ids, dtype)
    if fast is not None:
        # These may not fail.
        found[ACCELERATED] = Peer(partial(encode, accelerated(model), ids))
        found[OURS] = Peer(partial(encode, in_dtype(fast, dtype), ids))
    return found


def contenders(
    title: str, fast: Any | None, stock: Any, ids: Tensor, dtype: torch.dtype, compiles: bool = True
) -> list[Contender]:
    """All of one dtype. Twice transformers' own error in it is allowed."""
    family, found = FAMILIES[title], ways(fast, stock, ids, dtype, compiles)
    eager = found[STOCK]
    with torch.inference_mode():
        exact = encode(copy.deepcopy(stock).double(), ids)
        if eager.absent is None:
            expected = expect(eager.call(), exact, FLOORS[dtype])
        else:
            expected = Expected(exact, family.bfloat16_allowed or 0.0)
    # Where transformers fails in a dtype, a user has its float32 instead.
    baseline = f"{STOCK} {label(dtype) if eager.absent is None else 'float32'}"
    wanted = CASES.get((title, *ids.shape), {}).get(label(dtype))

    def contender(name: str, way: Peer) -> Contender:
        runtime = name in (ONNX, OPENVINO)
        return Contender(
            f"{name} {label(dtype)}",
            way.call,
            baseline=None if name == STOCK else baseline,
            target=wanted if name == OURS else None,
            flops=family.matrix_flops(stock.config, *ids.shape),
            expected=(Expected(exact, max(expected.allowed, family.peers_floor)) if runtime else expected,),
            memory=not runtime,  # what these need, they keep from call to call
            absent=way.absent,
        )

    return [contender(name, way) for name, way in found.items()]


@pytest.mark.parametrize(("title", "batch", "length"), CASES)
def bench_forward(compare: Callable[[Case], None], title: str, batch: int, length: int) -> None:
    clock.only_on_gpus((title, batch, length) in ON_GPUS)
    fast, stock = FAMILIES[title].pair("Model")
    ids = token_ids(stock.config, batch, length)
    compiles = (title, batch, length) == next(case for case in CASES if case[0] == title)
    found = [one for dtype in FLOORS for one in contenders(title, fast, stock, ids, dtype, compiles)]
    compare(Case(f"{title} forward", f"{batch} x {length}", tuple(found), f"{OURS} float32", pause=PAUSE))


def bench_mobilebert_against_bert(compare: Callable[[Case], None]) -> None:
    """The yardstick of MobileBERT's paper, in what runs it fastest."""
    bert = FAMILIES[BERT]
    config = bert.config()
    ids = token_ids(config, 1, 128)
    found = [
        replace(one, name=f"{BERT} {one.name}", baseline=one.baseline and f"{BERT} {one.baseline}")
        for one in contenders(BERT, None, bert.stock("Model", config), ids, torch.float32)
    ]
    fast, stock = FAMILIES["MobileBERT"].pair("Model")
    with torch.inference_mode():
        expected = expect(encode(stock, ids), encode(copy.deepcopy(stock).double(), ids), OUTPUT_FLOOR)
    ours = Contender(
        f"MobileBERT {OURS} float32",
        partial(encode, fast, ids),
        baseline=found[0].name,
        target=AGAINST_BERT,
        expected=(expected,),
        memory=True,
    )
    compare(Case("MobileBERT against BERT-base", "1 x 128", (*found, ours), ours.name, pause=PAUSE))
