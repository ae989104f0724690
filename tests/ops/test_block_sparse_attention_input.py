"""Bad input gets one sentence with the values, of the right type, before any work."""

from __future__ import annotations

import pytest
import torch

from encoders_fast import explain
from encoders_fast.ops import BlockSparsePattern, attention_probabilities, block_sparse_attention

pattern = BlockSparsePattern.full(6, 8, block=4)
query, key = torch.ones(2, 3, 6, 4), torch.ones(2, 3, 8, 4)
state = torch.tensor([1, 2])
of_two_heads = BlockSparsePattern.from_mask(torch.tensor([[[1, 1]], [[1, 0]]]), 4, 8, block=4)

QUERY_AND_KEY = [
    (([[1.0]], key), TypeError, "query must be a tensor; it is list"),
    ((query.long(), key.long()), TypeError, "query must be float32, .* it is torch.int64"),
    ((query, key.to_sparse()), TypeError, "key must be a dense tensor; its layout is torch.sparse_coo"),
    ((query, key.double()), TypeError, "key is torch.float64, query is torch.float32"),
    ((query, key.to("meta")), ValueError, "key is on meta, query is on cpu"),
    ((query[0], key[0]), ValueError, r"query must be \[batch, heads, tokens, width\]; its shape is \(3, 6, 4\)"),
    ((query, key[:1]), ValueError, r"query \(2, 3, 6, 4\) and key \(1, 3, 8, 4\) must have one batch"),
    ((query[..., :0], key[..., :0]), ValueError, "one width of at least 1"),
    ((query[:, :0], key[:, :0]), ValueError, "one or more heads"),
    ((query[:, :, 1:], key), ValueError, "do not have the tokens of the pattern, 6 and 8"),
]


@pytest.mark.parametrize(("tensors", "error", "sentence"), QUERY_AND_KEY)
def test_query_and_key(tensors, error, sentence):
    q, k = tensors
    with pytest.raises(error, match=sentence):
        block_sparse_attention(q, k, k, pattern)
    with pytest.raises(error, match=sentence):
        explain(block_sparse_attention, q, k, k, pattern)
    with pytest.raises(error, match=sentence):
        attention_probabilities(q, k, pattern)


@pytest.mark.parametrize(
    ("changed", "error", "sentence"),
    [
        ({"value": key[..., :3]}, ValueError, r"value \(2, 3, 8, 3\) must have the shape of key, \(2, 3, 8, 4\)"),
        ({"value": None}, TypeError, "value must be a tensor; it is NoneType"),
        ({"pattern": torch.ones(2, 2)}, TypeError, "pattern must be a BlockSparsePattern; it is Tensor"),
        ({"query": query[:, :, :4], "pattern": of_two_heads}, ValueError, "has not the pattern's number of heads, 2"),
        (
            {"key_padding_mask": torch.ones(2, 6)},
            ValueError,
            r"key_padding_mask must be \(2, 8\); its shape is \(2, 6\)",
        ),
        ({"query_padding_mask": torch.ones(6)}, ValueError, r"query_padding_mask must be \(2, 6\); .* \(6,\)"),
        ({"key_padding_mask": [1]}, TypeError, "key_padding_mask must be a tensor; it is list"),
        ({"key_padding_mask": torch.ones(2, 8, device="meta")}, ValueError, "key_padding_mask is on meta, query is on"),
        ({"head_mask": torch.ones(2)}, ValueError, r"head_mask must be \(3,\) or \(2, 3\); its shape is \(2,\)"),
        ({"head_mask": 1.0}, TypeError, "head_mask must be a tensor; it is float"),
        ({"head_mask": torch.ones(3, device="meta")}, ValueError, "head_mask is on meta, query is on cpu"),
        ({"dropout_p": 0.1}, ValueError, "dropout_p is 0.1, so rng_state is needed; it is None"),
        ({"dropout_p": 1.5, "rng_state": state}, ValueError, r"dropout_p must be in \[0, 1\]; it is 1.5"),
        ({"dropout_p": 0.1, "rng_state": state.int()}, TypeError, "rng_state must be int64; it is torch.int32"),
        ({"scale": "small"}, TypeError, "scale must be a number or None; it is 'small'"),
        ({"mask": None}, TypeError, "unexpected keyword argument 'mask'"),
    ],
)
def test_the_rest(changed, error, sentence):
    args = {"query": query, "key": key, "value": key, "pattern": pattern} | changed
    with pytest.raises(error, match=sentence):
        block_sparse_attention(**args)
    with pytest.raises(error, match=sentence):
        explain(block_sparse_attention, **args)
