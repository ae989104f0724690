"""What else than an eager call meets the ops: compilers, tracers, modes, subclasses, transforms, autocast, threads."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.library import opcheck
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from encoders_fast import _dispatch, explain, use_backend
from encoders_fast.ops import bottleneck_ffn, bottleneck_input
from encoders_fast.ops.bottleneck.parameters import Parameters, pack
from tests.closeness import relative_error
from tests.ops.bottleneck_cases import (
    OPS,
    STATE,
    VARIANTS,
    Arguments,
    ffn_arguments,
    input_arguments,
    plain_ffn,
    plain_input,
)

ops = torch.ops.encoders_fast
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # torch's own
CALLS = [
    *(
        pytest.param("bottleneck_input", input_arguments(variant=variant), id=f"input {variant}")
        for variant in VARIANTS
    ),
    pytest.param("bottleneck_input", input_arguments(eps=1e-3), id="input layer_norm"),
    pytest.param("bottleneck_ffn", ffn_arguments(), id="ffn"),
    pytest.param("bottleneck_ffn", ffn_arguments(eps=1e-3, dropout_p=0.3, activation="gelu"), id="ffn layer_norm"),
    pytest.param("bottleneck_ffn", ffn_arguments(bottleneck=False, dropout_p=0.3), id="ffn no bottleneck"),
]


def tuple_of(y: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return y if isinstance(y, tuple) else (y,)


def raw(op: str, arguments: Arguments) -> tuple[tuple[Tensor | None, ...], Parameters, tuple]:
    """The torch op's arguments: activations, parameters, and the rest."""
    if op == "bottleneck_input":
        h, *projections = arguments.tensors
        parameters = pack(*(each for each in projections if each is not None))
        return (h,), parameters, (arguments.options["from_bottleneck"],)
    attention, u0, h, output, pairs, out = arguments.tensors
    blocks = [each for pair in pairs for each in pair]
    parameters = pack(output, *blocks, *([] if out is None else [out]))
    return (attention, u0, h), parameters, tuple(arguments.options.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize(("op", "arguments"), CALLS)
def test_opcheck(op, arguments, dtype):
    made = arguments.with_leaves([t.to(dtype, copy=True).requires_grad_() for t in arguments.leaves()])
    activations, parameters, rest = raw(op, made)
    opcheck(getattr(ops, op).default, (*activations, *parameters, *rest, None))
    without_gradient = ("test_schema", "test_faketensor")
    with torch.no_grad():
        outputs = tuple_of(getattr(ops, op)(*activations, *parameters, *rest, None))
        activations, parameters, rest = raw(op, arguments.with_leaves([t.to(dtype) for t in arguments.leaves()]))
        for wanted in (True, False):
            backward = getattr(ops, f"{op}_backward").default
            opcheck(backward, (*outputs, *activations, *parameters, *rest, wanted, None), test_utils=without_gradient)
    empty = tuple(t if t is None else t[:0] for t in activations)
    opcheck(getattr(ops, op).default, (*empty, *parameters, *rest, None), test_utils=without_gradient)


@pytest.mark.parametrize(("op", "arguments"), CALLS)
def test_compiled_forward_and_backward_equal_eager(op, arguments):
    function = OPS[op][0]

    def loss(leaves: list[Tensor]) -> Tensor:
        made = arguments.with_leaves([leaves[0] * 2, *leaves[1:]])
        return sum(y.pow(3).sum() for y in tuple_of(function(*made.tensors, **made.options)))

    eager, compiled = ([t.clone().requires_grad_() for t in arguments.leaves()] for _ in range(2))
    loss(eager).backward()
    torch._dynamo.reset()
    torch.compile(loss, fullgraph=True, backend="aot_eager", dynamic=True)(compiled).backward()
    for a, b in zip(eager, compiled, strict=True):
        assert torch.equal(a.grad, b.grad)


@pytest.mark.parametrize(("op", "arguments"), CALLS)
def test_exported_program_has_one_node_per_call(op, arguments):
    class Block(torch.nn.Module):
        def forward(self, *leaves: Tensor) -> tuple[Tensor, ...]:
            made = arguments.with_leaves(list(leaves))
            return tuple_of(OPS[op][0](*made.tensors, **made.options))

    leaves = arguments.leaves()
    rows = torch.export.Dim("rows")
    dynamic = (tuple({0: rows} if t.dim() == 3 else None for t in leaves),)
    program = torch.export.export(Block(), tuple(leaves), dynamic_shapes=dynamic)
    called = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert called.count(getattr(ops, op).default) == 1
    longer = [torch.cat([t, t.flip(1)]) if t.dim() == 3 else t for t in leaves]
    for y, right in zip(program.module()(*longer), Block()(*longer), strict=True):
        assert torch.equal(y, right)


@pytest.mark.parametrize(("op", "arguments"), CALLS)
def test_modes_and_subclasses_see_the_registered_op(op, arguments):
    class Seen(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.names: list[str] = []

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.names.append(func.name())
            return func(*args, **(kwargs or {}))

    function = OPS[op][0]
    with Seen() as seen:
        outputs = tuple_of(function(*arguments.tensors, **arguments.options))
    assert f"encoders_fast::{op}" in seen.names

    class Named(Tensor):
        pass

    # Only the last tensor is special: it stands in a list.
    *others, last = arguments.leaves()
    made = arguments.with_leaves([*others, last.as_subclass(Named)])
    assert type(tuple_of(function(*made.tensors, **made.options))[0]) is Named
    with FakeTensorMode() as mode:
        made = arguments.with_leaves([mode.from_tensor(t) for t in arguments.leaves()])
        options = {k: mode.from_tensor(v) if isinstance(v, Tensor) else v for k, v in arguments.options.items()}
        for fake, real in zip(tuple_of(function(*made.tensors, **options)), outputs, strict=True):
            assert fake.shape == real.shape
            assert fake.is_contiguous()


@pytest.mark.parametrize(("op", "arguments"), CALLS)
def test_func_transforms(op, arguments):
    function, plain, _ = OPS[op]
    leaves = [t.double() for t in arguments.leaves()]
    smooth = arguments.options | ({"activation": "silu"} if op == "bottleneck_ffn" else {})

    def loss(of):
        def function(i: int, *some: Tensor) -> Tensor:
            made = arguments.with_leaves([*leaves[:i], *some, *leaves[i + len(some) :]])
            return sum(y.pow(3).sum() for y in tuple_of(of(*made.tensors, **smooth)))

        return function

    def same(transform) -> bool:
        return relative_error(transform(loss(function)), transform(loss(plain))) < 1e-11

    last = len(leaves) - 1
    for i in (0, 1, last):  # an activation, and tensors out of lists
        assert same(lambda f, i=i: torch.func.grad(lambda t: f(i, t))(leaves[i]))
    assert same(lambda f: torch.func.jacrev(torch.func.jacrev(lambda t: f(last, t)))(leaves[last]))
    samples = torch.stack([leaves[last], leaves[last].flip(0)])
    assert same(lambda f: torch.func.vmap(lambda t: f(last, t))(samples))
    assert same(lambda f: torch.func.vmap(torch.func.grad(lambda t: f(last, t)))(samples))
    if not arguments.options.get("dropout_p"):  # a mask belongs to a whole tensor, not to its rows
        assert same(lambda f: torch.func.grad(lambda s: torch.func.vmap(lambda t: f(last, t))(s).sum())(samples))


def test_no_forward_mode():
    arguments = input_arguments()
    h = arguments.tensors[0]
    with pytest.raises(NotImplementedError, match="bottleneck_input has no forward-mode derivative"):
        torch.func.jvp(lambda h: bottleneck_input(h, *arguments.tensors[1:])[0], (h,), (h,))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(dtype):
    """Activations stay float32, and the result is as good as that of torch's own autocast."""
    for op, plain in (("bottleneck_input", plain_input), ("bottleneck_ffn", plain_ffn)):
        function, _, make = OPS[op]
        arguments = make()
        leaves = [t.requires_grad_() for t in arguments.leaves()]
        exact_arguments = arguments.with_leaves([t.detach().double() for t in leaves])
        exact = tuple_of(plain(*exact_arguments.tensors, **exact_arguments.options))
        with torch.autocast("cpu", dtype):
            outputs = tuple_of(function(*arguments.tensors, **arguments.options))
            theirs = tuple_of(plain(*arguments.tensors, **arguments.options))
        for y, plain_y, right in zip(outputs, theirs, exact, strict=True):
            assert y.dtype == torch.float32
            assert relative_error(y, right) <= 2 * relative_error(plain_y, right)
            assert relative_error(y, right) > 1e-5, "autocast was not heeded"
        sum(y.pow(2).sum() for y in outputs).backward()
        assert all(t.grad.dtype == torch.float32 for t in leaves)


def test_float16_autocast_of_a_stream_that_float16_cannot_hold():
    arguments = input_arguments()
    h = arguments.tensors[0] * 1e7
    with torch.autocast("cpu", torch.float16):
        for y in bottleneck_input(h, *arguments.tensors[1:]):
            assert y.isfinite().all()


def test_forced_backend_holds_in_backward_on_another_thread():
    for op, (function, _, make) in OPS.items():
        arguments = make()
        made = arguments.with_leaves([t.requires_grad_() for t in arguments.leaves()])
        with use_backend("reference"):
            y = tuple_of(function(*made.tensors, **made.options))[0]
        with _dispatch.record() as calls:
            thread = threading.Thread(target=lambda y=y: y.sum().backward())
            thread.start()
            thread.join()
        assert calls == [(op, "reference")]


def test_explain_names_the_backend():
    for op, (function, _, make) in OPS.items():
        arguments = make()
        with _dispatch.record() as calls:
            function(*arguments.tensors, **arguments.options)
        assert calls == [(op, explain(function, *arguments.tensors, **arguments.options).chosen)]


def test_a_backend_sees_dtypes_and_widths():
    keys = []

    def why_not(key):
        keys.append(key)
        return "never"

    removes = [
        _dispatch.register_backend(op, _dispatch.Backend("spy", why_not, lambda: None, lambda: None)) for op in OPS
    ]
    try:
        for op, (function, _, make) in OPS.items():
            arguments = make()
            function(*arguments.tensors, **arguments.options)
            assert keys[-1].widths == ((10, 6, 8) if op == "bottleneck_input" else (10, 6, 8, 7, 2))
            assert keys[-1].dtypes == (torch.float32,) * 3
        arguments = ffn_arguments(bottleneck=False)
        bottleneck_ffn(*arguments.tensors, **arguments.options)
        assert keys[-1].widths == (0, 6, 8, 7, 2)
    finally:
        for remove in removes:
            remove()


def test_dropout_state_is_a_tensor_of_the_compiled_program():
    """A compiled program that is given another state drops other elements."""
    arguments = ffn_arguments(dropout_p=0.5)

    def call(state: Tensor) -> Tensor:
        return bottleneck_ffn(*arguments.tensors, dropout_p=0.5, rng_state=state)

    torch._dynamo.reset()
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    for state in (STATE, STATE + 1):
        assert torch.equal(compiled(state), call(state))
    assert not torch.equal(call(STATE), call(STATE + 1))


def test_matrices_take_part_in_a_graph_through_lists():
    """A weight that was computed has its own gradient's graph."""
    arguments = input_arguments()
    base = arguments.tensors[1].weight.clone().requires_grad_()
    query = arguments.tensors[1]._replace(weight=base * 2)
    q, *_ = bottleneck_input(arguments.tensors[0], query, *arguments.tensors[2:])
    q.sum().backward()
    theirs = arguments.tensors[1].weight.clone().requires_grad_()
    plain = plain_input(
        arguments.tensors[0], query._replace(weight=theirs * 2), *arguments.tensors[2:], from_bottleneck=False
    )
    plain[0].sum().backward()
    torch.testing.assert_close(base.grad, theirs.grad)
    assert F.relu(base.grad).sum() > 0
