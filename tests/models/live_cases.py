"""Live models of transformers, for the tests of `accelerate`."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import nn

from encoders_fast import _dispatch
from tests.models.model_cases import MODELS, batch, config, randomize

SPARSE = {"attention_type": "block_sparse", "block_size": 2, "num_random_blocks": 1}
TOKENS = 24  # with these blocks enough to be sparse

CASES = [(name, {}) for name in MODELS] + [("BigBirdModel", SPARSE), ("BigBirdForMaskedLM", SPARSE)]
BACKBONES = [(name, options) for name, options in CASES if name.endswith("Model")]

OPS = {
    "BigBird": {"residual_layer_norm"},
    "FNet": {"fourier_mixing_layer_norm", "residual_layer_norm"},
    "MobileBert": {"bottleneck_input", "bottleneck_ffn"},
    "RobertaPreLayerNorm": {"residual_layer_norm"},
    "XLMRobertaXL": {"residual_layer_norm"},
}


def title(value: Any) -> str:
    return value if isinstance(value, str) else value.get("attention_type", "")


def live(name: str, **options: Any) -> Any:
    """A stock model in evaluation mode, with random weights."""
    model = getattr(transformers, name)(config(name, transformers, **options))
    randomize(model)
    return model.eval()


def inputs_of(name: str, model: Any, labels: bool = False) -> dict[str, Any]:
    return batch(name, model.config, labels, T=TOKENS)


def ops_of(name: str, options: dict[str, Any]) -> set[str]:
    family = next(prefix for prefix in OPS if name.startswith(prefix))
    return OPS[family] | ({"block_sparse_attention"} if options.get("attention_type") == "block_sparse" else set())


def ops_run_by(model: nn.Module, **inputs: Any) -> set[str]:
    """But packed_linear, which stands for a linear layer where it can."""
    with _dispatch.record() as calls:
        model(**inputs)
    return {op for op, _ in calls} - {"packed_linear"}


@torch.no_grad()
def assert_same(model: Any, plain: Any, inputs: dict[str, Any]) -> None:
    """The first outputs are close in float32."""
    torch.testing.assert_close(model(**inputs)[0], plain(**inputs)[0], rtol=1e-4, atol=1e-5)
