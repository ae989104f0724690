"""The torch ops of bottleneck_input and bottleneck_ffn: their fakes and gradients, above the backends.

A graph holds an op's arguments and nothing else; backends compute again what a gradient needs in between. A gradient of
a gradient goes through the reference.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ... import _dispatch
from ..._op import Derivatives
from . import reference
from .lists import op_with_lists
from .parameters import Parameters

_PARAMETERS = "Tensor[] matrices, Tensor[] biases, Tensor[] norms, float[] eps"
_GRADIENTS = "Tensor[] dmatrices, Tensor[] dbiases, Tensor[] dnorms"
_Static = tuple[torch.device, tuple[torch.dtype, ...], tuple[int, ...]]


def _as_it_is(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Autocast has been heeded already, and torch's products must not heed it again."""
    if not torch.amp.is_autocast_available(device.type) or not torch.is_autocast_enabled(device.type):
        return contextlib.nullcontext()
    return torch.autocast(device.type, enabled=False)


def _split(saved: Any, sizes: tuple[int, ...]) -> list[list[Tensor]]:
    parts, start = [], 0
    for size in sizes:
        parts.append(list(saved[start : start + size]))
        start += size
    return parts


def _save_parameters(ctx: Any, parameters: Parameters) -> list[Tensor]:
    ctx.sizes_of_lists, ctx.eps = tuple(map(len, parameters[:3])), parameters.eps
    return [*parameters.matrices, *parameters.biases, *parameters.norms]


def _saved_parameters(ctx: Any, saved: Any) -> Parameters:
    matrices, biases, norms = _split(saved, ctx.sizes_of_lists)
    return Parameters(matrices, biases, norms, ctx.eps)


def _gradients_like(parameters: Parameters, wanted: bool) -> reference.Gradients:
    """Memory without values."""
    tensors = parameters[:3] if wanted else ([], [], [])
    return reference.Gradients(*([t.new_empty(t.shape) for t in part] for part in tensors))


def _of_lists(parameters: Parameters, gradients: Any) -> tuple[Any, ...]:
    """One gradient for each tensor of each list, and what stands for that of eps."""
    lists = (list(found) or [None] * len(part) for found, part in zip(gradients, parameters[:3], strict=True))
    return *lists, None if parameters.eps else []


def _composed(
    function: Callable[..., Any], gradients: Any, activations: list[Tensor], parameters: Parameters
) -> tuple[list[Tensor], reference.Gradients]:
    """Gradients of function(activations, parameters) that can be differentiated."""
    sizes = (len(activations), *map(len, parameters[:3]))

    def of_flat(*flat: Tensor) -> Any:
        own, matrices, biases, norms = _split(flat, sizes)
        return function(own, Parameters(matrices, biases, norms, parameters.eps))

    found: Any = torch.func.vjp(of_flat, *activations, *(t for part in parameters[:3] for t in part))
    own, *lists = _split(found[1](gradients), sizes)
    return own, reference.Gradients(*lists)


# ---- bottleneck_input


def input_statics(h: Tensor, parameters: Parameters) -> _Static:
    """What a backend's choice depends on: the dtypes of h, matrices and biases, and H, D and A. D is that of the wider
    bottleneck, and 0 without one."""
    D = max((matrix.shape[0] for matrix in parameters.matrices[3:]), default=0)
    widths = (h.shape[-1], D, parameters.matrices[0].shape[0])
    return h.device, (h.dtype, parameters.matrices[0].dtype, parameters.biases[0].dtype), widths


def input_forward(
    h: Tensor,
    matrices: list[Tensor],
    biases: list[Tensor],
    norms: list[Tensor],
    eps: list[float],
    from_bottleneck: bool,
    backend: str | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Computes, and knows of no gradient."""
    parameters = Parameters(matrices, biases, norms, eps)
    row = _dispatch.choose("bottleneck_input", backend, *input_statics(h, parameters))
    if h.numel() == 0:
        return _input_fake(h, matrices, biases, norms, eps, from_bottleneck, backend)
    with _as_it_is(h.device):
        return row.forward(h, parameters, from_bottleneck)


def _input_fake(
    h: Tensor,
    matrices: list[Tensor],
    biases: list[Tensor],
    norms: list[Tensor],
    eps: list[float],
    from_bottleneck: bool,
    backend: str | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    q, k, v = (h.new_empty((*h.shape[:-1], matrix.shape[0])) for matrix in matrices[:3])
    return q, k, v, h.new_empty((*h.shape[:-1], matrices[3].shape[0]) if eps else 0)


def _input_save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> tuple[Tensor, ...]:
    h, *lists, ctx.from_bottleneck, ctx.backend = inputs
    return h, *_save_parameters(ctx, Parameters(*lists))


def _input_backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
    h, *saved = ctx.saved_tensors
    parameters = _saved_parameters(ctx, saved)
    shapes = _input_fake(h, *parameters, ctx.from_bottleneck, ctx.backend)
    full = tuple(torch.zeros_like(t) if dy is None else dy for dy, t in zip(gradients, shapes, strict=True))
    if torch.is_grad_enabled():

        def function(activations: list[Tensor], parameters: Parameters) -> Any:
            return reference.bottleneck_input(activations[0], parameters, ctx.from_bottleneck)

        (dh,), lists = _composed(function, full, [h], parameters)
    else:
        dh, *lists = input_backward_op(*full, h, *parameters, ctx.from_bottleneck, any(ctx.wanted[1:4]), ctx.backend)
    return dh, *_of_lists(parameters, lists), None, None


def _input_backward_forward(
    dq: Tensor, dk: Tensor, dv: Tensor, du0: Tensor, h: Tensor, *rest: Any
) -> tuple[Tensor, list[Tensor], list[Tensor], list[Tensor]]:
    parameters, (from_bottleneck, wanted, backend) = Parameters(*rest[:4]), rest[4:]
    row = _dispatch.choose("bottleneck_input", backend, *input_statics(h, parameters))
    assert row.backward is not None  # register_backend sees to it
    if h.numel() == 0:
        dh, *parts = _input_backward_fake(dq, dk, dv, du0, h, *rest)
        return dh, *([t.zero_() for t in part] for part in parts)  # type: ignore[return-value]
    with _as_it_is(h.device):
        dh, lists = row.backward(dq, dk, dv, du0, h, parameters, from_bottleneck, wanted)
    return dh, *lists


def _input_backward_fake(
    dq: Tensor, dk: Tensor, dv: Tensor, du0: Tensor, h: Tensor, *rest: Any
) -> tuple[Tensor, list[Tensor], list[Tensor], list[Tensor]]:
    return h.new_empty(h.shape), *_gradients_like(Parameters(*rest[:4]), rest[5])


input_op = op_with_lists(
    f"bottleneck_input(Tensor h, {_PARAMETERS}, bool from_bottleneck, str? backend)"
    " -> (Tensor q, Tensor k, Tensor v, Tensor u0)",
    forward=input_forward,
    fake=_input_fake,
    derivatives=Derivatives(save=_input_save, backward=_input_backward),
)
input_backward_op = op_with_lists(
    f"bottleneck_input_backward(Tensor dq, Tensor dk, Tensor dv, Tensor du0, Tensor h, {_PARAMETERS},"
    f" bool from_bottleneck, bool wanted, str? backend) -> (Tensor dh, {_GRADIENTS})",
    forward=_input_backward_forward,
    fake=_input_backward_fake,
)


# ---- bottleneck_ffn


def ffn_statics(u0: Tensor, h: Tensor | None, parameters: Parameters) -> _Static:
    """What a backend's choice depends on: the dtypes of u0, matrices and biases, and H, D, A, F and the number of
    feed-forward blocks. H is 0 without a bottleneck, and F where the blocks differ."""
    (D, A), expansions = parameters.matrices[0].shape, {m.shape[0] for m in parameters.matrices[1:-1:2]}
    F = expansions.pop() if len(expansions) == 1 else 0
    widths = (0 if h is None else h.shape[-1], D, A, F, len(parameters.matrices) // 2 - (h is not None))
    return u0.device, (u0.dtype, parameters.matrices[0].dtype, parameters.biases[0].dtype), widths


def ffn_forward(attention: Tensor, u0: Tensor, h: Tensor | None, *rest: Any) -> Tensor:
    """Computes, and knows of no gradient."""
    parameters, (activation, dropout_p, rng_state, backend) = Parameters(*rest[:4]), rest[4:]
    row = _dispatch.choose("bottleneck_ffn", backend, *ffn_statics(u0, h, parameters))
    if u0.numel() == 0:
        return _ffn_fake(attention, u0, h, *rest)
    with _as_it_is(u0.device):
        return row.forward(attention, u0, h, parameters, activation, dropout_p, rng_state)


def _ffn_fake(attention: Tensor, u0: Tensor, h: Tensor | None, *rest: Any) -> Tensor:
    like = u0 if h is None else h
    return like.new_empty(like.shape)


def _ffn_save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> tuple[Tensor | None, ...]:
    attention, u0, h, *lists, ctx.activation, ctx.dropout_p, rng_state, ctx.backend = inputs
    return attention, u0, h, rng_state, *_save_parameters(ctx, Parameters(*lists))


def _ffn_backward(ctx: Any, dy: Tensor | None) -> tuple[Any, ...]:
    attention, u0, h, rng_state, *saved = ctx.saved_tensors
    parameters = _saved_parameters(ctx, saved)
    dy = torch.zeros_like(u0 if h is None else h) if dy is None else dy
    options = (ctx.activation, ctx.dropout_p, rng_state)
    if torch.is_grad_enabled():

        def function(activations: list[Tensor], parameters: Parameters) -> Tensor:
            attention, u0, *stream = activations
            return reference.bottleneck_ffn(attention, u0, stream[0] if stream else None, parameters, *options)

        activations = [attention, u0] if h is None else [attention, u0, h]
        own, lists = _composed(function, dy, activations, parameters)
        dattention, du0, dh = own if h is not None else (*own, None)
    else:
        wanted = any(ctx.wanted[3:6])
        arguments = (dy, attention, u0, h, *parameters, *options, wanted, ctx.backend)
        dattention, du0, dh, *lists = ffn_backward_op(*arguments)
    return dattention, du0, None if h is None else dh, *_of_lists(parameters, lists), None, None, None, None


def _ffn_backward_forward(
    dy: Tensor, attention: Tensor, u0: Tensor, h: Tensor | None, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, list[Tensor], list[Tensor], list[Tensor]]:
    parameters, (activation, dropout_p, rng_state, wanted, backend) = Parameters(*rest[:4]), rest[4:]
    row = _dispatch.choose("bottleneck_ffn", backend, *ffn_statics(u0, h, parameters))
    assert row.backward is not None  # register_backend sees to it
    if u0.numel() == 0:
        *own, matrices, biases, norms = _ffn_backward_fake(dy, attention, u0, h, *rest)
        return *own, *([t.zero_() for t in part] for part in (matrices, biases, norms))  # type: ignore[return-value]
    with _as_it_is(u0.device):
        dattention, du0, dh, lists = row.backward(
            dy, attention, u0, h, parameters, activation, dropout_p, rng_state, wanted
        )
    return dattention, du0, u0.new_empty(0) if dh is None else dh, *lists


def _ffn_backward_fake(
    dy: Tensor, attention: Tensor, u0: Tensor, h: Tensor | None, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, list[Tensor], list[Tensor], list[Tensor]]:
    dh = u0.new_empty(0) if h is None else h.new_empty(h.shape)
    own = attention.new_empty(attention.shape), u0.new_empty(u0.shape), dh
    return *own, *_gradients_like(Parameters(*rest[:4]), rest[7])


_FFN_OPTIONS = "str activation, float dropout_p, Tensor? rng_state"
ffn_op = op_with_lists(
    f"bottleneck_ffn(Tensor attention, Tensor u0, Tensor? h, {_PARAMETERS}, {_FFN_OPTIONS}, str? backend) -> Tensor",
    forward=ffn_forward,
    fake=_ffn_fake,
    derivatives=Derivatives(save=_ffn_save, backward=_ffn_backward),
)
ffn_backward_op = op_with_lists(
    f"bottleneck_ffn_backward(Tensor dy, Tensor attention, Tensor u0, Tensor? h, {_PARAMETERS}, {_FFN_OPTIONS},"
    f" bool wanted, str? backend) -> (Tensor dattention, Tensor du0, Tensor dh, {_GRADIENTS})",
    forward=_ffn_backward_forward,
    fake=_ffn_backward_fake,
)
