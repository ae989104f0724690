from __future__ import annotations

import copy

import pytest
import torch

from encoders_fast.modules import BlockSparseAttention
from encoders_fast.ops import BlockSparsePattern, attention_probabilities, block_sparse_attention
from tests.closeness import relative_error


def test_one_pattern():
    pattern = BlockSparsePattern.sliding(50, block=8)
    query, key, value = (torch.randn(2, 3, 50, 16, dtype=torch.float64) for _ in range(3))
    module = BlockSparseAttention(pattern, scale=0.5)
    assert not list(module.parameters())
    assert not module.state_dict()
    real = torch.arange(50) < torch.tensor([[50], [20]])
    heads = torch.tensor([1.0, 0.0, 0.5], dtype=torch.float64)
    out = copy.deepcopy(module)(query, key, value, real, real, heads)
    probabilities = attention_probabilities(
        query, key, pattern, key_padding_mask=real, query_padding_mask=real, scale=0.5
    )
    assert relative_error(out, probabilities @ value * heads[:, None, None]) <= 1e-13
    assert repr(module) == f"BlockSparseAttention({pattern}, dropout_p=0.0, scale=0.5)"


def test_a_pattern_for_each_length_and_mode():
    def pattern(tokens: int, training: bool) -> BlockSparsePattern:
        return BlockSparsePattern.big_bird(tokens, block=8, heads=2, random_blocks=1, training=training)

    module = BlockSparseAttention(pattern)
    for tokens in (70, 90):
        x = torch.randn(1, 2, tokens, 16)
        for training in (True, False):
            expected = block_sparse_attention(x, x, x, pattern(tokens, training))
            assert torch.equal(module.train(training)(x, x, x), expected)
    assert "one for each length" in repr(module)


def test_dropout_in_training_alone():
    x = torch.randn(1, 2, 50, 16)
    module = BlockSparseAttention(BlockSparsePattern.sliding(50, block=8), dropout_p=0.5)
    torch.manual_seed(0)
    first, second = module(x, x, x), module(x, x, x)
    torch.manual_seed(0)
    assert torch.equal(module(x, x, x), first)
    assert not torch.equal(first, second)
    plain = block_sparse_attention(x, x, x, module.pattern)
    assert torch.equal(module.eval()(x, x, x), plain)
    with pytest.raises(ValueError, match=r"dropout_p must be in \[0, 1\]; it is 2"):
        BlockSparseAttention(module.pattern, dropout_p=2)
