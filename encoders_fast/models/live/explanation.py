"""What of a model was replaced, and why the rest was not."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from torch import nn

from ..observers import hides_its_class
from .families import family_of, replacement_for
from .replacement import Replacement, full_name

NOT_CALLED = "it has a replacement: accelerate(model) puts it in"


class ModelExplanation(NamedTuple):
    """Paths of modules, each with what it runs on now, or with the reason for which transformers' code runs."""

    model: str
    replaced: dict[str, str]
    refused: dict[str, str]
    """There is a replacement, and it could not be put in or cannot do the work at present."""
    others: dict[str, str]
    """There is no replacement."""

    def __str__(self) -> str:
        lines = [f"{self.model}: {len(self.replaced)} modules replaced, {len(self.refused)} refused"]
        for title, modules in (("replaced", self.replaced), ("refused", self.refused), ("left alone", self.others)):
            lines += [f"  {title}"] * bool(modules) + [f"    {line}" for line in _together(modules)]
        return "\n".join(lines)


def _together(modules: dict[str, str]) -> Iterator[str]:
    """One line for what is the same in all layers."""
    counts: dict[tuple[str, str], int] = {}
    for path, text in modules.items():
        key = (re.sub(r"\b\d+\b", "*", path), text)
        counts[key] = counts.get(key, 0) + 1
    for (path, text), count in counts.items():
        yield f"{path}{f' ({count})' if count > 1 else ''}: {text}"


def explain_model(model: nn.Module) -> ModelExplanation:
    explanation = ModelExplanation(type(model).__name__, {}, {}, {})
    _visit("", model, explanation)
    return explanation


def _visit(path: str, module: nn.Module, explanation: ModelExplanation) -> None:
    name = path or "the model itself"
    if isinstance(module, Replacement):
        obstacle = "it has a forward of its own" if hides_its_class(module) else module.obstacle()
        if obstacle is None:
            explanation.replaced[name] = module.work
        else:
            explanation.refused[name] = obstacle
        if module.whole:
            return
    elif (replacement := replacement_for(type(module))) is not None:
        explanation.refused[name] = _why_not(module, replacement)
        if replacement.whole:
            return
    elif not _holds_more(module):
        explanation.others[name] = _without_replacement(module)
        return
    for child, submodule in module.named_children():
        _visit(f"{path}.{child}" if path else child, submodule, explanation)


def _why_not(module: nn.Module, replacement: type[Replacement]) -> str:
    """Why a module that could be replaced is not."""
    if type(module) is replacement.stock:
        return NOT_CALLED
    return f"it is a {full_name(type(module))}, which may compute something else than {replacement.stock.__name__}"


def _holds_more(module: nn.Module) -> bool:
    """Whether something in it is, or could be, replaced."""
    return any(isinstance(each, Replacement) or replacement_for(type(each)) for each in module.modules())


def _without_replacement(module: nn.Module) -> str:
    if isinstance(module, nn.Embedding) or type(module).__name__.endswith("Embeddings"):
        return "it looks values up and adds them, which no kernel makes faster to speak of"
    if type(module).__module__.startswith("torch.nn.modules."):
        return f"it is torch's own {type(module).__name__}"
    if family_of(type(module)) is not None:
        return "its time is that of torch's own matrix products"
    return f"it is a {full_name(type(module))}, which is not of the five families"
