"""Models of attention without their padding: layers see the real tokens of all sequences, end to end, as one sequence.

What a layer does to single tokens is then done to real ones alone. Attention takes each sequence apart again. The
result is the same at every real token; at the others there are zeros.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .inputs import readable
from .masks import Mask
from .observers import unobserved

# With less padding than this share there is little to save, and hidden states of padding are then worth more: a choice.
_WORTH = 0.05


class RealTokens:
    """Where the tokens of a batch [B, T] are that are not padding."""

    def __init__(self, real: Tensor) -> None:
        self.shape = real.shape
        self.places = real.flatten().nonzero().squeeze(1)
        self.lengths: list[int] = real.sum(1).tolist()

    def take(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [1, N, D], N real tokens."""
        return x.flatten(0, 1).index_select(0, self.places)[None]

    def put_back(self, x: Tensor) -> Tensor:
        """[1, N, D] -> [B, T, D], zeros for padding."""
        B, T = self.shape
        return x.new_zeros(B * T, x.shape[-1]).index_copy(0, self.places, x[0]).unflatten(0, (B, T))

    def put_back_heads(self, x: Tensor) -> Tensor:
        """[1, H, N, K] -> [B, H, T, K], zeros for padding."""
        H = x.shape[1]
        return self.put_back(x.transpose(1, 2).flatten(2)).unflatten(-1, (H, -1)).transpose(1, 2)


def removable(model: Any, mask: Mask, h: Tensor, *, keep: bool) -> RealTokens | None:
    """The real tokens, where their layers may see them alone: `mask` tells which they are, some are not, every
    sequence begins with one, as poolers read the first, and no hook in the model's encoder sees the batch's shape.

    `keep`: whether somebody wants to look at what padding becomes.
    """
    real = mask.keys
    if keep or getattr(model.config, "keep_padding", False) or real is None or mask.first_query is not None:
        return None
    if real.shape != h.shape[:2]:  # a cache's tokens come before these
        return None
    if not readable(real) or real.float().mean() > 1 - _WORTH or not real[:, 0].all():
        return None
    return RealTokens(real) if unobserved(*model.encoder.modules()) else None


def counts_padding(labels: Tensor | None, inputs: dict[str, Any]) -> bool:
    """Whether a label [B, T] of a padded token counts: its loss is then of what padding becomes."""
    mask = inputs.get("attention_mask")
    if labels is None or mask is None or mask.dim() != 2 or not readable(labels) or not readable(mask):
        return False
    if labels.numel() == 0 or mask.numel() == 0 or labels.numel() % mask.shape[1] != 0:
        return False  # the model will say what is wrong
    labels = labels.reshape(-1, mask.shape[1])
    return mask.shape[0] in (1, labels.shape[0]) and bool(((labels != -100) & (mask == 0)).any())
