"""BigBird: what takes the place of transformers' modules."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.big_bird import modeling_big_bird as stock

from ...ops import BlockSparsePattern, block_sparse_attention
from ..observers import change_class, unobserved
from ..projections import project_together
from . import feed_forward
from .replacement import Replacement

# Whether who wants the probabilities says so by an argument, or just looks at what a module returns.
_ON_DEMAND = "output_attentions" in inspect.signature(stock.BigBirdAttention.forward).parameters


def split(x: Tensor, heads: int) -> Tensor:
    """[B, T, H * K] -> [B, H, T, K]"""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


class _Attention(Replacement):
    def asks_for_probabilities(self, *arguments: Any, **keywords: Any) -> bool:
        return any(arguments) or bool(keywords.get("output_attentions")) or not (_ON_DEMAND or unobserved(self))


class BigBirdBlockSparseAttention(_Attention, stock.BigBirdBlockSparseAttention):
    """Attention over lists of blocks. Who asks for the probabilities, [B, H, T, T], gets them from transformers."""

    work = "packed_linear and block_sparse_attention"

    def forward(
        self,
        hidden_states: Tensor,
        band_mask: Tensor | None = None,
        from_mask: Tensor | None = None,
        to_mask: Tensor | None = None,
        from_blocked_mask: Tensor | None = None,
        to_blocked_mask: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        masks = (band_mask, from_mask, to_mask, from_blocked_mask, to_blocked_mask)
        if from_mask is None or to_mask is None or self.asks_for_probabilities(*args, **kwargs):
            return super().forward(hidden_states, *masks, *args, **kwargs)
        pattern = BlockSparsePattern.big_bird(
            hidden_states.shape[1],
            block=self.block_size,
            heads=self.num_attention_heads,
            random_blocks=self.num_random_blocks,
            layer=self.seed,
            training=self.training,
            max_positions=self.max_seqlen,
            device=hidden_states.device,
        )
        query, key, value = (
            split(x, self.num_attention_heads)
            for x in project_together((self.query, self.key, self.value), hidden_states)
        )
        context = block_sparse_attention(
            query,
            key,
            value,
            pattern,
            key_padding_mask=to_mask[:, 0, 0] != 0,
            query_padding_mask=from_mask[:, 0, :, 0] != 0,
        )
        return context.transpose(1, 2).flatten(2), None


class BigBirdSelfAttention(_Attention, stock.BigBirdSelfAttention):
    """Full attention by torch's fused operator. An encoder's tokens and cached ones are left to transformers."""

    work = "packed_linear and scaled_dot_product_attention"

    def bypassed(self) -> dict[str, type[nn.Module]]:
        return {"dropout": nn.Dropout}

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        others = (encoder_hidden_states, encoder_attention_mask, past_key_values)
        if (
            any(other is not None for other in others)
            or self.asks_for_probabilities(*args, **kwargs)
            or self.obstacle() is not None
        ):
            return super().forward(hidden_states, attention_mask, *others, *args, **kwargs)
        query, key, value = (
            split(x, self.num_attention_heads)
            for x in project_together((self.query, self.key, self.value), hidden_states)
        )
        dropout_p = self.dropout.p if self.dropout.training else 0.0
        context = F.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask, dropout_p=dropout_p)
        return context.transpose(1, 2).flatten(2), None


class BigBirdAttention(Replacement, stock.BigBirdAttention):
    """Goes on with replacements where transformers goes over to the other kind of attention."""

    work = "its parts"
    whole = False

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        if not _ON_DEMAND and unobserved(self.self) and not unobserved(self):  # somebody looks at what it returns
            kwargs["output_attentions"] = True
        return super().forward(*args, **kwargs)

    def set_attention_type(self, value: str, layer_idx: int | None = None) -> None:
        super().set_attention_type(value, layer_idx=layer_idx)
        for kind in (BigBirdBlockSparseAttention, BigBirdSelfAttention):
            if type(self.self) is kind.stock:
                change_class(self.self, kind)


class BigBirdSelfOutput(feed_forward.AddAndNormalize, stock.BigBirdSelfOutput):
    pass


class BigBirdIntermediate(feed_forward.Intermediate, stock.BigBirdIntermediate):
    pass


class BigBirdOutput(feed_forward.AddAndNormalize, stock.BigBirdOutput):
    pass


REPLACEMENTS = (
    BigBirdAttention,
    BigBirdBlockSparseAttention,
    BigBirdIntermediate,
    BigBirdOutput,
    BigBirdSelfAttention,
    BigBirdSelfOutput,
)
