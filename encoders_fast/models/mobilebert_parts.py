"""A MobileBERT layer's modules in the order of the ops' parameters, and whether the ops may do their work."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain, repeat
from operator import contains, is_, itemgetter
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional as F
from torch.nn.modules import module as hooks
from transformers.activations import ACT2FN

from ..ops.bottleneck.parameters import Parameters
from .activations import fused_activation
from .observers import unobserved

_NAMES: dict[Any, str] = {F.relu: "relu", torch.relu: "relu", F.gelu: "gelu", F.silu: "silu"}
_NAMES_OF_CLASSES = {nn.ReLU: "relu", nn.SiLU: "silu", type(ACT2FN["silu"]): "silu"}


def op_activation(function: Callable[[Tensor], Tensor]) -> str | None:
    """What the ops call an activation function; None where they do not have it."""
    function = fused_activation(function)
    if type(function) is nn.GELU:
        return "gelu_tanh" if function.approximate == "tanh" else "gelu"
    return _NAMES_OF_CLASSES.get(type(function)) or _NAMES.get(function)


class HasParts:
    """For a layer with the names that checkpoints have: it finds its parts once."""

    plain: ClassVar[frozenset[type]]
    """The types of module, beside torch's own, whose work the ops can do."""

    def blocks(self) -> list[Any]:
        """The feed-forward blocks, each with an `intermediate` and an `output`. The layer itself holds the last one."""
        return [*getattr(self, "ffn", ()), self]

    def parts(self) -> Parts:
        """Found once, and again where they are no longer the layer's. A compiler traces what finds them."""
        if torch.compiler.is_compiling():
            return Parts(self)
        parts = self.__dict__.get("_parts")
        if parts is None or not parts.current(self):
            parts = self.__dict__["_parts"] = Parts(self)
        return parts

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_parts"}  # copies find their own


class Parts:
    """A layer's modules in the order of the ops' parameters.

    Looking up a hundred modules and parameters by their names takes as long as a product with a small matrix: here they
    stand in lists, and what is asked for in every call is asked by the list.
    """

    def __init__(self, layer: Any) -> None:
        self.layer = layer
        own: Any = layer.attention.self
        bottleneck: Any = getattr(layer, "bottleneck", None)
        end: Any = getattr(layer.output, "bottleneck", None)
        blocks = layer.blocks()
        self.from_bottleneck = bottleneck is not None and bottleneck.use_bottleneck_attention
        self.dropout: Any = layer.output.dropout if end is None else end.dropout
        self.intermediates = [block.intermediate for block in blocks]
        self.activation: Any = None
        """The op's name for the activation function of all blocks; None where it has none. As of the last look."""
        self.signature: Any = None
        """Shapes and dtypes that the ops can take."""
        self.input_linears: list[Any] = [own.query, own.key, own.value]
        self.input_norms: list[Any] = []
        if bottleneck is not None:
            shared = bottleneck.key_query_shared_bottleneck and not bottleneck.use_bottleneck_attention
            for each in (bottleneck.input, bottleneck.attention) if shared else (bottleneck.input,):
                self.input_linears.append(each.dense)
                self.input_norms.append(each.LayerNorm)
        attended: Any = layer.attention.output
        ends = [attended, *(block.output for block in blocks), *([] if end is None else [end])]
        inner = [linear for block in blocks for linear in (block.intermediate.dense, block.output.dense)]
        self.ffn_linears: list[Any] = [attended.dense, *inner, *([] if end is None else [end.dense])]
        self.ffn_norms: list[Any] = [each.LayerNorm for each in ends]
        # The layer itself is called, whatever it does inside.
        self.modules = list(layer.modules())[1:]
        if not torch.compiler.is_compiling():
            self.held = list(map(vars, self.modules))
            places = [(m._modules, name, each) for m in (layer, *self.modules) for name, each in m._modules.items()]
            self.siblings, self.names, self.placed = map(list, zip(*places, strict=True))
        self.kinds = list(map(type, self.modules))
        used = self.input_linears + self.ffn_linears + self.input_norms + self.ffn_norms
        self.known = set(self.kinds) <= layer.plain | _PLAIN | set(map(type, self.activations())) and all(
            len(getattr(module, "normalized_shape", "1")) == 1 for module in used
        )

    def current(self, layer: Any) -> bool:
        """Whether all modules are still where they were found. A layer's copy on another device has others."""
        return layer is self.layer and all(map(is_, map(dict.get, self.siblings, self.names), self.placed))

    def activations(self) -> list[Any]:
        return [intermediate.intermediate_act_fn for intermediate in self.intermediates]

    def parameters(self) -> tuple[Parameters, Parameters] | None:
        """bottleneck_input's and bottleneck_ffn's. None where somebody would notice that the work of these modules is
        done by ops, or where the ops cannot do it."""
        names = {op_activation(function) for function in self.activations()}
        self.activation = names.pop() if len(names) == 1 else None
        if not (
            self.known
            and self.activation is not None
            and (self._bare() or unobserved(*self.modules))
            and list(map(type, self.modules)) == self.kinds
        ):
            return None
        found = _parameters(self.input_linears, self.input_norms), _parameters(self.ffn_linears, self.ffn_norms)
        tensors = [tensor for parameters in found for tensors in parameters[:3] for tensor in tensors]
        if not set(map(type, tensors)) <= _PLAIN_TENSORS:
            return None
        signature = [(tensor.shape, tensor.dtype) for tensor in tensors]
        if signature != self.signature:
            if not _match(*found, self.from_bottleneck):
                return None
            self.signature = signature
        return found

    def _bare(self) -> bool:
        """Whether no module has any hook or a forward of its own: then nothing of it has to be looked at."""
        return not torch.compiler.is_compiling() and not (
            any(chain.from_iterable(map(_HOOKS, self.held)))
            or any(map(contains, self.held, repeat("forward")))
            or any(map(bool, _GLOBAL_HOOKS))
        )

    def obstacle(self) -> str | None:
        """Why not, in a sentence; None where it is."""
        if self.parameters() is not None:
            return None
        for name, module in self.layer.named_modules():
            if name and type(module) not in self.layer.plain | _PLAIN | set(map(type, self.activations())):
                return f"{name} is a {type(module).__module__}.{type(module).__qualname__}"
            if name and not unobserved(module):
                return f"{name} has hooks, or another forward, which want to see it called"
        if self.activation is None:
            return f"the op bottleneck_ffn has no {self.activations()[0]!r}"
        return (
            "a Linear or a norm has other parameters than a weight and a bias for the last dimension, as plain tensors,"
            " or they do not go together"
        )


_HOOKS = itemgetter("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
_GLOBAL_HOOKS = (
    hooks._global_forward_hooks,
    hooks._global_forward_pre_hooks,
    hooks._global_backward_hooks,
    hooks._global_backward_pre_hooks,
)
_PLAIN_TENSORS = {nn.Parameter, Tensor, FakeTensor}
_PLAIN = frozenset({nn.Dropout, nn.GELU, nn.LayerNorm, nn.Linear, nn.ModuleList, *_NAMES_OF_CLASSES})


def _parameters(linears: list[Any], norms: list[Any]) -> Parameters:
    eps = [getattr(norm, "eps", None) for norm in norms]
    return Parameters(
        [_tensor(linear, "weight") for linear in linears],
        [_tensor(linear, "bias") for linear in linears],
        [_tensor(norm, name) for norm in norms for name in ("weight", "bias")],
        [-1.0 if each is None else each for each in eps],
    )


def _match(before: Parameters, behind: Parameters, from_bottleneck: bool) -> bool:
    """Whether widths and dtypes go together: the ops called in this way do not check them."""
    query, bottlenecks = before.matrices[0], before.matrices[3:]
    output, *rest = behind.matrices
    blocks, end = rest[: len(rest) // 2 * 2], rest[len(rest) // 2 * 2 :]
    A, H = query.shape[0], bottlenecks[0].shape[1] if bottlenecks else query.shape[1]
    D = bottlenecks[0].shape[0] if bottlenecks else H
    of_query = D if from_bottleneck else bottlenecks[1].shape[0] if len(bottlenecks) == 2 else H
    wanted = [(A, of_query), (A, of_query), (A, D if from_bottleneck else H)]
    wanted += [(each.shape[0], H) for each in bottlenecks] + [(D, A)]
    for expand in blocks[::2]:
        wanted += [(expand.shape[0], D), (D, expand.shape[0])]
    wanted += [(H, D) for _ in end]
    matrices = before.matrices + behind.matrices
    normed = [*bottlenecks, output, *blocks[1::2], *end]
    norms = before.norms + behind.norms
    return (
        [tuple(matrix.shape) for matrix in matrices] == wanted
        and [bias.shape for bias in before.biases + behind.biases] == [matrix.shape[:1] for matrix in matrices]
        and [norm.shape for norm in norms] == [matrix.shape[:1] for matrix in normed for _ in range(2)]
        and len({matrix.dtype for matrix in matrices}) == 1
    )


def _tensor(module: Any, name: str) -> Tensor:
    found = module._parameters.get(name)
    return getattr(module, name) if found is None else found  # in nn.DataParallel's copies it is an attribute
