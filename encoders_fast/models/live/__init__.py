"""Puts this library's code into live models of transformers, and takes it out again.

Only the classes of modules inside the given model change: the model keeps its own class, its parameters and what holds
them, their names, ties, hooks, device, dtype and mode. There is no record of what was done but these classes, so a copy
or a pickled model is as accelerated as the original. Nothing of transformers is patched.
"""

from __future__ import annotations

from typing import Any, TypeVar

from torch import nn

from .. import FAMILIES
from ..observers import change_class
from .explanation import ModelExplanation as ModelExplanation
from .explanation import explain_model as explain_model
from .families import family_of, replaceable, replaced, replacement_for
from .replacement import check_module, full_name
from .verification import Verification as Verification
from .verification import verify as verify

Model = TypeVar("Model", bound=nn.Module)


def accelerate(model: Model, *, strict: bool = False) -> Model:
    """Let a loaded transformers model of the five families, or a model around one, run on this library's ops.

    Its modules are called as before and return what they returned. Where somebody wants to see what a fused op would
    skip (a hook, an adapter in place of a layer, attention probabilities), transformers' own code runs for that call.
    `explain(model)` lists what was replaced and why the rest was not, `verify(model, **inputs)` compares with
    transformers' numbers, `restore(model)` undoes it. A module that several models share is replaced in all of them.

    Args:
        model: with FNet, BigBird, MobileBERT, RoBERTa-PreLayerNorm or XLM-RoBERTa-XL of transformers in it. It is
            changed in place. One of this library's own stays as it is.
        strict: raise, and change nothing, where a module that has a replacement cannot be replaced.

    Returns: the model itself.

    Raises: TypeError for what is not a module; ValueError for a model of another family; with `strict`
    NotImplementedError that names every such module and says why.
    """
    _check(model)
    changed: list[Any] = [module for module in model.modules() if replaceable(module)]
    for module in changed:
        new: Any = replacement_for(type(module))
        change_class(module, new)
    refused = explain_model(model).refused if strict else {}
    if refused:
        for module in changed:
            module.put_back()
        reasons = "; ".join(f"{path}: {why}" for path, why in refused.items())
        raise NotImplementedError(f"{type(model).__name__} cannot be replaced as a whole. {reasons}")
    return model


def restore(model: Model) -> Model:
    """Undo `accelerate`: every module has transformers' class again. Returns the model itself.

    Raises: TypeError for what is not a module; ValueError, before anything is changed, where something (FSDP, say) has
    put a class of its own over a replacement.
    """
    check_module(model)
    modules = list(replaced(model))
    for path, module in modules:
        if type(module) is not replacement_for(type(module)):
            raise ValueError(f"{path} is a {full_name(type(module))}: undo what made it that before restore(model)")
    for _, module in modules:
        module.put_back()
    return model


def _check(model: nn.Module) -> None:
    """Raise for what has nothing of the five families in it."""
    check_module(model)
    if not any(family_of(type(module)) or _ours(module) for module in model.modules()):
        raise ValueError(
            f"{type(model).__name__} is not of a family that this library has: {', '.join(FAMILIES)} of transformers"
        )


def _ours(module: nn.Module) -> bool:
    return type(module).__module__.startswith(f"{__package__.split('.')[0]}.")
