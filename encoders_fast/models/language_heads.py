"""Token logits from hidden states. Parameter names are the checkpoints'."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .activations import activation
from .projections import activate, overwritable, project_words
from .wide import LayerNorm, Linear


class PredictionTransform(nn.Module):
    """LayerNorm(act(dense(h))): [B, T, D] -> [B, T, D]."""

    def __init__(
        self,
        config: Any,
        linear: type[nn.Linear] = nn.Linear,
        layer_norm: type[nn.LayerNorm] = nn.LayerNorm,
    ) -> None:
        super().__init__()
        self.dense = linear(config.hidden_size, config.hidden_size)
        self.transform_act_fn = activation(config.hidden_act)
        self.LayerNorm = layer_norm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, h: Tensor) -> Tensor:
        return self.LayerNorm(activate(self.transform_act_fn, self.dense, h))


class MobileBertLanguageHead(nn.Module):
    """`cls.predictions`: [B, T, H] -> [B, T, V], in the parameters' dtype. The logits of t = transform(h) are

        t[:E] decoder.weight^T + t[E:] dense.weight + bias

    The decoder's weight [V, E] is the word embeddings', its bias is `bias`; dense's weight is [H - E, V].
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        E, H = config.embedding_size, config.hidden_size
        if E > H:
            raise ValueError(f"a language model needs an embedding_size up to hidden_size, {H}; it is {E}")
        self.transform = PredictionTransform(config, Linear, LayerNorm)
        self.dense = nn.Linear(config.vocab_size, H - E, bias=False)
        self.decoder = nn.Linear(E, config.vocab_size)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, h: Tensor) -> Tensor:
        E, V = self.decoder.in_features, self.dense.in_features
        if self.dense.weight.is_meta and not h.is_meta:  # moved away by hooks on calls, and `dense` is never called
            raise NotImplementedError(
                "MobileBERT's language head cannot run while the weight of cls.predictions.dense is offloaded: keep it"
                " in memory"
            )
        t = self.transform(h).to(self.dense.weight.dtype).flatten(0, -2)
        logits = self.decoder(t[:, :E])
        # Another [B * T, V] would be the largest tensor of the whole model, so it is added in place, which the gradient
        # of a Linear does not mind.
        add = logits.addmm_ if overwritable(self.decoder, logits.detach()) else logits.addmm
        logits = add(t[:, E:].to(logits.dtype), self.dense.weight.to(logits.dtype))
        return logits.view(*h.shape[:-1], V)


class BertLanguageHead(nn.Module):
    """`cls.predictions`: [B, T, D] -> [B, T, V]. The decoder's weight is the word embeddings', its bias is `bias`."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.transform = PredictionTransform(config)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, h: Tensor) -> Tensor:
        return project_words(self.decoder, self.transform(h))


_GELU = nn.GELU()


class RobertaLanguageHead(nn.Module):
    """`lm_head`: decoder(LayerNorm(gelu(dense(h)))), [B, T, D] -> [B, T, V], whatever `config.hidden_act` is. The
    decoder's weight is the word embeddings', its bias is `bias`."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, h: Tensor) -> Tensor:
        return project_words(self.decoder, self.layer_norm(activate(_GELU, self.dense, h)))
