"""The backend `cpu`, csrc/bottleneck/cpu.cpp: its refusals, and the weights in the order that it reads them.

Weights that multiply the same input are packed together and kept as packed_linear's are: ../packed_linear/packing.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ... import _native
from ..._dispatch import Key
from ..packed_linear.checks import ACTIVATIONS
from ..packed_linear.packing import packed
from .parameters import Parameters

_ops = torch.ops.encoders_fast_native
_TYPES = (torch.float32, torch.bfloat16)


def input_why_not(key: Key) -> str | None:
    if key.device != "cpu":
        return f"runs on the CPU; the input is on {key.device}"
    for name, dtype in zip(("activations are", "weights are", "biases are"), key.dtypes, strict=False):
        if dtype not in _TYPES:
            return f"takes float32 and bfloat16; {name} {dtype}"
    return _native.missing or _ops.packed_linear_missing(torch.bfloat16 in key.dtypes[1:2]) or None


def ffn_why_not(key: Key) -> str | None:
    why = input_why_not(key)
    if why is None and key.widths[3:4] == (0,):
        return "takes feed-forward blocks of one width; these differ"
    return why


def _panels(*weights: Tensor) -> Tensor:
    """Of weights [N, K], one under the other."""

    def pack(dense: Sequence[Tensor]) -> Tensor:
        return _ops.bottleneck_pack.default(torch.cat(list(dense)), [len(weight) for weight in dense])

    if any(map(Tensor.is_inference, weights)):  # without a version counter: nobody would see them change
        return pack(weights)
    return packed("bottleneck", weights, pack)


def bottleneck_input(h: Tensor, parameters: Parameters, from_bottleneck: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    matrices, biases, norms, eps = parameters
    outputs, bottlenecks = matrices[:3], matrices[3:]
    of_narrow = 3 if from_bottleneck else 2 if len(bottlenecks) == 2 else 0
    wide, narrow = _panels(*bottlenecks, *outputs[of_narrow:]), _panels(*outputs[:of_narrow]) if of_narrow else None
    return _ops.bottleneck_input.default(h, wide, narrow, biases, norms, eps, from_bottleneck)


def bottleneck_ffn(
    attention: Tensor,
    u0: Tensor,
    h: Tensor | None,
    parameters: Parameters,
    activation: str,
    dropout_p: float,
    rng_state: Tensor | None,
) -> Tensor:
    (output, *rest), biases, norms, eps = parameters
    return _ops.bottleneck_ffn.default(
        attention,
        u0,
        h,
        _panels(output),
        _panels(*rest[::2]),
        _panels(*rest[1::2]),
        biases,
        norms,
        eps,
        ACTIVATIONS.index(activation),
        dropout_p,
        rng_state,
    )
