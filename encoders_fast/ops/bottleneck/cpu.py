"""The backend `cpu`, csrc/bottleneck/cpu.cpp: its refusals, and the weights in the order that it reads them.

Weights that multiply the same input are packed together and kept as packed_linear's are: ../packed_linear/packing.py.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from ... import _native
from ..._dispatch import Key
from ..packed_linear.checks import ACTIVATIONS
from ..packed_linear.packing import clear_packed, packed
from .parameters import Parameters

_ops = torch.ops.encoders_fast_native
_TYPES = (torch.float32, torch.bfloat16)


def input_why_not(key: Key) -> str | None:
    if key.device != "cpu":
        return f"runs on the CPU; the input is on {key.device}"
    for name, dtype in zip(("activations are", "weights are", "biases are"), key.dtypes, strict=True):
        if dtype not in _TYPES:
            return f"takes float32 and bfloat16; {name} {dtype}"
    return _native.missing or _ops.packed_linear_missing(key.dtypes[1] == torch.bfloat16) or None


def ffn_why_not(key: Key) -> str | None:
    if key.widths[3] == 0:
        return "takes feed-forward blocks of one width; these differ"
    return input_why_not(key)


def _panels(*weights: Tensor) -> Tensor:
    """Of weights [N, K], one under the other."""

    def pack(dense: Tensor) -> Tensor:
        return _ops.bottleneck_pack.default(dense, [len(weight) for weight in weights])  # type: ignore[no-any-return]

    if any(map(Tensor.is_inference, weights)):  # without a version counter: nobody would see them change
        return pack(torch.cat(weights))
    return packed("bottleneck", weights, pack)


def _after_step(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """torch's fused optimizers, of 2.13 too, change weights without counting it in their version."""
    if any(group.get("fused") for group in optimizer.param_groups):
        clear_packed()


register_optimizer_step_post_hook(_after_step)


def bottleneck_input(h: Tensor, parameters: Parameters, from_bottleneck: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    matrices, biases, norms, eps = parameters
    outputs, bottlenecks = matrices[:3], matrices[3:]
    of_narrow = 3 if from_bottleneck else 2 if len(bottlenecks) == 2 else 0
    wide, narrow = _panels(*bottlenecks, *outputs[of_narrow:]), _panels(*outputs[:of_narrow]) if of_narrow else None
    return _ops.bottleneck_input.default(h, wide, narrow, biases, norms, eps, from_bottleneck)  # type: ignore[no-any-return]


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
    return _ops.bottleneck_ffn.default(  # type: ignore[no-any-return]
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
