"""Whether somebody looks at what a module does, so that its work may not be done elsewhere without a call."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.modules import module as hooks

output_capturing: Any = None
with contextlib.suppress(ImportError):  # before that, transformers put other forwards in the modules' place meanwhile
    from transformers.utils import output_capturing

_collector: Any = getattr(output_capturing, "_active_collector", None)


def unobserved(*modules: nn.Module) -> bool:
    """True where nobody sees what these modules take or return, so that their work may be fused: they have no hooks,
    and no other forward was put in the place of theirs, as accelerate does to bring weights in."""
    if hooks._global_forward_hooks or hooks._global_forward_pre_hooks:
        return False
    return not any(
        m._forward_pre_hooks
        or (m._forward_hooks and not _idle(m._forward_hooks.values()))
        or ("forward" in vars(m) and not has_own_forward(m))
        for m in modules
    )


def has_own_forward(module: nn.Module) -> bool:
    """Whether the module itself holds its class's forward, as some versions of transformers leave it behind where they
    had put another one in its place."""
    forward = vars(module).get("forward")
    return isinstance(forward, MethodType) and forward.__self__ is module and forward.__func__ is type(module).forward


def _idle(forward_hooks: Iterable[Any]) -> bool:
    """Whether these are only the hooks that transformers leaves behind where it once collected hidden states or
    attentions, and the running forward does not collect what they are for."""
    if _collector is None or any(hook.__module__ != output_capturing.__name__ for hook in forward_hooks):
        return False
    # As its own `get`, but for torch.compile, which cannot trace a context variable.
    compiled = _collector.compiling or torch.compiler.is_compiling()
    collected = _collector.global_var if compiled else _collector.context_var.get()
    return collected is None or not any(_collects(hook) in collected for hook in forward_hooks)


def _collects(hook: Any) -> str:
    return hook.__closure__[hook.__code__.co_freevars.index("key")].cell_contents


def plain(tensor: Tensor | None) -> bool:
    """Whether it is a tensor, or none, without behaviour of its own: not quantized, not spread over devices. What
    torch.export puts in the place of one while it traces counts too."""
    return tensor is None or type(tensor) in (nn.Parameter, Tensor, FakeTensor)
