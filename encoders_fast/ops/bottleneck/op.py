"""bottleneck_input and bottleneck_ffn: a MobileBERT layer before its attention, and behind it.

    u0 = N_in(W_in h + b_in)                                             bottleneck_input
    s = N_s(W_s h + b_s)
    q, k, v = W_q s + b_q, W_k s + b_k, W_v h + b_v

    u = N_o(W_o attention + b_o + u0)                                    bottleneck_ffn
    u = N_i(B_i act(A_i u + a_i) + b_i + u)                              one time or several, each with its parameters
    y = N_out(dropout(W_out u + b_out) + h)

h, y: [..., H], the wide stream.  u0, u: [..., D], the narrow one.  q, k, v, attention: [..., A].  Each N is NoNorm,
N(x) = x * weight + bias, or a LayerNorm with an eps of its own. NoNorm stands behind the sum and scales the stream too:
in the published checkpoint it grows to 1e7 in single channels.

All numbers between two matrices have the dtype of h, and LayerNorm's statistics and the sums of gradients over rows are
float32 at least. Beside bfloat16 matrices a float32 h is rounded to bfloat16 where it is multiplied with one, as torch
does under autocast; beside float16 matrices it is not, because it may be beyond what float16 holds: there h, q, k, v
and y stay float32 and only the parameters are float16.

Nothing between the arguments and the result is kept for the backward pass, which computes it again.

Source: MobileBERT: a Compact Task-Agnostic BERT for Resource-Limited Devices (Sun et al., 2020), figure 1 and
section 3.3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ... import _dispatch
from ..._dispatch import Backend, Key
from ..._dropout import check as check_dropout
from ..._op import direct
from .. import _triton
from . import cpu, reference
from .autograd import ffn_forward, ffn_op, ffn_statics, input_forward, input_op, input_statics
from .checks import (
    check_activation,
    check_activations,
    check_devices_and_dtypes,
    check_projection,
    check_width,
)
from .parameters import NormedProjection, Parameters, Projection, in_autocast, pack, promote

_Projection = Projection | tuple[Tensor, Tensor]
_Normed = NormedProjection | tuple[Tensor, Tensor, Tensor, Tensor] | tuple[Tensor, Tensor, Tensor, Tensor, float | None]


def bottleneck_input(
    h: Tensor,
    query: _Projection,
    key: _Projection,
    value: _Projection,
    input: _Normed | None = None,
    shared: _Normed | None = None,
    *,
    from_bottleneck: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What a layer's attention takes, and the residual of the narrow stream.

    Args:
        h: [..., H] in float32, bfloat16, float16 or float64; strides are free, there may be no rows.
        query, key, value: Projections to [..., A]; a plain tuple (weight, bias) will do. query and key take s, value
            takes h. What they take is also what they are as wide as.
        input: the NormedProjection that gives u0; a plain tuple will do. None for a layer without a bottleneck.
        shared: the one that gives s. None where query and key take h.
        from_bottleneck: whether query, key and value take u0 instead. There is no `shared` then.

    All tensors are on one device, weights in one dtype. Mixtures promote as in a plain torch expression, except that
    weights in half precision go with a wider h. Under autocast weights are taken to its dtype.

    Returns: (q, k, v, u0) in the (promoted) dtype of h; u0 is h where there is no `input`. Differentiable any number of
    times in h and all parameters.

    Raises: ValueError for shapes and devices that do not go together and for `shared` or `from_bottleneck` where they
    have no meaning; TypeError for other types and dtypes; NotImplementedError where the backend that was asked for
    cannot run the call, and for forward-mode differentiation.
    """
    parameters = _check_input(h, query, key, value, input, shared, from_bottleneck)
    return _run_input(input_op, h, parameters, from_bottleneck)


def packed_input(h: Tensor, parameters: Parameters, from_bottleneck: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """bottleneck_input without its checks, for callers whose parameters are plain tensors of the right shapes."""
    check_width(h, parameters)
    return _run_input(input_forward if _plainly(h) else input_op, h, parameters, from_bottleneck)


def _run_input(
    run: Callable[..., Any], h: Tensor, parameters: Parameters, from_bottleneck: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    (h,), parameters = promote([h], in_autocast(parameters, h.device))
    q, k, v, u0 = run(h, *parameters, from_bottleneck, _backend([h], parameters))
    return q, k, v, u0 if parameters.eps else h


def _backend(activations: list[Tensor], parameters: Parameters) -> str | None:
    """The one that is forced. Where a gradient is needed on the CPU, else the reference: its forward pass has the bits
    of its backward pass, which no sign at ReLU's kink then parts, and a weight would be packed for a single use. What
    runs on a GPU has a backward pass of its own, with the same bits."""
    forced = _dispatch.forced()
    if forced is not None or not torch.is_grad_enabled() or activations[0].device.type != "cpu":
        return forced
    tensors = (*activations, *parameters.matrices, *parameters.biases, *parameters.norms)
    return "reference" if any(tensor.requires_grad for tensor in tensors) else None


def _plainly(*activations: Tensor) -> bool:
    """Whether nothing but the kernel can see a call with such activations and a module's parameters: the ops find out
    the same, but ask every parameter."""
    return not torch.is_grad_enabled() and direct(*activations)


def _check_input(
    h: Tensor,
    query: _Projection,
    key: _Projection,
    value: _Projection,
    input: _Normed | None,
    shared: _Normed | None,
    from_bottleneck: bool,
) -> Parameters:
    check_activations(h=h)
    H = h.shape[-1]
    if input is None and (shared is not None or from_bottleneck):
        raise ValueError("without input there is no bottleneck, so shared must be None and from_bottleneck False")
    if shared is not None and from_bottleneck:
        raise ValueError("with from_bottleneck, query and key take u0: shared must be None")
    bottlenecks = {name: each for name, each in (("input", input), ("shared", shared)) if each is not None}
    widths = {name: check_projection(name, each, (None, H), normed=True) for name, each in bottlenecks.items()}
    narrow = widths["input"] if from_bottleneck else H
    A = check_projection("query", query, (None, widths.get("shared", narrow)), normed=False)
    check_projection("key", key, (A, widths.get("shared", narrow)), normed=False)
    check_projection("value", value, (None, narrow), normed=False)
    parameters = pack(query, key, value, *bottlenecks.values())
    check_devices_and_dtypes(parameters, h=h)
    return parameters


def bottleneck_ffn(
    attention: Tensor,
    u0: Tensor,
    h: Tensor | None,
    output: _Normed,
    feed_forwards: Sequence[tuple[_Projection, _Normed]],
    out: _Normed | None = None,
    *,
    activation: str = "relu",
    dropout_p: float = 0.0,
    rng_state: Tensor | None = None,
) -> Tensor:
    """All of a layer behind its attention.

    Args:
        attention: [..., A] in float32, bfloat16, float16 or float64; strides are free, there may be no rows.
        u0: [..., D], the residual of the narrow stream.
        h: [..., H], that of the wide one. None for a layer without a bottleneck, which has one stream, u0.
        output: the NormedProjection behind the attention; a plain tuple will do.
        feed_forwards: pairs (Projection [F, D], NormedProjection [D, F]), at least one.
        out: the NormedProjection back to H; None where h is.
        activation: "relu", "gelu", "gelu_tanh" or "silu".
        dropout_p: probability of an element to be dropped, in [0, 1]: in front of h's sum, or without a bottleneck in
            front of the attention's sum and of the last feed-forward block's.
        rng_state: int64 [2] (seed, offset), the layer's, needed where dropout_p > 0. What is dropped in front of the
            last sum is that of `_dropout.at(rng_state, 0, 2)`, in front of the attention's `at(rng_state, 0, 1)`.

    Devices and dtypes as in bottleneck_input.

    Returns: [..., H], or u's [..., D] without a bottleneck, in the (promoted) dtype of attention, u0 and h.
    Differentiable any number of times in them and all parameters.

    Raises: as bottleneck_input, and ValueError for an unknown activation, no feed_forwards, and a dropout without
    rng_state.
    """
    parameters = _check_ffn(attention, u0, h, output, feed_forwards, out, activation, dropout_p, rng_state)
    return _run_ffn(ffn_op, attention, u0, h, parameters, activation, dropout_p, rng_state)


def packed_ffn(
    attention: Tensor,
    u0: Tensor,
    h: Tensor | None,
    parameters: Parameters,
    activation: str,
    dropout_p: float,
    rng_state: Tensor | None,
) -> Tensor:
    """bottleneck_ffn without its checks, for callers whose parameters are plain tensors of the right shapes."""
    run = ffn_forward if _plainly(attention, u0, u0 if h is None else h) else ffn_op
    return _run_ffn(run, attention, u0, h, parameters, activation, dropout_p, rng_state)


def _run_ffn(
    run: Callable[..., Tensor],
    attention: Tensor,
    u0: Tensor,
    h: Tensor | None,
    parameters: Parameters,
    activation: str,
    dropout_p: float,
    rng_state: Tensor | None,
) -> Tensor:
    activations = [attention, u0] if h is None else [attention, u0, h]
    activations, parameters = promote(activations, in_autocast(parameters, u0.device))
    attention, u0, *stream = activations
    options = (activation, float(dropout_p), rng_state if dropout_p > 0 else None)
    backend = _backend(activations, parameters)
    return run(attention, u0, stream[0] if stream else None, *parameters, *options, backend)


def _check_ffn(
    attention: Tensor,
    u0: Tensor,
    h: Tensor | None,
    output: _Normed,
    feed_forwards: Sequence[tuple[_Projection, _Normed]],
    out: _Normed | None,
    activation: str,
    dropout_p: float,
    rng_state: Tensor | None,
) -> Parameters:
    activations = {"attention": attention, "u0": u0} | ({} if h is None else {"h": h})
    check_activations(**activations)
    if (h is None) != (out is None):
        raise ValueError(f"h and out go together; {'h' if h is None else 'out'} is None")
    if not feed_forwards:
        raise ValueError("feed_forwards must have at least one block; it has none")
    D = u0.shape[-1]
    check_projection("output", output, (D, attention.shape[-1]), normed=True)
    for i, (expand, contract) in enumerate(feed_forwards):
        F = check_projection(f"feed_forwards[{i}][0]", expand, (None, D), normed=False)
        check_projection(f"feed_forwards[{i}][1]", contract, (D, F), normed=True)
    if h is not None and out is not None:
        check_projection("out", out, (h.shape[-1], D), normed=True)
    check_activation(activation)
    check_dropout(dropout_p, rng_state, attention.device)
    blocks = [projection for block in feed_forwards for projection in block]
    parameters = pack(output, *blocks, *(() if out is None else (out,)))
    check_devices_and_dtypes(parameters, **activations)
    return parameters


# ---- backends, each named after its file: ./cpu.py (csrc/bottleneck/cpu.cpp), ./triton.py, ./reference.py


def _input_triton_why_not(key: Key) -> str | None:
    return _triton.why_not(key) or _too_wide(key)


def _ffn_triton_why_not(key: Key) -> str | None:
    if key.widths[3] == 0:
        return "takes feed-forward blocks of one width; these differ"
    return _triton.why_not(key) or _too_wide(key)


def _too_wide(key: Key) -> str | None:
    h, matrices, D = *key.dtypes[:2], key.widths[1]
    # Products of float32 factors take twice the registers.
    widest = 128 if h == torch.float32 and matrices != torch.bfloat16 else 256
    return (
        None if widest >= D else f"keeps the narrow stream in registers, up to {widest} elements of a row; it has {D}"
    )


def _triton_input(*args: Any) -> Any:
    from . import triton

    return triton.bottleneck_input(*args)


def _triton_input_backward(*args: Any) -> Any:
    from . import triton

    return triton.bottleneck_input_backward(*args)


def _triton_ffn(*args: Any) -> Any:
    from . import triton

    return triton.bottleneck_ffn(*args)


def _triton_ffn_backward(*args: Any) -> Any:
    from . import triton

    return triton.bottleneck_ffn_backward(*args)


def _always(key: Key) -> None:
    return None


def _input_key(
    h: Tensor,
    query: _Projection,
    key: _Projection,
    value: _Projection,
    input: _Normed | None = None,
    shared: _Normed | None = None,
    *,
    from_bottleneck: bool = False,
) -> tuple[torch.device, tuple[torch.dtype, ...], tuple[int, ...]]:
    parameters = _check_input(h, query, key, value, input, shared, from_bottleneck)
    (h,), parameters = promote([h], in_autocast(parameters, h.device))
    return input_statics(h, parameters)


def _ffn_key(
    attention: Tensor,
    u0: Tensor,
    h: Tensor | None,
    output: _Normed,
    feed_forwards: Sequence[tuple[_Projection, _Normed]],
    out: _Normed | None = None,
    *,
    activation: str = "relu",
    dropout_p: float = 0.0,
    rng_state: Tensor | None = None,
) -> tuple[torch.device, tuple[torch.dtype, ...], tuple[int, ...]]:
    parameters = _check_ffn(attention, u0, h, output, feed_forwards, out, activation, dropout_p, rng_state)
    activations = [attention, u0] if h is None else [attention, u0, h]
    activations, parameters = promote(activations, in_autocast(parameters, u0.device))
    return ffn_statics(activations[1], None if h is None else activations[2], parameters)


_dispatch.define(
    "bottleneck_input",
    [
        Backend("cpu", cpu.input_why_not, cpu.bottleneck_input, reference.bottleneck_input_backward),
        Backend("triton", _input_triton_why_not, _triton_input, _triton_input_backward),
        Backend("reference", _always, reference.bottleneck_input, reference.bottleneck_input_backward),
    ],
    _input_key,
)
_dispatch.define(
    "bottleneck_ffn",
    [
        Backend("cpu", cpu.ffn_why_not, cpu.bottleneck_ffn, reference.bottleneck_ffn_backward),
        Backend("triton", _ffn_triton_why_not, _triton_ffn, _triton_ffn_backward),
        Backend("reference", _always, reference.bottleneck_ffn, reference.bottleneck_ffn_backward),
    ],
    _ffn_key,
)
