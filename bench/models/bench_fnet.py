"""FNet-base, ours against transformers on the same weights."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

import encoders_fast.models as ours
from bench.contender import Case, Contender, Expected
from bench.verify import expect
from encoders_fast._compare.checkpoint import share_parameters

STOCK, OURS = "transformers float32", "encoders_fast float32"
ACCELERATED = "transformers accelerate float32"
# bfloat16 rounds weights and activations to a relative 2^-9 each, in the mean square 1.7e-3 for the latter as measured
# by the op's bench. Twelve layers of some six rounded activations and two rounded weights each add up, as independent
# errors do, to 1.7e-3 * sqrt(12 * 8) = 1.7e-2; twice that is allowed.
BFLOAT16_ALLOWED = 3.4e-2
# The loss of a random model hardly depends on its weights, so that gradients carry more rounding than outputs do.
GRADIENT_FLOOR = 1e-5
OUTPUT_FLOOR = 5e-6


@cache
def config() -> transformers.FNetConfig:
    """FNet-base. No dropout: the contenders could not draw the same."""
    return transformers.FNetConfig(hidden_dropout_prob=0.0)


def pair(name: str) -> tuple[Any, Any]:
    """(ours, transformers') of one class, with the same seeded weights in the same memory."""
    torch.manual_seed(0)
    stock, fast = getattr(transformers, name)(config()), getattr(ours, name)(config())
    share_parameters(stock, fast)
    return fast.eval(), stock.eval()


def token_ids(batch: int, length: int) -> Tensor:
    return torch.randint(0, config().vocab_size, (batch, length), generator=torch.Generator().manual_seed(0))


def matrix_flops(batch: int, length: int) -> float:
    """Two per weight and token: embedding projection D * D and, in each layer, D * F and F * D. The transforms add less
    than 1 %."""
    width, layers, inner = config().hidden_size, config().num_hidden_layers, config().intermediate_size
    return 2.0 * batch * length * (width * width + layers * 2 * width * inner)


def head_flops(batch: int, length: int) -> float:
    """The masked-language-model head: D * D and D * V."""
    return 2.0 * batch * length * config().hidden_size * (config().hidden_size + config().vocab_size)


def once_more(model: Any) -> Any:
    """A copy on the same weights."""
    return copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})


def accelerated(stock: nn.Module) -> nn.Module:
    """transformers' model once more, on the same weights, with this library's code put into it."""
    return ours.accelerate(once_more(stock), strict=True)


def encode(model: Any, ids: Tensor) -> Tensor:
    return model(ids).last_hidden_state


def compiled(model: nn.Module, ids: Tensor) -> tuple[Callable[[Tensor], Any] | None, str | None]:
    """(the model under torch.compile, or None; the sentence why not)."""
    if shutil.which("g++") is None and shutil.which("c++") is None:
        return None, "torch.compile finds no C++ compiler"
    try:
        function = torch.compile(model)
        with torch.inference_mode():
            function(ids)
    except Exception as error:
        return None, f"torch.compile failed: {str(error).strip().splitlines()[0]}"
    return function, None


@pytest.mark.parametrize(("batch", "length"), [(1, 512), (4, 512)])
def bench_forward(compare: Callable[[Case], None], batch: int, length: int) -> None:
    fast, stock = pair("FNetModel")
    ids = token_ids(batch, length)
    half = copy.deepcopy(fast).bfloat16()
    with torch.inference_mode():
        exact = encode(copy.deepcopy(stock).double(), ids)
        expected = expect(encode(stock, ids), exact, OUTPUT_FLOOR)
    half_expected = Expected(exact, BFLOAT16_ALLOWED)
    # Compiling takes half a minute; one shape shows what it brings.
    compiled_stock, why_not = compiled(stock, ids) if batch == 1 else (None, "compiled for 1 x 512 only")

    def contender(name: str, model: Any, wanted: Expected, **more: Any) -> Contender:
        flops = matrix_flops(batch, length)
        return Contender(name, partial(encode, model, ids), expected=(wanted,), flops=flops, memory=True, **more)

    contenders = (
        contender(STOCK, stock, expected),
        contender("transformers torch.compile float32", compiled_stock, expected, baseline=STOCK, absent=why_not),
        contender(ACCELERATED, accelerated(stock), expected, baseline=STOCK),
        contender(OURS, fast, expected, baseline=STOCK),
        # transformers cannot run FNet in bfloat16 on a CPU, so its float32 is what a user has instead.
        contender("encoders_fast bfloat16", half, half_expected, baseline=STOCK),
    )
    compare(Case("FNet-base forward", f"{batch} x {length}", contenders, OURS))


@pytest.mark.parametrize(("batch", "length"), [(1, 512)])
def bench_training_step(compare: Callable[[Case], None], batch: int, length: int) -> None:
    """Forward, backward and AdamW of the masked-language-model class. The learning rate is 0: each step then meets the
    same weights, and both models may share them."""
    fast, stock = pair("FNetForMaskedLM")
    ids = token_ids(batch, length)
    exact = gradient(copy.deepcopy(stock).double(), ids)
    expected = expect(gradient(stock, ids), exact, GRADIENT_FLOOR)
    # Forward, and backward for the input and for the weights.
    flops = 3 * (matrix_flops(batch, length) + head_flops(batch, length))

    def contender(name: str, model: Any, baseline: str | None = None) -> Contender:
        step = TrainingStep(model, ids)
        return Contender(name, step, baseline, outputs=step.gradients, expected=(expected,), flops=flops)

    contenders = (
        contender(STOCK, stock),
        contender(ACCELERATED, accelerated(stock), STOCK),
        contender(OURS, fast, STOCK),
    )
    compare(Case("FNet-base training step", f"{batch} x {length}", contenders, OURS, grad=True))


class TrainingStep:
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
