"""Turns four plain functions into one torch op: its schema, its fake, its autograd and a cheap eager path."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import forward_ad

_library = torch.library.Library("encoders_fast", "FRAGMENT")
_PLAIN = (torch.Tensor, torch.nn.Parameter)


def _eager(args: tuple[Any, ...]) -> bool:
    """True where nothing but the kernel can see this call: plain tensors, and no mode or tracer active."""
    return (
        not torch._C._len_torch_dispatch_stack()
        and not torch._C._len_torch_function_stack()
        and torch._C._get_tracing_state() is None
        and all(type(arg) in _PLAIN for arg in args if isinstance(arg, torch.Tensor))
    )


def _transformed() -> bool:
    """True inside torch.func's transforms and forward-mode differentiation, which the registered op does not know."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def op(
    schema: str,
    *,
    forward: Callable[..., Any],
    fake: Callable[..., Any],
    save: Callable[..., tuple[torch.Tensor, ...]] | None = None,
    backward: Callable[..., Any] | None = None,
    vmap: Callable[..., Any] | None = None,
    jvp: Callable[..., Any] | None = None,
) -> Callable[..., Any]:
    """Register `schema` in the namespace `encoders_fast` and return its callable, which takes positional arguments.

    `forward` computes, on every device: it is where backends part. `fake` gives the outputs' shapes and dtypes.
    `save(ctx, inputs, output)` returns the tensors that `backward(ctx, *gradients)` and `jvp(ctx, *tangents)` find in
    ctx.saved_tensors, and puts the rest on ctx; a gradient or tangent is None where there is none. `vmap(info, in_dims,
    *args)` batches. An op without `save` (a gradient that is never differentiated itself) has no autograd.

    Modes, subclasses, tracers and torch.compile see the registered op. A plain eager call goes straight to `forward`,
    or to an autograd.Function made of the same functions: through the registered op the same call costs about twice
    the host time (14 us against 7 us under no_grad, 33 against 16 with gradients, torch 2.13, one Zen4 core).
    """
    name = schema[: schema.index("(")]
    _library.define(schema)
    _library.impl(name, forward, "CompositeExplicitAutograd")
    torch.library.register_fake(f"encoders_fast::{name}", fake, lib=_library)
    registered = getattr(torch.ops.encoders_fast, name).default

    if save is None:
        return lambda *args: forward(*args) if not torch.compiler.is_compiling() and _eager(args) else registered(*args)

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.set_materialize_grads(False)
        kept = save(ctx, inputs, output)
        ctx.save_for_backward(*kept)
        if forward_ad._current_level >= 0:
            ctx.save_for_forward(*kept)

    torch.library.register_autograd(f"encoders_fast::{name}", backward, setup_context=setup_context, lib=_library)
    torch.library.register_vmap(f"encoders_fast::{name}", vmap, lib=_library)

    def in_one_piece(ctx: Any, *args: Any) -> Any:  # a separate setup_context costs 20 us more per call
        output = forward(*args)
        setup_context(ctx, args, output)
        return output

    members = {"forward": staticmethod(in_one_piece), "backward": staticmethod(backward)}
    function: Any = type(name, (torch.autograd.Function,), members)

    def call(*args: Any) -> Any:
        if torch.compiler.is_compiling():
            return registered(*args)
        if _transformed():
            return transformable.apply(*args)
        if not _eager(args):
            return registered(*args)
        if torch.is_grad_enabled() and any(isinstance(arg, torch.Tensor) and arg.requires_grad for arg in args):
            return function.apply(*args)
        return forward(*args)

    def one_level_down(*args: Any) -> Any:
        with forward_ad._set_fwd_grad_enabled(False):
            return call(*args) if torch._C._are_functorch_transforms_active() else registered(*args)

    members = {
        "forward": staticmethod(one_level_down),
        "setup_context": staticmethod(setup_context),
        "backward": staticmethod(backward),
        "vmap": staticmethod(vmap),
        "jvp": staticmethod(jvp),
    }
    transformable: Any = type(name, (torch.autograd.Function,), members)
    return call
