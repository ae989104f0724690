"""What the model tests loop over: every head of every family, configurations, batches, and stock models to compare."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers.cache_utils import Cache

import encoders_fast.models as ours
from tests.closeness import assert_as_good_as, relative_error

TOKENS = 12
CHOICES = 3

SMALL: dict[str, dict[str, Any]] = {
    "BigBird": {
        "vocab_size": 99,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 37,
        "max_position_embeddings": 64,
        "type_vocab_size": 3,
        "pad_token_id": 3,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "attention_type": "original_full",
    },
    "FNet": {
        "vocab_size": 99,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "intermediate_size": 37,
        "max_position_embeddings": 64,
        "type_vocab_size": 4,
        "pad_token_id": 3,
        "hidden_dropout_prob": 0.0,
    },
    "MobileBert": {
        "vocab_size": 99,
        "hidden_size": 32,
        "embedding_size": 20,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intra_bottleneck_size": 24,
        "intermediate_size": 37,
        "num_feedforward_networks": 3,
        "max_position_embeddings": 64,
        "type_vocab_size": 3,
        "pad_token_id": 3,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    },
    "RobertaPreLayerNorm": {
        "vocab_size": 99,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 37,
        "max_position_embeddings": 64,
        "type_vocab_size": 3,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    },
    "XLMRobertaXL": {
        "vocab_size": 99,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 37,
        "max_position_embeddings": 64,
        "type_vocab_size": 3,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    },
}
"""A small configuration of each family: none of its sizes equal where they could be confused."""

LEAVES_PADDING_OUT = ("BigBird", "MobileBert", "RobertaPreLayerNorm", "XLMRobertaXL")

NAMES = [name for names in ours.FAMILIES.values() for name in names]
MODELS = [name for name in NAMES if not name.endswith(("Config", "Output", "PreTrainedModel"))]
HEADS = [name for name in MODELS if "For" in name]


def family(name: str) -> str:
    return next(prefix for prefix in SMALL if name.startswith(prefix))


def config(name: str, library: Any = ours, **options: Any) -> Any:
    """A small configuration for the model called `name`, ours or (library=transformers) stock. Ours keeps padding, so
    that all hidden states may be compared; test_padding.py is about leaving it out."""
    if "num_labels" not in options and ("TokenClass" in name or "SequenceClass" in name):
        options = {"num_labels": 3, **options}
    if "CausalLM" in name:
        options = {"is_decoder": True, **options}
    if library is ours and family(name) in LEAVES_PADDING_OUT:
        options = {"keep_padding": True, **options}
    return getattr(library, f"{family(name)}Config")(**{**SMALL[family(name)], **options})


@torch.no_grad()
def randomize(model: nn.Module, seed: int = 0) -> None:
    """Values that make every parameter matter: no zero biases, no LayerNorm weights of one."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        is_scale = name.lower().replace("_", "").endswith("layernorm.weight")
        parameter.copy_(1 + 0.3 * noise if is_scale else noise * (0.3 if parameter.dim() == 1 else 0.2))


def pair(name: str, dtype: torch.dtype = torch.float32, **options: Any) -> tuple[Any, Any]:
    """(stock, ours) called `name`, in evaluation mode, with the same weights."""
    stock = getattr(transformers, name)(config(name, transformers, **options))
    randomize(stock)
    model = getattr(ours, name)(config(name, **options))
    model.load_state_dict(stock.state_dict(), strict=True)
    if dtype != torch.float32:
        stock, model = stock.to(dtype), model.to(dtype)
    return stock.eval(), model.eval()


def exact(stock: nn.Module) -> Any:
    """The same model in float64."""
    config = stock.config
    wide = type(stock)(config)
    wide.load_state_dict(stock.state_dict())
    return wide.double().train(stock.training)


def batch(name: str, model_config: Any, labels: bool = False, B: int = 2, T: int = TOKENS) -> dict[str, Tensor]:
    """Random inputs for the model called `name`, with its labels on request."""
    generator = torch.Generator().manual_seed(1)

    def integers(below: int, *shape: int) -> Tensor:
        return torch.randint(0, below, shape, generator=generator)

    leading = (B, CHOICES) if "MultipleChoice" in name else (B,)
    inputs = {
        "input_ids": integers(model_config.vocab_size, *leading, T),
        "token_type_ids": integers(model_config.type_vocab_size, *leading, T),
    }
    if hasattr(model_config, "num_attention_heads"):  # the last sequence ends in padding
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        inputs["attention_mask"][-1, ..., T - T // 4 :] = 0
    if not labels:
        return inputs
    if "QuestionAnswering" in name:
        return inputs | {"start_positions": integers(T, B), "end_positions": integers(T, B)}
    token_labels = integers(model_config.vocab_size, B, T).masked_fill(integers(4, B, T) == 0, -100)
    if "PreTraining" in name:
        return inputs | {"labels": token_labels, "next_sentence_label": integers(2, B)}
    if "MaskedLM" in name or "CausalLM" in name:
        return inputs | {"labels": token_labels}
    if "TokenClass" in name:
        return inputs | {"labels": integers(model_config.num_labels, B, T)}
    classes = {"NextSentence": 2, "MultipleChoice": CHOICES, "SequenceClass": model_config.num_labels}
    return inputs | {"labels": integers(next(n for part, n in classes.items() if part in name), B)}


def tensors(output: Any) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a model's output with its name."""
    for name, value in output.items():
        if isinstance(value, Tensor):
            yield name, value
        elif isinstance(value, Cache):
            for i, layer in enumerate(value.layers):
                yield from ((f"{name}[{i}].keys", layer.keys), (f"{name}[{i}].values", layer.values))
        else:
            for i, part in enumerate(value):
                yield f"{name}[{i}]", part


def assert_outputs_as_good(output: Any, plain: Any, right: Any, factor: float = 2.0) -> None:
    """`assert_as_good_as` for every tensor of a model's output. Plain PyTorch may hit a few numbers by luck: for those
    the floor is what a few layers make of rounding."""
    for (key, value), (_, theirs), (_, exact) in zip(tensors(output), tensors(plain), tensors(right), strict=True):
        if value.numel() >= 16:
            assert_as_good_as(value, theirs, exact, factor)
        else:
            assert value.dtype == theirs.dtype
            floor = 16 * torch.finfo(value.dtype).eps
            assert relative_error(value, exact) <= factor * relative_error(theirs, exact) + floor, key
