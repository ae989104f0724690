"""What the golden numbers are numbers of: small models, and what is done with them.

The same code runs twice: with transformers 4.57, by `make_golden.py`, and with encoders_fast.models, by
tests/models/test_golden.py. It imports neither.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tests.golden.uses import (
    Results,
    Use,
    answer,
    decode,
    decode_one_by_one,
    decode_with_masked_heads,
    differentiate,
    encode,
    fill,
    mask_heads,
    prune_heads,
)

NUMBERS = Path(__file__).with_name("golden.safetensors")
"""float64, "<case>/<output>" -> the output as transformers computed it in float64."""
ERRORS = Path(__file__).with_name("golden.json")
"""How NUMBERS were made, and for each of them the relative L2 error that transformers had in float32."""

SMALL: dict[str, dict[str, Any]] = {
    "MobileBert": {
        "hidden_size": 40,
        "embedding_size": 24,
        "intra_bottleneck_size": 32,
        "intermediate_size": 37,
        "num_feedforward_networks": 2,
    },
    "RobertaPreLayerNorm": {"hidden_size": 32, "intermediate_size": 37},
    "XLMRobertaXL": {"hidden_size": 32, "intermediate_size": 37},
    "BigBird": {"hidden_size": 32, "intermediate_size": 37, "attention_type": "original_full"},
}
COMMON = {
    "vocab_size": 99,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 48,
    "type_vocab_size": 2,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


@dataclass(frozen=True)
class Case:
    """One model and one use of it."""

    model: str
    use: Use
    options: Mapping[str, Any] = field(default_factory=dict)
    ours: Mapping[str, Any] = field(default_factory=dict)
    """Options of our configuration that ask for what transformers does, where ours does something else by default."""
    training: bool = False

    @property
    def family(self) -> str:
        return next(family for family in SMALL if self.model.startswith(family))

    def compute(self, library: Any, dtype: torch.dtype, **options: Any) -> Results:
        """Build the model from `library` with `options` on top of the case's own, and use it."""
        config = getattr(library, f"{self.family}Config")(**{**COMMON, **SMALL[self.family], **self.options, **options})
        model = getattr(library, self.model)(config).to(dtype)
        fill(model)
        return self.use(model.train(self.training))


# ---- the cases ------------------------------------------------------------------------------------------------------

CASES: dict[str, Case] = {}

_MOBILEBERT = {
    "no_norm": {},
    "layer_norm": {"normalization_type": "layer_norm"},
    "bottleneck attention": {"use_bottleneck_attention": True},
    "bottleneck attention, keys not shared": {"use_bottleneck_attention": True, "key_query_shared_bottleneck": False},
    "no bottleneck": {"use_bottleneck": False},
    "no bottleneck, layer_norm": {"use_bottleneck": False, "normalization_type": "layer_norm"},
    "no trigram": {"trigram_input": False},
    "no trigram, one width": {"trigram_input": False, "embedding_size": 40},
    "one feed-forward": {"num_feedforward_networks": 1},
    "three feed-forwards, layer_norm": {"num_feedforward_networks": 3, "normalization_type": "layer_norm"},
    "no pooler activation": {"classifier_activation": False},
}
for _name, _options in _MOBILEBERT.items():
    CASES[f"MobileBERT {_name}"] = Case("MobileBertForPreTraining", differentiate(), _options)

for _model in ("MobileBertModel", "RobertaPreLayerNormModel", "XLMRobertaXLModel", "BigBirdModel"):
    CASES[f"{_model} masked heads"] = Case(_model, mask_heads)
    if _model != "BigBirdModel":  # in 4.57 it has no prune_heads
        CASES[f"{_model} pruned heads"] = Case(_model, prune_heads)
CASES["MobileBertModel masked heads, no bottleneck"] = Case("MobileBertModel", mask_heads, {"use_bottleneck": False})

_DECODER = {"is_decoder": True}
_CROSS = {"is_decoder": True, "add_cross_attention": True}
for _family in ("RobertaPreLayerNorm", "XLMRobertaXL"):
    for _type in ("relative_key", "relative_key_query"):
        _relative = {"position_embedding_type": _type}
        CASES[f"{_family} {_type}"] = Case(f"{_family}Model", differentiate(), _relative)
        CASES[f"{_family} {_type} masked heads"] = Case(f"{_family}Model", mask_heads, _relative)
        for _kind, _options in {"decoder": _DECODER, "cross attention": _CROSS}.items():
            _case = Case(f"{_family}ForCausalLM", decode_one_by_one, {**_relative, **_options})
            CASES[f"{_family} {_type} {_kind}"] = _case
    CASES[f"{_family} decoder"] = Case(f"{_family}ForCausalLM", decode, _DECODER)
    CASES[f"{_family} cross attention"] = Case(f"{_family}ForCausalLM", decode, _CROSS)
    CASES[f"{_family} cross attention, masked heads"] = Case(f"{_family}ForCausalLM", decode_with_masked_heads, _CROSS)
CASES["BigBird decoder"] = Case("BigBirdForCausalLM", decode, _DECODER)

_SPARSE = {"attention_type": "block_sparse", "max_position_embeddings": 4096}
_BLOCKS_OF_4 = {**_SPARSE, "block_size": 4, "num_random_blocks": 1}  # sparse from 4 * (5 + 2) + 1 = 29 tokens on
_BLOCKS_OF_16 = {**_SPARSE, "block_size": 16, "num_random_blocks": 3}  # sparse from 16 * (5 + 6) + 1 = 177 tokens on
_BLOCKS_OF_64 = {**_SPARSE, "block_size": 64, "num_random_blocks": 3}  # sparse from 64 * (5 + 6) + 1 = 705 tokens on
_LONG = {
    # 1024 tokens have a plan of random blocks of their own, drawn for max_position_embeddings.
    "1024 of 4096 tokens": (_BLOCKS_OF_16, 1024),
    "1024 of 1024 tokens": ({**_BLOCKS_OF_64, "max_position_embeddings": 1024}, 1024),
    "1088 tokens": (_BLOCKS_OF_16, 1088),  # any other length that is a multiple of the block size
    "48 tokens": (_BLOCKS_OF_4, 48),
    "29 tokens": (_BLOCKS_OF_4, 29),  # the shortest, and three tokens short of a block
    "28 tokens": (_BLOCKS_OF_4, 28),  # falls back to full attention
}
for _name, (_options, _tokens) in _LONG.items():
    CASES[f"BigBird block_sparse {_name}"] = Case("BigBirdModel", encode(_tokens), _options)
    CASES[f"BigBird block_sparse training {_name}"] = Case(
        "BigBirdModel", differentiate(_tokens), _options, training=True
    )
CASES["BigBird question answering"] = Case("BigBirdForQuestionAnswering", answer())
CASES["BigBird question answering block_sparse"] = Case("BigBirdForQuestionAnswering", answer(45), _BLOCKS_OF_4)
# A decoder that sees what comes after a token, in every block that the token attends to.
CASES["BigBird decoder block_sparse"] = Case(
    "BigBirdForCausalLM", encode(48), {**_BLOCKS_OF_4, **_DECODER}, ours={"causal_block_sparse": False}
)
