"""Which modules of transformers have a replacement."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator

from torch import nn

from .. import FAMILIES
from .replacement import Replacement

_MODELING = re.compile(r"transformers\.models\.(\w+)\.modeling_\1")


def family_of(kind: type) -> str | None:
    """The family that transformers defines this class, or one that it derives from, for; None where it is none of
    ours."""
    for base in kind.__mro__:
        found = _MODELING.fullmatch(base.__module__)
        if found:
            return found[1] if found[1] in FAMILIES else None
    return None


def replacement_for(kind: type) -> type[Replacement] | None:
    """What replaces instances of `kind`, transformers' class or one that derives from it."""
    family = family_of(kind)
    if family is None:
        return None
    for replacement in importlib.import_module(f".{family}", __package__).REPLACEMENTS:
        if issubclass(kind, replacement.stock):
            return replacement
    return None


def replaceable(module: nn.Module) -> bool:
    """Whether it is an instance of a class of transformers that has a replacement, and of nothing that derives from
    it."""
    replacement = replacement_for(type(module))
    return replacement is not None and type(module) is replacement.stock


def replaced(model: nn.Module) -> Iterator[tuple[str, Replacement]]:
    """Every replacement in the model, with its path."""
    for path, module in model.named_modules():
        if isinstance(module, Replacement):
            yield path, module
