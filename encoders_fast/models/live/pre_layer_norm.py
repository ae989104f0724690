"""RoBERTa-PreLayerNorm and XLM-RoBERTa-XL: what takes the place of transformers' modules.

Every sum and the LayerNorm that follows it, which often belongs to the next layer, are one call of the op
residual_layer_norm. What the configuration makes of queries, keys and values stays transformers'.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor, nn

from ..activations import fused_activation
from ..observers import is_layer_norm, unobserved
from ..pre_layer_norm import add_and_normalize
from ..projections import activate, project, project_together
from .attention import attention_function
from .replacement import Replacement


class Ahead:
    """LayerNorm(h) for the next layer, from the layer that made h. Lives for one pass over the layers."""

    def __init__(self, layers: list[Any]) -> None:
        self.layers = layers
        self.obstacles = [layer.obstacle() for layer in layers]
        self.h: Tensor | None = None
        self.normalized: Tensor | None = None

    def norm_behind(self, layer: Any) -> nn.Module | None:
        """The LayerNorm that the next layer begins with, if nobody sees what passes between the two."""
        index = self.place(layer)
        if index is None or index + 1 == len(self.layers) or self.obstacles[index + 1] is not None:
            return None
        following = self.layers[index + 1]
        norm = following.norm_of(following.attention)
        if not is_layer_norm(norm) or not unobserved(norm):
            return None
        weight = layer.output.dense.weight  # of a quantized layer a method
        return norm if norm.weight.device == getattr(weight, "device", norm.weight.device) else None

    def place(self, layer: Any) -> int | None:
        """None where somebody took layers out or put them in another order."""
        index = layer.attention.self.layer_idx
        return index if index < len(self.layers) and self.layers[index] is layer else None

    def obstacle(self, layer: Any) -> str | None:
        index = self.place(layer)
        return layer.obstacle() if index is None else self.obstacles[index]

    def take(self, h: Tensor) -> Tensor | None:
        """LayerNorm(h), if h is what the layer before made."""
        return self.normalized if self.h is h else None


class Layer(Replacement):
    """h + attention(LayerNorm(h)), in a decoder with cross attention too, and the feed-forward block."""

    work = "packed_linear and residual_layer_norm"
    norm_name: ClassVar[str]
    """Of the LayerNorm in front of attention."""
    feed_forward_norm_name: ClassVar[str]
    types: ClassVar[dict[str, type[nn.Module]]]
    """Of the modules that are not called."""
    attention: Any
    intermediate: Any
    output: Any
    chunk_size_feed_forward: int

    def bypassed(self) -> dict[str, type[nn.Module]]:
        found = {name: kind for name, kind in self.types.items() if name.split(".")[0] in self._modules}
        return found | {self.feed_forward_norm_name: nn.LayerNorm}

    def obstacle(self) -> str | None:
        if self.chunk_size_feed_forward > 0:
            return "chunk_size_feed_forward is set"
        return super().obstacle()

    def norm_of(self, attention: Any) -> nn.Module:
        return attention._modules[self.norm_name]

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        ahead: Ahead | None = None,
        **kwargs: Any,
    ) -> Tensor:
        cross: Any = self._modules.get("crossattention") if encoder_hidden_states is not None else None
        obstacle = self.obstacle() if ahead is None else ahead.obstacle(self)
        if obstacle is not None or (encoder_hidden_states is not None and cross is None):
            return super().forward(
                hidden_states,
                attention_mask,
                encoder_hidden_states,
                encoder_attention_mask,
                past_key_values=past_key_values,
                **kwargs,
            )
        attention, last_norm = self.attention, self.get_submodule(self.feed_forward_norm_name)
        h = hidden_states
        normalized = None if ahead is None else ahead.take(h)
        if normalized is None:
            normalized = self.norm_of(attention)(h)
        context = attention.self(
            normalized,
            encoder_hidden_states=None,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            **kwargs,
        )
        norm = last_norm if cross is None else self.norm_of(cross)
        h, normalized = _add(attention.output, context[0], h, norm)
        if cross is not None:
            context = cross.self(
                normalized,
                encoder_hidden_states=encoder_hidden_states,
                attention_mask=encoder_attention_mask,
                past_key_values=past_key_values,
                **kwargs,
            )
            h, normalized = _add(cross.output, context[0], h, last_norm)
        function = fused_activation(self.intermediate.intermediate_act_fn)
        expanded = activate(function, self.intermediate.dense, normalized)
        h, normalized = _add(self.output, expanded, h, None if ahead is None else ahead.norm_behind(self))
        if ahead is not None:
            ahead.h, ahead.normalized = h, normalized
        return h


def _add(output: Any, x: Tensor, h: Tensor, norm: nn.Module | None) -> tuple[Tensor, Any]:
    """(s, norm(s)) of s = h + dropout(dense(x))."""
    return add_and_normalize(project(output.dense, x), h, getattr(output, "dropout", None), norm, None)


class SelfAttention(Replacement):
    """Queries, keys and values from one product; attention is the function that the configuration names. With a cache
    it is transformers' own."""

    work = "packed_linear for queries, keys and values together"
    eager: ClassVar[Callable[..., Any]]
    """transformers' function of that name."""
    config: Any
    dropout: Any
    scaling: float
    attention_head_size: int

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, past_key_values: Any = None, **kwargs: Any
    ) -> Any:
        if past_key_values is not None:
            return super().forward(hidden_states, attention_mask, past_key_values=past_key_values, **kwargs)
        kwargs.pop("cache_position", None)
        shape = hidden_states.shape[:-1]
        query, key, value = (
            x.unflatten(-1, (-1, self.attention_head_size)).transpose(1, 2)
            for x in project_together((self.query, self.key, self.value), hidden_states)
        )
        attend = attention_function(self.config._attn_implementation, type(self).eager)
        dropout = self.dropout.p if self.training else 0.0
        context, probabilities = attend(
            self, query, key, value, attention_mask, dropout=dropout, scaling=self.scaling, **kwargs
        )
        return context.reshape(*shape, -1).contiguous(), probabilities


class Encoder(Replacement):
    """Tells each layer what the next one begins with."""

    work = "residual_layer_norm across layers"
    whole = False
    layer: Any

    def obstacle(self) -> str | None:
        layers = list(self.layer)
        if not all(isinstance(layer, Layer) for layer in layers):
            return "not all of its layers are replaced"
        if not unobserved(*layers):
            return "its layers have hooks, which want to see what they are called with"
        return None

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        layers = list(self.layer)
        # Of a layer that runs again for its gradients, all that crosses its border is kept: not two tensors, but one.
        again = any(layer.gradient_checkpointing and layer.training for layer in layers)
        if not again and self.obstacle() is None:
            kwargs["ahead"] = Ahead(layers)
        return super().forward(hidden_states, *args, **kwargs)
