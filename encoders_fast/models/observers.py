"""Whether somebody looks at what a module does, so that its work may not be done elsewhere without a call."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from types import MethodType
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.modules import module as hooks

output_capturing: Any = None
with contextlib.suppress(ImportError):  # before that, transformers put other forwards in the modules' place meanwhile
    from transformers.utils import output_capturing

_collector: Any = getattr(output_capturing, "_active_collector", None)


def unobserved(*modules: nn.Module) -> bool:
    """True where nobody sees what these modules take or return, forward or backward, so that their work may be fused:
    they have no hooks, and no other forward was put in the place of theirs, as accelerate does to bring weights in."""
    if hooks._global_forward_hooks or hooks._global_forward_pre_hooks:
        return False
    if hooks._global_backward_hooks or hooks._global_backward_pre_hooks:
        return False
    return not any(
        m._forward_pre_hooks
        or m._backward_hooks
        or m._backward_pre_hooks
        or (m._forward_hooks and not _idle(m._forward_hooks.values()))
        or ("forward" in vars(m) and not has_own_forward(m))
        for m in modules
    )


def has_own_forward(module: nn.Module) -> bool:
    """Whether the module itself holds its class's forward, as some versions of transformers leave it behind where they
    had put another one in its place."""
    return _is_forward(vars(module).get("forward"), module)


def hides_its_class(module: nn.Module) -> bool:
    """Whether it holds another forward that does not call its class's, as accelerate's does under `_old_forward`."""
    held = vars(module)
    return "forward" in held and not any(_is_forward(held.get(name), module) for name in ("forward", "_old_forward"))


def _is_forward(method: Any, module: nn.Module) -> bool:
    return isinstance(method, MethodType) and method.__self__ is module and method.__func__ is type(module).forward


def change_class(module: nn.Module, kind: type[nn.Module]) -> None:
    """Make a live module one of another class, with that class's forward wherever it holds its own one's."""
    held = {name: value for name, value in vars(module).items() if _is_forward(value, module)}
    module.__class__ = kind
    for name in held:
        if name == "forward":
            del module.forward
        else:
            vars(module)[name] = MethodType(kind.forward, module)


def _idle(forward_hooks: Iterable[Any]) -> bool:
    """Whether these are only the hooks that transformers leaves behind where it once collected hidden states or
    attentions, and the running forward does not collect what they are for."""
    if _collector is None or any(hook.__module__ != output_capturing.__name__ for hook in forward_hooks):
        return False
    # As its own `get`, but for torch.compile, which cannot trace a context variable.
    compiled = _collector.compiling or torch.compiler.is_compiling()
    collected = _collector.global_var if compiled else _collector.context_var.get()
    return collected is None or all(_collects(hook) not in (None, *collected) for hook in forward_hooks)


def _collects(hook: Any) -> str | None:
    """What it is for; None where it does not say so in the way that is known."""
    names = hook.__code__.co_freevars
    return hook.__closure__[names.index("key")].cell_contents if "key" in names else None


def is_layer_norm(module: nn.Module | None) -> TypeGuard[nn.LayerNorm]:
    """Whether it is torch's LayerNorm of the last dimension, with a weight and a bias."""
    return (
        type(module) is nn.LayerNorm
        and len(module.normalized_shape) == 1
        and module.weight is not None
        and module.bias is not None
    )


def plain(tensor: Tensor | None) -> bool:
    """Whether it is a tensor, or none, without behaviour of its own: not quantized, not spread over devices. What
    torch.export puts in the place of one while it traces counts too."""
    return tensor is None or type(tensor) in (nn.Parameter, Tensor, FakeTensor)
