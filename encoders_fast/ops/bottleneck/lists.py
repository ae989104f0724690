"""An op whose schema has lists of tensors. autograd.Function and vmap see a tensor only where it is an argument of its
own: here an op's lists are laid flat before, and put together again inside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import forward_ad
from torch.utils import _pytree

from ... import _op
from ..._op import Derivatives

_Sizes = tuple[int | None, ...]


def flatten(args: tuple[Any, ...]) -> tuple[_Sizes, list[Any]]:
    """For each argument its length where it is a list of tensors, and all arguments one after the other."""
    sizes: list[int | None] = []
    flat: list[Any] = []
    for arg in args:
        is_list = isinstance(arg, list) and not (arg and isinstance(arg[0], float))
        sizes.append(len(arg) if is_list else None)
        flat.extend(arg if is_list else (arg,))
    return tuple(sizes), flat


def unflatten(sizes: _Sizes, flat: Any) -> tuple[Any, ...]:
    args, start = [], 0
    for size in sizes:
        args.append(flat[start] if size is None else list(flat[start : start + size]))
        start += 1 if size is None else size
    return tuple(args)


def op_with_lists(
    schema: str, *, forward: Callable[..., Any], fake: Callable[..., Any], derivatives: Derivatives | None = None
) -> Callable[..., Any]:
    """As `_op.op`, for a schema with `Tensor[]` in it. `derivatives.backward` gives a list for a list, and finds in
    `ctx.wanted` which arguments need a gradient: one bool for each tensor or list."""
    name = schema[: schema.index("(")]
    _op._library.define(schema)
    _op._library.impl(name, forward, "CompositeExplicitAutograd")
    torch.library.register_fake(f"encoders_fast::{name}", fake, lib=_op._library)
    registered = getattr(torch.ops.encoders_fast, name).default

    def samples(info: Any, in_dims: tuple[Any, ...], sizes: _Sizes, *flat: Any) -> Any:
        """Calls the op once for every sample and stacks each output."""
        if info.batch_size == 0:
            raise NotImplementedError(f"{name} computes samples one by one, and vmap gives it none")
        outputs = []
        for i in range(info.batch_size):
            # The dimension of a list of numbers is a list.
            picked = [
                arg.select(dim, i) if isinstance(dim, int) else arg for arg, dim in zip(flat, in_dims[1:], strict=True)
            ]
            outputs.append(call(*unflatten(sizes, picked)))
        stacked = _pytree.tree_map(lambda *parts: torch.stack(parts), *outputs)
        return stacked, _pytree.tree_map(lambda _: 0, stacked)

    def registered_samples(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
        sizes, flat = flatten(args)
        dims: list[Any] = [None]
        for size, dim in zip(sizes, in_dims, strict=True):
            dims.extend((dim,) if size is None else dim)
        return samples(info, tuple(dims), sizes, *flat)

    torch.library.register_vmap(f"encoders_fast::{name}", registered_samples, lib=_op._library)
    apply, apply_transformed = _functions(name, registered, forward, derivatives, samples)

    def call(*args: Any) -> Any:
        if torch.compiler.is_compiling():
            return registered(*args)
        sizes, flat = flatten(args)
        if derivatives is not None and _op._transformed():
            return apply_transformed(sizes, *flat)
        if _op._transformed() or not _op._eager(tuple(flat)):
            return registered(*args)
        if derivatives is not None and torch.is_grad_enabled() and any(map(_needs_gradient, flat)):
            return apply(sizes, *flat)
        return forward(*args)

    return call


def _needs_gradient(arg: Any) -> bool:
    return isinstance(arg, torch.Tensor) and arg.requires_grad


def _functions(
    name: str,
    registered: Callable[..., Any],
    forward: Callable[..., Any],
    derivatives: Derivatives | None,
    samples: Callable[..., Any],
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Registers the gradient, and makes the autograd.Functions of a plain call and of torch.func's transforms. These
    take the lists' sizes and then all arguments laid flat."""
    if derivatives is None:
        return forward, forward
    save, backward = derivatives.save, derivatives.backward

    def wanted(needed: tuple[Any, ...]) -> list[bool]:
        return [any(each) if isinstance(each, list) else each for each in needed]

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*save(ctx, inputs, output))

    def registered_backward(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
        ctx.wanted = wanted(ctx.needs_input_grad)
        return backward(ctx, *gradients)

    torch.library.register_autograd(
        f"encoders_fast::{name}", registered_backward, setup_context=setup_context, lib=_op._library
    )

    def flat_setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.sizes = inputs[0]
        setup_context(ctx, unflatten(inputs[0], inputs[1:]), output)

    def in_one_piece(ctx: Any, sizes: _Sizes, *flat: Any) -> Any:
        output = forward(*unflatten(sizes, flat))
        flat_setup(ctx, (sizes, *flat), output)
        return output

    def one_level_down(sizes: _Sizes, *flat: Any) -> Any:
        with forward_ad._set_fwd_grad_enabled(False):
            if torch._C._are_functorch_transforms_active():
                return transformable.apply(sizes, *flat)
            return registered(*unflatten(sizes, flat))

    def flat_backward(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
        ctx.wanted = wanted(unflatten(ctx.sizes, ctx.needs_input_grad[1:]))
        return None, *flatten(backward(ctx, *gradients))[1]

    def no_jvp(ctx: Any, *tangents: Any) -> Any:
        raise NotImplementedError(f"{name} has no forward-mode derivative; its gradient (reverse mode) exists")

    eager = _op._function(name, forward=in_one_piece, backward=flat_backward)
    transformable = _op._function(
        name,
        forward=one_level_down,
        setup_context=flat_setup,
        backward=flat_backward,
        jvp=no_jvp,
        vmap=samples,
    )
    return eager.apply, transformable.apply
