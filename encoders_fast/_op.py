"""Turns four plain functions into one torch op: its schema, its fake, its autograd and a cheap eager path."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.autograd import forward_ad

_library = torch.library.Library("encoders_fast", "FRAGMENT")
_PLAIN = (torch.Tensor, torch.nn.Parameter)


def _eager(args: tuple[Any, ...]) -> bool:
    """True where nothing but the kernel can see this call: plain tensors, and no mode or tracer active."""
    for arg in args:
        if isinstance(arg, torch.Tensor) and type(arg) not in _PLAIN:
            return False
    return not (
        torch._C._len_torch_dispatch_stack()
        or torch._C._len_torch_function_stack()
        or torch._C._get_tracing_state() is not None
    )


def _transformed() -> bool:
    """True inside torch.func's transforms and forward-mode differentiation, which the registered op does not know."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def direct(*tensors: torch.Tensor) -> bool:
    """Whether only the kernel sees a call with these tensors: no compiler, transform, mode or tracer does."""
    return not torch.compiler.is_compiling() and not _transformed() and _eager(tensors)


class Derivatives(NamedTuple):
    """What autograd and torch.func need of an op. ctx is that of torch.autograd.Function."""

    save: Callable[[Any, tuple[Any, ...], Any], tuple[torch.Tensor | None, ...]]
    """(ctx, inputs, output) -> the tensors that the next two find in ctx.saved_tensors; the rest goes on ctx."""
    backward: Callable[..., Any]
    """(ctx, *gradients) -> gradients of the inputs. A gradient is None where an output was not used."""
    jvp: Callable[..., Any] | None = None
    """(ctx, *tangents) -> tangents of the outputs, None where an input has none. Without it, a call in forward mode
    raises NotImplementedError."""
    vmap: Callable[..., Any] | None = None
    """(info, in_dims, *args) -> (outputs, out_dims). Without it, samples are computed one by one."""


def one_by_one(call: Callable[..., Any], info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
    """A vmap that calls the op once for every sample and stacks each output."""
    if info.batch_size == 0:
        raise NotImplementedError("this op computes samples one by one, and vmap gives it none: the batch is empty")
    outputs = [
        call(*(arg if dim is None else arg.select(dim, i) for arg, dim in zip(args, in_dims, strict=True)))
        for i in range(info.batch_size)
    ]
    if isinstance(outputs[0], torch.Tensor):
        return torch.stack(outputs), 0
    return tuple(torch.stack(parts) for parts in zip(*outputs, strict=True)), (0,) * len(outputs[0])


def op(
    schema: str, *, forward: Callable[..., Any], fake: Callable[..., Any], derivatives: Derivatives | None = None
) -> Callable[..., Any]:
    """Register `schema` in the namespace `encoders_fast` and return its callable, which takes positional arguments.

    `forward` computes, on every device: it is where backends part. `fake` gives the outputs' shapes and dtypes. An op
    without `derivatives` is a gradient that is never differentiated itself.

    Modes, subclasses, tracers and torch.compile see the registered op. A plain eager call goes straight to `forward`,
    or to an autograd.Function made of the same functions: 33 us against 50 us of host time without gradients and 68 us
    against 141 us with them (fourier_mixing_layer_norm of one row of 16, torch 2.13, one 2.5 GHz Cascade Lake core).
    """
    name = schema[: schema.index("(")]
    _library.define(schema)
    _library.impl(name, forward, "CompositeExplicitAutograd")
    torch.library.register_fake(f"encoders_fast::{name}", fake, lib=_library)
    registered = getattr(torch.ops.encoders_fast, name).default
    if derivatives is not None:
        return _differentiable(name, registered, forward, derivatives)

    def call(*args: Any) -> Any:
        direct = not torch.compiler.is_compiling() and not torch._C._are_functorch_transforms_active() and _eager(args)
        return forward(*args) if direct else registered(*args)

    def samples(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
        return one_by_one(call, info, in_dims, *args)

    torch.library.register_vmap(f"encoders_fast::{name}", samples, lib=_library)
    return call


def _differentiable(
    name: str, registered: Callable[..., Any], forward: Callable[..., Any], derivatives: Derivatives
) -> Callable[..., Any]:
    save, backward = derivatives.save, derivatives.backward

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.set_materialize_grads(False)
        kept = save(ctx, inputs, output)
        ctx.save_for_backward(*kept)
        if forward_ad._current_level >= 0:
            ctx.save_for_forward(*kept)

    def in_one_piece(ctx: Any, *args: Any) -> Any:  # a separate setup_context costs more host time
        output = forward(*args)
        setup_context(ctx, args, output)
        return output

    def one_level_down(*args: Any) -> Any:
        with forward_ad._set_fwd_grad_enabled(False):
            return call(*args) if torch._C._are_functorch_transforms_active() else registered(*args)

    def no_jvp(ctx: Any, *tangents: Any) -> Any:
        raise NotImplementedError(f"{name} has no forward-mode derivative; its gradient (reverse mode) exists")

    def samples(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
        return one_by_one(call, info, in_dims, *args)

    vmap = derivatives.vmap or samples
    torch.library.register_autograd(f"encoders_fast::{name}", backward, setup_context=setup_context, lib=_library)
    torch.library.register_vmap(f"encoders_fast::{name}", vmap, lib=_library)
    eager = _function(name, forward=in_one_piece, backward=backward)
    transformable = _function(
        name,
        forward=one_level_down,
        setup_context=setup_context,
        backward=backward,
        jvp=derivatives.jvp or no_jvp,
        vmap=vmap,
    )

    def call(*args: Any) -> Any:
        if torch.compiler.is_compiling():
            return registered(*args)
        if _transformed():
            return transformable.apply(*args)
        if not _eager(args):
            return registered(*args)
        if torch.is_grad_enabled() and any(isinstance(arg, torch.Tensor) and arg.requires_grad for arg in args):
            return eager.apply(*args)
        return forward(*args)

    return call


def _function(name: str, **methods: Callable[..., Any]) -> Any:
    members = {method: staticmethod(function) for method, function in methods.items()}
    return type(name, (torch.autograd.Function,), members)
