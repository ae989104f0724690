"""Token logits from hidden states. Parameter names are the checkpoints'."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .activations import activate, activation


class PredictionTransform(nn.Module):
    """LayerNorm(act(dense(h))): [B, T, D] -> [B, T, D]."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.transform_act_fn = activation(config.hidden_act)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, h: Tensor) -> Tensor:
        return self.LayerNorm(activate(self.transform_act_fn, self.dense, h))


class BertLanguageHead(nn.Module):
    """`cls.predictions`: [B, T, D] -> [B, T, V]. The decoder's weight is the word embeddings', its bias is `bias`."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.transform = PredictionTransform(config)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, h: Tensor) -> Tensor:
        return self.decoder(self.transform(h))
