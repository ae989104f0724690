"""The heads' losses, as transformers computes them, and the checks of their labels.

Logits in bfloat16 and float16 are taken to float32 first, so that a loss has more than three digits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)


def check_labels(name: str, labels: Tensor | None, *shapes: tuple[int, ...]) -> None:
    """Raise ValueError where `labels` has none of `shapes`."""
    if labels is not None and tuple(labels.shape) not in shapes:
        raise ValueError(f"{name} {tuple(labels.shape)} must be {' or '.join(map(str, shapes))}")


def class_loss(logits: Tensor, labels: Tensor, ignore_index: int = -100, reduction: str = "mean") -> Tensor:
    """Mean, or "sum", of the cross entropies of logits [..., classes] and those labels [...] that are not
    `ignore_index`."""
    if labels.dtype not in _INTEGERS:
        raise TypeError(f"class labels must be integers; they are {labels.dtype}")
    labels = labels.to(logits.device, torch.int64).flatten()
    return F.cross_entropy(_wide(logits).flatten(0, -2), labels, ignore_index=ignore_index, reduction=reduction)


def next_token_loss(logits: Tensor, labels: Tensor, items: Tensor | int | None = None) -> Tensor:
    """Mean cross entropy of each token's logits [B, T, V] and the label [B, T] of the one behind it.

    `items`, where it is given, is what their sum is divided by: Trainer's count of labels over several batches.
    """
    following = F.pad(labels[:, 1:], (0, 1), value=-100)
    if items is None:
        return class_loss(logits, following)
    total = class_loss(logits, following, reduction="sum")
    return total / (items.to(total.device) if isinstance(items, Tensor) else items)


def span_loss(start_logits: Tensor, end_logits: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Mean of the cross entropies of a span's start and end; a position behind the last token counts for nothing."""
    outside = start_logits.shape[1]
    start_loss = class_loss(start_logits, start.flatten().clamp(0, outside), outside)
    return (start_loss + class_loss(end_logits, end.flatten().clamp(0, outside), outside)) / 2


def problem_type(config: Any, labels: Tensor) -> str:
    """The kind of sequence classification, inferred from the first labels where the configuration does not say it.

    As in transformers the answer stays in the configuration: it is saved with the checkpoint, and pipelines read it.
    """
    if config.problem_type is None:
        if config.num_labels == 1:
            config.problem_type = "regression"
        elif labels.dtype in (torch.int64, torch.int32):
            config.problem_type = "single_label_classification"
        else:
            config.problem_type = "multi_label_classification"
    return config.problem_type


def check_sequence_labels(config: Any, labels: Tensor | None, batch: int) -> None:
    """Raise ValueError where `labels` do not fit the kind of problem and its number of classes."""
    if labels is None:
        return
    kind, classes = problem_type(config, labels), config.num_labels
    if kind == "single_label_classification" or (kind == "regression" and classes == 1):
        check_labels(f"labels for {kind}", labels, (batch,), (batch, 1), *([()] if batch == 1 else []))
    elif kind in ("regression", "multi_label_classification"):
        check_labels(f"labels for {kind}", labels, (batch, classes))
    else:
        raise ValueError(
            "problem_type must be regression, single_label_classification or multi_label_classification;"
            f" it is {kind!r}"
        )


def sequence_loss(config: Any, logits: Tensor, labels: Tensor) -> Tensor:
    """The loss of logits [B, classes] for the configuration's problem type; `check_sequence_labels` passed before."""
    kind = problem_type(config, labels)
    if kind == "single_label_classification":
        return class_loss(logits, labels)
    logits = _wide(logits)
    labels = labels.to(logits.device, logits.dtype)
    if kind == "regression":
        return F.mse_loss(logits, labels.reshape(logits.shape))
    return F.binary_cross_entropy_with_logits(logits, labels)


def _wide(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()
