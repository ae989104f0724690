"""Why something runs the way it does: an op on its backend, a live model on what `accelerate` put into it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, overload

from torch import nn

from . import _dispatch

if TYPE_CHECKING:
    from .models.live import ModelExplanation


@overload
def explain(subject: nn.Module) -> ModelExplanation: ...  # type: ignore[overload-overlap]


@overload
def explain(subject: str | Callable[..., Any], *args: Any, **kwargs: Any) -> _dispatch.Explanation: ...


def explain(
    subject: nn.Module | str | Callable[..., Any], *args: Any, **kwargs: Any
) -> _dispatch.Explanation | ModelExplanation:
    """Of an op, by name or by its public function: which backend `op(*args)` would run on, and the refusals of all
    that cannot run it. Of a model: which of its modules `accelerate` replaced and what they run on, and for each one
    that it left alone the reason.

    Nothing is computed. Raises ValueError for an unknown op, and for bad arguments what the op raises; TypeError for
    arguments behind a model.
    """
    if isinstance(subject, nn.Module):
        if args or kwargs:
            raise TypeError("explain(model) takes no other arguments: it looks at modules, not at a call")
        from .models.live import explain_model  # needs transformers

        return explain_model(subject)
    return _dispatch.explain(subject, *args, **kwargs)
