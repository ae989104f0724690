"""The op `block_sparse_attention` as an nn.Module."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from .. import _dropout
from ..ops import BlockSparsePattern, block_sparse_attention


class BlockSparseAttention(nn.Module):
    """softmax(query key^T / sqrt(K)) value of query, key and value [B, H, T, K], over a pattern's blocks of keys.

    Args:
        pattern: a BlockSparsePattern, or a function of (tokens, training) that gives one, for inputs of any length:
            `lambda tokens, training: BlockSparsePattern.big_bird(tokens, heads=12, training=training)`.
        dropout_p: in training, the probability to drop a probability. The state is drawn with torch's generator.
        scale: in place of 1 / sqrt(K).

    Has no parameters: projections are the caller's. `forward` takes the masks of the op.
    """

    def __init__(
        self,
        pattern: BlockSparsePattern | Callable[[int, bool], BlockSparsePattern],
        dropout_p: float = 0.0,
        scale: float | None = None,
    ) -> None:
        super().__init__()
        _dropout.check_probability(dropout_p)
        self.pattern, self.dropout_p, self.scale = pattern, dropout_p, scale

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        query_padding_mask: Tensor | None = None,
        head_mask: Tensor | None = None,
    ) -> Tensor:
        pattern = self.pattern
        if not isinstance(pattern, BlockSparsePattern):
            pattern = pattern(query.shape[2], self.training)
        dropout_p = self.dropout_p if self.training else 0.0
        return block_sparse_attention(
            query,
            key,
            value,
            pattern,
            key_padding_mask=key_padding_mask,
            query_padding_mask=query_padding_mask,
            head_mask=head_mask,
            dropout_p=dropout_p,
            rng_state=_dropout.draw(query.device) if dropout_p > 0 else None,
            scale=self.scale,
        )

    def extra_repr(self) -> str:
        pattern = self.pattern if isinstance(self.pattern, BlockSparsePattern) else "one for each length"
        return f"{pattern}, dropout_p={self.dropout_p}, scale={self.scale}"
