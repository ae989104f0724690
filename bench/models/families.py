"""The models that the benches run: configurations, work, and the same weights in transformers' classes and in ours."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn

import encoders_fast.models as ours
from bench import clock
from encoders_fast._compare.checkpoint import share_parameters

STOCK, COMPILED, ACCELERATED = "transformers", "transformers torch.compile", "transformers accelerate"
ONNX, OPENVINO, OURS = "ONNX Runtime", "OpenVINO", "encoders_fast"
OUTPUT_FLOOR = 5e-6
# The loss of a random model hardly depends on its weights, so that gradients carry more rounding than outputs do.
GRADIENT_FLOOR = 1e-5
# Of ONNX Runtime's and OpenVINO's Fourier transforms, which are less exact than torch's, over twelve layers: a tenth of
# what bfloat16 would bring.
FOURIER_FLOOR = 5e-4
# bfloat16 rounds weights and activations to a relative 2^-9 each, in the mean square 1.7e-3 for the latter as measured
# by the op's bench. Twelve layers of some six rounded activations and two rounded weights each add up, as independent
# errors do, to 1.7e-3 * sqrt(12 * 8) = 1.7e-2; twice that is allowed.
FNET_BFLOAT16_ALLOWED = 3.4e-2


@dataclass(frozen=True)
class Family:
    """A published shape, or some of its layers. Without dropout, in which contenders differ."""

    prefix: str
    """What its classes' names begin with."""
    matrix_flops: Callable[[Any, int, int], float]
    """Of a configuration, a batch and a length."""
    options: dict[str, Any]
    """Of its configuration, where it is not transformers' own."""
    peers_floor: float = OUTPUT_FLOOR
    """Error in float32 that peers are allowed."""
    bfloat16_allowed: float | None = None
    """The same in bfloat16, where transformers has no error to compare with."""

    def config(self, **options: Any) -> Any:
        kind = getattr(transformers, f"{self.prefix}Config")
        without = ("hidden_dropout_prob", "attention_probs_dropout_prob")
        return kind(**{name: 0.0 for name in without if hasattr(kind(), name)} | self.options | options)

    def stock(self, suffix: str, config: Any) -> Any:
        """transformers' class of this suffix ("Model", "ForMaskedLM"), with seeded weights."""
        torch.manual_seed(0)
        return getattr(transformers, self.prefix + suffix)(config).eval()

    def pair(self, suffix: str, **options: Any) -> tuple[Any, Any]:
        """(ours, transformers') of one class, with the same seeded weights in the same memory."""
        config = self.config(**options)
        stock = self.stock(suffix, config)
        fast = getattr(ours, self.prefix + suffix)(config)
        share_parameters(stock, fast)
        return fast.eval(), stock


def dense_flops(config: Any, batch: int, length: int) -> float:
    """Two per weight and token, four D * D and two D * F in each layer; and 2 * T * D twice for a token's attention."""
    D, F = config.hidden_size, config.intermediate_size
    return 2.0 * batch * length * config.num_hidden_layers * (4 * D * D + 2 * D * F + 2 * length * D)


def fnet_flops(config: Any, batch: int, length: int) -> float:
    """Two per weight and token: embedding projection D * D and, in each layer, D * F and F * D. The transforms add less
    than 1 %."""
    D, F = config.hidden_size, config.intermediate_size
    return 2.0 * batch * length * (D * D + config.num_hidden_layers * 2 * D * F)


def mobilebert_flops(config: Any, batch: int, length: int) -> float:
    """Two per weight and token, and the attention's scores and contexts, two per pair of tokens and number each."""
    H, D, F = config.hidden_size, config.intra_bottleneck_size, config.intermediate_size
    layer = 3 * H * D + 2 * D * D + D * D + config.num_feedforward_networks * 2 * D * F + D * H
    weights = 3 * config.embedding_size * H + config.num_hidden_layers * layer
    return 2.0 * batch * length * weights + 4.0 * batch * length * length * D * config.num_hidden_layers


def block_sparse_flops(config: Any, batch: int, length: int) -> float:
    """Two per weight and token, four D * D and two D * F in each layer; and 4 * block * block * D for a pair of blocks.

    Of n blocks the first and the last see n, the second and the last but one 4, the others 5; transformers' copies of
    the first block are no work that has to be done. Full attention is counted as if it were this one.
    """
    D, F, block = config.hidden_size, config.intermediate_size, config.block_size
    blocks = length // block
    pairs = 2 * blocks + 2 * 4 + (blocks - 4) * 5
    weights = 2.0 * length * (4 * D * D + 2 * D * F)
    return batch * config.num_hidden_layers * (weights + 4.0 * pairs * block * block * D)


def head_flops(config: Any, batch: int, length: int) -> float:
    """The masked-language-model head: D * D and D * V."""
    return 2.0 * batch * length * config.hidden_size * (config.hidden_size + config.vocab_size)


FAMILIES = {
    "FNet-base": Family("FNet", fnet_flops, {}, FOURIER_FLOOR, FNET_BFLOAT16_ALLOWED),
    # transformers' block_sparse takes seconds a layer at its lengths; the layers are alike.
    "BigBird-base, 2 of 12 layers": Family("BigBird", block_sparse_flops, {"num_hidden_layers": 2}),
    "MobileBERT": Family("MobileBert", mobilebert_flops, {}),
    # Of the 512 positions that its checkpoints have, 510 are of use.
    "RoBERTa-PreLayerNorm-base": Family("RobertaPreLayerNorm", dense_flops, {"max_position_embeddings": 514}),
    # Two layers hold 0.6 GB. The vocabulary of 250880 words would add 2.6 GB, and four times that in a training step;
    # what a token costs depends on it in the head alone.
    "XLM-RoBERTa-XL, 2 of 36 layers": Family("XLMRobertaXL", dense_flops, {"num_hidden_layers": 2, "vocab_size": 8000}),
    "BERT-base": Family("Bert", dense_flops, {}),
}


def token_ids(config: Any, batch: int, length: int) -> Tensor:
    """Words: padding's id and other special ones are smaller."""
    generator = torch.Generator(clock.device()).manual_seed(0)
    return torch.randint(100, config.vocab_size, (batch, length), generator=generator)


def label(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def in_dtype(model: Any, dtype: torch.dtype) -> Any:
    return model if dtype == torch.float32 else copy.deepcopy(model).to(dtype)


def once_more(model: Any) -> Any:
    """A copy on the same weights."""
    return copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})


def accelerated(stock: nn.Module) -> nn.Module:
    """transformers' model once more, on the same weights, with this library's code put into it."""
    return ours.accelerate(once_more(stock), strict=True)


def encode(model: Any, ids: Tensor) -> Tensor:
    return model(ids).last_hidden_state


class TrainingStep:
    """Forward, backward and AdamW of a masked-language-model class. The learning rate is 0: each step then meets the
    same weights, and models may share them."""

    def __init__(self, model: Any, ids: Tensor) -> None:
        self.model, self.ids = model, ids
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)

    def __call__(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self.model(self.ids, labels=self.ids).loss.backward()
        self.optimizer.step()

    def gradients(self, _: None) -> tuple[Tensor]:
        return (flat_gradient(self.model),)


def gradient(model: Any, ids: Tensor) -> Tensor:
    model.zero_grad(set_to_none=True)
    model(ids, labels=ids).loss.backward()
    return flat_gradient(model)


def flat_gradient(model: nn.Module) -> Tensor:
    """All gradients in one vector. Weights that the loss does not reach have none."""
    return torch.cat(
        [parameter.grad.flatten() for _, parameter in sorted(model.named_parameters()) if parameter.grad is not None]
    )
