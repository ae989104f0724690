"""A MobileBERT layer's modules in the order of the ops' parameters, and whether the ops may do their work."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain, repeat
from operator import attrgetter, contains, is_, itemgetter
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional as F
from torch.nn.modules import module as hooks
from transformers.activations import ACT2FN

from ..ops.bottleneck.parameters import Parameters, first_layer
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
    """For a layer with the names that checkpoints have, or what holds such layers: it finds their parts once."""

    plain: ClassVar[frozenset[type]]
    """The types of module, beside torch's own, whose work the ops can do."""

    def layers_with_parts(self) -> list[Any]:
        return [self]

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
    """Layers' modules in the order of the ops' parameters, one layer's after the other's.

    Looking up a hundred modules and parameters by their names takes as long as a product with a small matrix: here they
    stand in lists, and what is asked for in every call is asked by the list.
    """

    def __init__(self, owner: Any) -> None:
        self.owner = owner
        self.layers: list[Any] = owner.layers_with_parts()
        self.own: list[Any] = [layer.attention.self for layer in self.layers]
        self.dropouts: list[Any] = []
        self.intermediates: list[Any] = []
        self.activation: Any = None
        """The op's name for the activation function of all blocks; None where it has none. As of the last look."""
        self.signature: Any = None
        """Shapes and dtypes of the first layer that the ops can take."""
        self.input_linears: list[Any] = []
        self.input_norms: list[Any] = []
        self.ffn_linears: list[Any] = []
        self.ffn_norms: list[Any] = []
        self.from_bottleneck = False
        structures = set()
        for layer in self.layers:
            self._find(layer)
            structures.add((self.from_bottleneck, len(layer.blocks()), getattr(layer, "bottleneck", None) is None))
        # The owner itself is called, whatever it does inside.
        self.modules = list(owner.modules())[1:]
        used = self.input_linears + self.ffn_linears + self.input_norms + self.ffn_norms
        places = [(module, "weight") for module in self.input_linears + self.ffn_linears]
        places += [(module, "bias") for module in self.input_linears + self.ffn_linears]
        places += [(norm, name) for norm in self.input_norms + self.ffn_norms for name in ("weight", "bias")]
        self.holders, self.tensor_names = map(list, zip(*places, strict=True)) if places else ([], [])
        if not torch.compiler.is_compiling():
            self.held = list(map(vars, self.modules))
            self.holders_held = list(map(vars, self.holders))
            siblings = [(m._modules, name, each) for m in (owner, *self.modules) for name, each in m._modules.items()]
            self.siblings, self.names, self.placed = map(list, zip(*siblings, strict=True))
            self.children = [module._modules for module in (owner, *self.modules)]
            self.counts = list(map(len, self.children))
        self.kinds = list(map(type, self.modules))
        known = owner.plain | _PLAIN | set(map(type, self.activations()))
        self.known = (
            set(self.kinds) <= known
            and len(structures) == 1
            and all(len(getattr(module, "normalized_shape", "1")) == 1 for module in used)
        )

    def _find(self, layer: Any) -> None:
        own: Any = layer.attention.self
        bottleneck: Any = getattr(layer, "bottleneck", None)
        end: Any = getattr(layer.output, "bottleneck", None)
        blocks = layer.blocks()
        self.from_bottleneck = bottleneck is not None and bottleneck.use_bottleneck_attention
        self.dropouts.append(layer.output.dropout if end is None else end.dropout)
        self.intermediates += [block.intermediate for block in blocks]
        self.input_linears += [own.query, own.key, own.value]
        if bottleneck is not None:
            shared = bottleneck.key_query_shared_bottleneck and not bottleneck.use_bottleneck_attention
            for each in (bottleneck.input, bottleneck.attention) if shared else (bottleneck.input,):
                self.input_linears.append(each.dense)
                self.input_norms.append(each.LayerNorm)
        attended: Any = layer.attention.output
        ends = [attended, *(block.output for block in blocks), *([] if end is None else [end])]
        inner = [linear for block in blocks for linear in (block.intermediate.dense, block.output.dense)]
        self.ffn_linears += [attended.dense, *inner, *([] if end is None else [end.dense])]
        self.ffn_norms += [each.LayerNorm for each in ends]

    @property
    def dropout(self) -> Any:
        """Of the only layer."""
        return self.dropouts[0]

    def drops(self) -> bool:
        """Whether anything is dropped, from attention's probabilities or else."""
        return any(map(_TRAINING, chain(self.own, self.dropouts)))

    def current(self, owner: Any) -> bool:
        """Whether all modules are still where they were found, and no others beside them. A layer's copy on another
        device has others."""
        return (
            owner is self.owner
            and list(map(len, self.children)) == self.counts
            and all(map(is_, map(dict.get, self.siblings, self.names), self.placed))
        )

    def activations(self) -> list[Any]:
        return [intermediate.intermediate_act_fn for intermediate in self.intermediates]

    def _activation(self) -> str | None:
        activations = self.activations()
        kinds = set(map(type, activations))
        if kinds <= _NAMES_OF_CLASSES.keys():  # as a rule: nothing of these changes their function
            names: set[str | None] = {_NAMES_OF_CLASSES[kind] for kind in kinds}
        else:
            names = set(map(op_activation, activations))
        return names.pop() if len(names) == 1 else None

    def parameters(self) -> tuple[Parameters, Parameters] | None:
        """bottleneck_input's and bottleneck_ffn's, of all layers in lists, with the eps of one of them. None where
        somebody would notice that the work of these modules is done by ops, or where the ops cannot do it."""
        self.activation = self._activation()
        if not (
            self.known
            and self.activation is not None
            and (self._bare() or unobserved(*self.modules))
            and list(map(type, self.modules)) == self.kinds
        ):
            return None
        tensors = self._tensors()
        found = self._sorted(tensors) if set(map(type, tensors)) <= _PLAIN_TENSORS else None
        if found is None:
            return None
        before, behind = (first_layer(each, len(self.layers)) for each in found)
        firsts = (*before[:3], *behind[:3])
        signature = [(tensor.shape, tensor.dtype) for tensors in firsts for tensor in tensors]
        if signature != self.signature:
            if not _match(before, behind, self.from_bottleneck):
                return None
            self.signature = signature
        return found

    def _tensors(self) -> list[Any]:
        if torch.compiler.is_compiling():
            return list(map(_tensor, self.holders, self.tensor_names))
        tensors = list(map(dict.get, map(_PARAMETERS, self.holders_held), self.tensor_names))
        if type(None) in set(map(type, tensors)):
            return list(map(_tensor, self.holders, self.tensor_names))
        return tensors

    def _sorted(self, tensors: list[Any]) -> tuple[Parameters, Parameters] | None:
        one, both = len(self.input_linears), len(self.input_linears) + len(self.ffn_linears)
        norms = 2 * both + 2 * len(self.input_norms)
        eps = _eps(self.input_norms, len(self.layers)), _eps(self.ffn_norms, len(self.layers))
        if eps[0] is None or eps[1] is None:
            return None
        return (
            Parameters(tensors[:one], tensors[both : both + one], tensors[2 * both : norms], eps[0]),
            Parameters(tensors[one:both], tensors[both + one : 2 * both], tensors[norms:], eps[1]),
        )

    def alike(self) -> bool:
        """Whether all layers' parameters are like the first one's, of which alone `parameters` knows that they go
        together: asking hundreds of tensors takes a while."""
        found = self._sorted(self._tensors())
        return found is not None and all(
            [*map(_SHAPE_AND_DTYPE, tensors)] == len(self.layers) * [*map(_SHAPE_AND_DTYPE, first)]
            for each in found
            for tensors, first in zip(each[:3], first_layer(each, len(self.layers))[:3], strict=True)
        )

    def _bare(self) -> bool:
        """Whether no module has any hook or a forward of its own: then nothing of it has to be looked at."""
        return not torch.compiler.is_compiling() and not (
            any(chain.from_iterable(map(_HOOKS if torch.is_grad_enabled() else _FORWARD_HOOKS, self.held)))
            or any(map(contains, self.held, repeat("forward")))
            or any(map(bool, _GLOBAL_HOOKS))
        )

    def obstacle(self) -> str | None:
        """Why not, in a sentence; None where it is."""
        if self.parameters() is not None:
            return None
        for name, module in self.owner.named_modules():
            if name and type(module) not in self.owner.plain | _PLAIN | set(map(type, self.activations())):
                return f"{name} is a {type(module).__module__}.{type(module).__qualname__}"
            if name and not unobserved(module):
                return f"{name} has hooks, or another forward, which want to see it called"
        if self.activation is None:
            return f"the op bottleneck_ffn has no {self.activations()[0]!r}"
        return (
            "a Linear or a norm has other parameters than a weight and a bias for the last dimension, as plain tensors,"
            " or they do not go together"
        )


_TRAINING = attrgetter("training")
_SHAPE_AND_DTYPE = attrgetter("shape", "dtype")
_PARAMETERS = itemgetter("_parameters")
_HOOKS = itemgetter("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
_FORWARD_HOOKS = itemgetter("_forward_pre_hooks", "_forward_hooks")  # without gradients the others see nothing
_GLOBAL_HOOKS = (
    hooks._global_forward_hooks,
    hooks._global_forward_pre_hooks,
    hooks._global_backward_hooks,
    hooks._global_backward_pre_hooks,
)
_PLAIN_TENSORS = {nn.Parameter, Tensor, FakeTensor}
_PLAIN = frozenset({nn.Dropout, nn.GELU, nn.LayerNorm, nn.Linear, nn.ModuleList, *_NAMES_OF_CLASSES})


def _eps(norms: list[Any], count: int) -> list[float] | None:
    """Of one of `count` layers; None where they differ."""
    eps = [norm.eps if isinstance(norm, nn.LayerNorm) else -1.0 for norm in norms]  # NoNorms have none
    one = eps[: len(eps) // count]
    return one if one * count == eps else None


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
