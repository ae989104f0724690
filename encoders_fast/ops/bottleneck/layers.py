"""All layers of MobileBERT in one call: bottleneck_input, attention and bottleneck_ffn, again and again."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import _dispatch
from . import cpu
from .autograd import ffn_statics, input_statics
from .op import _plainly
from .parameters import Parameters, Sequences, promote


def plainly(h: Tensor) -> bool:
    """Whether nothing but kernels can see a call with such an h, and nothing is converted on its way to them."""
    autocast = torch.amp.is_autocast_available(h.device.type) and torch.is_autocast_enabled(h.device.type)
    return _plainly(h) and not autocast


def packed_layers(
    h: Tensor,
    before: Parameters,
    behind: Parameters,
    count: int,
    from_bottleneck: bool,
    activation: str,
    sequences: Sequences,
) -> Tensor | None:
    """h behind `count` layers, without checks, for callers whose parameters are plain tensors of the right shapes.

    `before` and `behind` have one layer's tensors after the other's, all alike in shapes and dtypes, and the eps of one
    of them. None where the layers have to be called one by one: where the backend of one of the ops is not `cpu`, or
    parameters are of several dtypes or inference tensors. h must be one that `plainly` takes.
    """
    first, last = (_first(parameters, count) for parameters in (before, behind))
    vectors = [*first.biases, *last.biases, *first.norms, *last.norms]
    if len({vector.dtype for vector in vectors}) > 1 or h.numel() == 0:
        return None
    (h,), _ = promote([h], first)
    stream = h if first.eps else None
    chosen = (
        ("bottleneck_input", input_statics(h, first), cpu.bottleneck_input),
        ("bottleneck_ffn", ffn_statics(h, stream, last), cpu.bottleneck_ffn),
    )
    rows = []
    for op, statics, forward in chosen:
        rows.append((op, _dispatch.would_choose(op, _dispatch.forced(), *statics)))
        if rows[-1][1].forward is not forward:
            return None
    if any(map(Tensor.is_inference, before.matrices + behind.matrices)):
        return None
    for op, row in rows * count:
        _dispatch.will_run(op, row)
    return cpu.bottleneck_layers(h, before, behind, count, from_bottleneck, activation, sequences)


def _first(parameters: Parameters, count: int) -> Parameters:
    matrices, biases, norms, eps = parameters
    return Parameters(*(tensors[: len(tensors) // count] for tensors in (matrices, biases, norms)), eps)
