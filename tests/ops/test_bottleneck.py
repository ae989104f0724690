"""The two ops against plain PyTorch in float64, every backend of their tables."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from encoders_fast import _dispatch, _dropout, explain, use_backend
from encoders_fast.ops import bottleneck_ffn, bottleneck_input
from tests.closeness import assert_as_good_as, relative_error
from tests.ops.bottleneck_cases import (
    OPS,
    SMALL,
    STATE,
    VARIANTS,
    Arguments,
    Sizes,
    assert_together_as_good_as,
    ffn_arguments,
    input_arguments,
    plain_ffn,
    plain_input,
    run,
)

SIZES = [
    Sizes((1, 1), 512, 128, 128, 512, 4),  # the published model, one token
    Sizes((2, 33), 512, 128, 128, 512, 1),  # more rows than a tile of 64, and one feed-forward block
    Sizes((3,), 1, 1, 1, 1, 2),  # the narrowest
    Sizes((2, 3, 5), 33, 17, 12, 19, 3),  # widths that no vector divides; four dimensions; pruned heads (A < D)
    Sizes((2, 7), 16, 16, 16, 16, 2),  # all widths alike
]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
BACKENDS = {op: [row.name for row in _dispatch.tables()[op]] for op in OPS}
# Those that can run float32 here, for tests that ask for nothing else.
ABLE = {
    op: [name for name in names if name not in explain(op, *(made := OPS[op][2]()).tensors, **made.options).refusals]
    for op, names in BACKENDS.items()
}
INPUT_BACKENDS, FFN_BACKENDS = BACKENDS["bottleneck_input"], BACKENDS["bottleneck_ffn"]


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Every new tensor starts as NaN, the kernels' outputs and scratch memory included."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def needs(op: str, backend: str, arguments: Arguments, dtype: torch.dtype = torch.float32) -> None:
    made = arguments.with_leaves([t.to(dtype) for t in arguments.leaves()])
    refusals = explain(op, *made.tensors, **made.options).refusals
    if backend in refusals:
        pytest.skip(f"{backend}: {refusals[backend]}")


def check(op: str, backend: str, arguments: Arguments, dtype: torch.dtype) -> None:
    needs(op, backend, arguments, dtype)
    function, plain, _ = OPS[op]
    with use_backend(backend), _dispatch.record() as calls:
        outputs, gradients = run(function, arguments, dtype)
    assert calls == [(op, backend)] * 2
    theirs, exact = run(plain, arguments, dtype), run(plain, arguments, torch.float64)
    for actual, same_dtype, right in zip(outputs, theirs[0], exact[0], strict=True):
        assert_as_good_as(actual, same_dtype, right)
        assert actual.is_contiguous()
    assert_together_as_good_as(gradients, theirs[1], exact[1])


@pytest.mark.parametrize("eps", [None, 1e-3], ids=["no_norm", "layer_norm"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("backend", INPUT_BACKENDS)
def test_input(backend, sizes, variant, dtype, eps):
    if sizes.D == 1 and eps is not None:
        pytest.skip("nothing varies in a row of one number: see test_layer_norm_of_one_number")
    check("bottleneck_input", backend, input_arguments(sizes, variant, eps), dtype)


@pytest.mark.parametrize("bottleneck", [True, False], ids=["bottleneck", "no bottleneck"])
@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
@pytest.mark.parametrize("eps", [None, 1e-3], ids=["no_norm", "layer_norm"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("backend", FFN_BACKENDS)
def test_ffn(backend, sizes, dtype, eps, dropout_p, bottleneck):
    if sizes.D == 1 and (eps is not None or dropout_p):
        pytest.skip("nothing varies in a row of one number, and all of it may be dropped")
    # A kink in half precision would compare one rounding's luck with another's.
    activation = "relu" if dtype == torch.float32 and sizes.F > 1 else "silu"
    check("bottleneck_ffn", backend, ffn_arguments(sizes, eps, activation, dropout_p, bottleneck), dtype)


@pytest.mark.parametrize("activation", ["relu", "gelu", "gelu_tanh", "silu"])
@pytest.mark.parametrize("backend", FFN_BACKENDS)
def test_activations(backend, activation):
    check("bottleneck_ffn", backend, ffn_arguments(activation=activation), torch.float32)


@pytest.mark.parametrize("backend", FFN_BACKENDS)
def test_relu_in_half_precision(backend):
    for dtype in (torch.bfloat16, torch.float16):
        arguments = ffn_arguments(Sizes((4, 64), 32, 24, 24, 48, 2))
        needs("bottleneck_ffn", backend, arguments, dtype)
        with use_backend(backend):
            (y,), gradients = run(bottleneck_ffn, arguments, dtype)
        theirs, exact = run(plain_ffn, arguments, dtype), run(plain_ffn, arguments, torch.float64)
        assert_as_good_as(y, theirs[0][0], exact[0][0])
        assert_together_as_good_as(gradients, theirs[1], exact[1])


@pytest.mark.parametrize("backend", FFN_BACKENDS)
def test_each_norm_has_its_own_eps(backend):
    """And LayerNorm and NoNorm may stand side by side."""
    for i, eps in enumerate((None, 0.5, 5.0, 50.0)):
        attention, u0, h, output, pairs, out = (arguments := ffn_arguments(eps=1e-3)).tensors
        norms = [output, *(contract for _, contract in pairs), out]
        norms[i] = norms[i]._replace(eps=eps)
        pairs = [(expand, norm) for (expand, _), norm in zip(pairs, norms[1:-1], strict=True)]
        check(
            "bottleneck_ffn",
            backend,
            Arguments((attention, u0, h, norms[0], pairs, norms[-1]), arguments.options),
            torch.float32,
        )


@pytest.mark.parametrize("backend", INPUT_BACKENDS)
def test_layer_norm_of_one_number(backend):
    arguments = input_arguments(Sizes((3,), 4, 1, 2, 1, 1), eps=1e-3)
    needs("bottleneck_input", backend, arguments)
    with use_backend(backend):
        u0 = bottleneck_input(*arguments.tensors, **arguments.options)[3]
    assert torch.equal(u0, arguments.tensors[4].norm_bias.expand(3, 1))


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("matrices", [torch.float16, torch.bfloat16], ids=str)
def test_float32_activations_beside_half_matrices(op, matrices):
    """float16: nothing is rounded but what was given. bfloat16: as under autocast."""
    function, plain, make = OPS[op]
    for backend in ABLE[op]:
        arguments = make()
        activations = len([t for t in arguments.tensors if isinstance(t, Tensor)])
        rounded = [t if i < activations else t.to(matrices) for i, t in enumerate(arguments.leaves())]
        made = arguments.with_leaves(rounded)
        if backend in explain(op, *made.tensors, **made.options).refusals:
            continue
        with use_backend(backend):
            outputs = function(*made.tensors, **made.options)
        wide = made.with_leaves([t.double() for t in rounded])
        exact = plain(*wide.tensors, **wide.options)
        for y, right in zip(
            outputs if isinstance(outputs, tuple) else [outputs],
            exact if isinstance(exact, tuple) else [exact],
            strict=True,
        ):
            assert y.dtype == torch.float32
            assert relative_error(y, right) <= (1e-6 if matrices == torch.float16 else 2e-2)


@pytest.mark.parametrize("op", OPS)
def test_float16_parameters_beside_a_stream_that_float16_cannot_hold(op):
    function, plain, make = OPS[op]
    for backend in ABLE[op]:
        arguments = make(Sizes((2, 9), 48, 24, 24, 40, 3))
        activations = len([t for t in arguments.tensors if isinstance(t, Tensor)])

        def scaled(dtype, arguments=arguments, activations=activations):
            leaves = arguments.leaves()
            return arguments.with_leaves(
                [t * (1e8 / 30) if i < activations else t.half().to(dtype) for i, t in enumerate(leaves)]
            )

        half = scaled(torch.float16)
        assert half.leaves()[0].abs().max() > 1e8 > 100 * torch.finfo(torch.float16).max
        if backend in explain(op, *half.tensors, **half.options).refusals:
            continue
        with use_backend(backend):
            outputs, gradients = _with_dtypes(function, half)
        exact = run(plain, scaled(torch.float64), torch.float64)
        bfloat16 = run(plain, scaled(torch.float32), torch.bfloat16)
        for mine, coarse, right in zip(outputs, bfloat16[0], exact[0], strict=True):
            assert mine.dtype == torch.float32
            assert relative_error(mine, right) <= relative_error(coarse, right)
        for i, (gradient, right) in enumerate(zip(gradients, exact[1], strict=True)):
            assert gradient.dtype == (torch.float32 if i < activations else torch.float16)
            if right.abs().max() < 1e4:  # others, of matrices, are beyond float16
                assert relative_error(gradient, right) <= 2e-3


@pytest.mark.parametrize("op", OPS)
def test_gradients_beside_bfloat16_matrices(op):
    """float32 activations: no worse than the reference, which rounds where autocast does."""
    function, plain, make = OPS[op]
    arguments = make(Sizes((2, 9), 48, 24, 24, 40, 3), eps=1e-3)
    activations = len([t for t in arguments.tensors if isinstance(t, Tensor)])
    made = arguments.with_leaves(
        [t.bfloat16() if i >= activations and t.dim() == 2 else t for i, t in enumerate(arguments.leaves())]
    )
    _, exact = run(plain, made, torch.float64)
    with use_backend("reference"):
        _, coarse = _with_dtypes(function, made)
    for backend in ABLE[op]:
        if backend not in explain(op, *made.tensors, **made.options).refusals:
            with use_backend(backend):
                _, gradients = _with_dtypes(function, made)
            assert_together_as_good_as(list(gradients), list(coarse), exact)


def test_rows_of_a_gpu_train():
    """On the CPU the reference does, whose forward and backward pass have the same bits."""
    from encoders_fast.ops.bottleneck.op import _backend
    from encoders_fast.ops.bottleneck.parameters import Parameters

    parameters = Parameters([torch.ones(2, 2, requires_grad=True)], [], [], [])
    with use_backend(None):
        assert _backend([torch.ones(2)], parameters) == "reference"
        assert _backend([torch.ones(2, device="meta")], parameters) is None


def _with_dtypes(function, arguments):
    """As `run`, in the dtypes that the tensors have."""
    leaves = [t.detach().requires_grad_() for t in arguments.leaves()]
    made = arguments.with_leaves(leaves)
    outputs = function(*made.tensors, **made.options)
    outputs = list(outputs) if isinstance(outputs, tuple) else [outputs]
    generator = torch.Generator().manual_seed(7)
    dys = [torch.randn(y.shape, generator=generator) for y in outputs]
    return outputs, torch.autograd.grad(outputs, leaves, dys)


@pytest.mark.parametrize("op", OPS)
def test_only_the_arguments_are_kept(op):
    """Nothing of the rows' size but the activations that came in: what lies in between is computed again."""
    function, _, make = OPS[op]
    for backend in ABLE[op]:
        arguments = make(Sizes((64,), 10, 6, 8, 7, 3))
        made = arguments.with_leaves([t.requires_grad_() for t in arguments.leaves()])
        kept: list[Tensor] = []

        def pack(t: Tensor, kept: list[Tensor] = kept) -> Tensor:
            kept.append(t)
            return t

        with use_backend(backend), torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            function(*made.tensors, **made.options)
        given = {t.data_ptr() for t in made.leaves()}
        assert kept
        assert all(t.data_ptr() in given for t in kept)


@pytest.mark.parametrize("op", OPS)
def test_only_some_tensors_need_gradients(op):
    function, _, make = OPS[op]
    for backend in ABLE[op]:
        arguments = make()
        count = len(arguments.leaves())

        def gradients(needed, arguments=arguments, backend=backend):
            leaves = [t.clone().requires_grad_(i in needed) for i, t in enumerate(arguments.leaves())]
            made = arguments.with_leaves(leaves)
            with use_backend(backend):
                outputs = function(*made.tensors, **made.options)
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            loss = sum(y.pow(3).sum() for y in outputs)
            return torch.autograd.grad(loss, [leaves[i] for i in needed])

        together = gradients(range(count))
        for needed in ((0,), (count - 1,), (1, 4), (0, 1, 2)):
            for i, gradient in zip(needed, gradients(needed), strict=True):
                assert torch.equal(gradient, together[i])


@pytest.mark.parametrize("variant", VARIANTS)
def test_only_some_outputs_are_used(variant):
    for backend in ABLE["bottleneck_input"]:
        arguments = input_arguments(variant=variant)
        for used in range(3 if variant == "no bottleneck" else 4):
            results = []
            for function in (bottleneck_input, plain_input):
                leaves = [t.clone().requires_grad_() for t in arguments.leaves()]
                made = arguments.with_leaves(leaves)
                with use_backend(backend):
                    y = function(*made.tensors, **made.options)[used]
                    y.pow(3).sum().backward()
                results.append([t.grad if t.grad is not None else torch.zeros_like(t) for t in leaves])
            for mine, theirs in zip(*results, strict=True):
                torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("op", OPS)
def test_strides_and_no_rows(op):
    function, _, make = OPS[op]
    for backend in ABLE[op]:
        arguments = make(SMALL._replace(rows=(6, 10)))
        views = [lambda t: t.transpose(0, 1), lambda t: t[:, ::2], lambda t: t[:1].expand(4, 10, t.shape[2])]
        for view in views:
            results = []
            for dense in (False, True):
                leaves = [view(t) if t.dim() == 3 else t.t().contiguous().t() for t in arguments.leaves()]
                leaves = [t.clone(memory_format=torch.contiguous_format) if dense else t for t in leaves]
                leaves = [t.detach().requires_grad_() for t in leaves]
                made = arguments.with_leaves(leaves)
                with use_backend(backend):
                    outputs = function(*made.tensors, **made.options)
                    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
                    gradients = torch.autograd.grad(sum(y.pow(2).sum() for y in outputs), leaves)
                results.append([*outputs, *gradients])
            for strided, contiguous in zip(*results, strict=True):
                torch.testing.assert_close(strided, contiguous, rtol=1e-4, atol=1e-4)
        for rows in ((0,), (2, 0)):
            empty = make(SMALL._replace(rows=rows))
            made = empty.with_leaves([t.requires_grad_() for t in empty.leaves()])
            with use_backend(backend):
                outputs = function(*made.tensors, **made.options)
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            gradients = torch.autograd.grad(sum(y.sum() for y in outputs), made.leaves())
            assert all(y.shape[:-1] == rows for y in outputs)
            for gradient, leaf in zip(gradients, made.leaves(), strict=True):
                assert gradient.shape == leaf.shape
                assert gradient.eq(0).all()


@pytest.mark.parametrize("op", OPS)
def test_rows_are_independent(op):
    """Same bits twice, and a NaN stays in its row."""
    function, _, make = OPS[op]
    for backend in ABLE[op]:
        arguments = make(SMALL._replace(rows=(7,)))
        with use_backend(backend):
            first, again = (function(*arguments.tensors, **arguments.options) for _ in range(2))
            arguments.tensors[0][4, 5] = float("nan")
            poisoned = function(*arguments.tensors, **arguments.options)
        if op == "bottleneck_ffn":
            first, again, poisoned = (first,), (again,), (poisoned,)
        for y, same, other in zip(first, again, poisoned, strict=True):
            assert torch.equal(y, same)
            assert torch.equal(other[:4], y[:4])
            assert torch.equal(other[5:], y[5:])
            assert other[4].isnan().any()


@pytest.mark.parametrize("backend", FFN_BACKENDS)
def test_what_is_dropped(backend):
    """Everything: the residuals alone go on. And a state without a dropout is without effect."""
    for bottleneck in (True, False):
        arguments = ffn_arguments(dropout_p=1.0, bottleneck=bottleneck)
        needs("bottleneck_ffn", backend, arguments)
        with use_backend(backend):
            y = bottleneck_ffn(*arguments.tensors, **arguments.options)
            none = bottleneck_ffn(*arguments.tensors, rng_state=STATE)
            assert torch.equal(none, bottleneck_ffn(*arguments.tensors))
        _, u0, h, output, pairs, out = arguments.tensors
        if bottleneck:
            torch.testing.assert_close(y, h * out.norm_weight + out.norm_bias)
        else:
            before = ffn_arguments(bottleneck=False).tensors
            first = before[3]._replace(weight=torch.zeros_like(output.weight), bias=torch.zeros_like(output.bias))
            last = before[4][-1][1]
            last = last._replace(weight=torch.zeros_like(last.weight), bias=torch.zeros_like(last.bias))
            pairs = [*before[4][:-1], (before[4][-1][0], last)]
            torch.testing.assert_close(y, bottleneck_ffn(before[0], u0, None, first, pairs))


@pytest.mark.parametrize("backend", FFN_BACKENDS)
def test_mask_is_that_of_the_layers_state(backend):
    arguments = ffn_arguments(dropout_p=0.4)
    needs("bottleneck_ffn", backend, arguments)
    attention, u0, h, output, pairs, out = arguments.tensors
    out = out._replace(bias=out.bias + 1e4)  # what is kept is then far from h
    with use_backend(backend):
        y = bottleneck_ffn(attention, u0, h, output, pairs, out, dropout_p=0.4, rng_state=STATE)
    without = h * out.norm_weight + out.norm_bias
    assert torch.equal((y - without).abs() > 100, _dropout.keep(_dropout.at(STATE, 0, 2), h.shape, 0.4))


@pytest.mark.parametrize(
    ("h", "matrices", "vectors", "expected"),
    [
        (torch.bfloat16, torch.bfloat16, torch.float32, torch.float32),  # as x * weight + bias promotes
        (torch.bfloat16, torch.float32, torch.float32, torch.float32),
        (torch.float16, torch.bfloat16, torch.bfloat16, torch.float32),
        (torch.float32, torch.float64, torch.float64, torch.float64),
        (torch.float64, torch.float16, torch.float32, torch.float64),
    ],
    ids=str,
)
@pytest.mark.parametrize("op", OPS)
def test_mixed_dtypes(op, h, matrices, vectors, expected):
    function, plain, make = OPS[op]
    arguments = make()
    activations = len([t for t in arguments.tensors if isinstance(t, Tensor)])
    leaves = [
        t.to(h if i < activations else matrices if t.dim() == 2 else vectors).requires_grad_()
        for i, t in enumerate(arguments.leaves())
    ]
    made = arguments.with_leaves(leaves)
    outputs = function(*made.tensors, **made.options)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    gradients = torch.autograd.grad(sum(y.sum() for y in outputs), leaves)
    assert [g.dtype for g in gradients] == [t.dtype for t in leaves]
    wide = made.with_leaves([t.detach().double() for t in leaves])
    exact = plain(*wide.tensors, **wide.options)
    for y, right in zip(outputs, exact if isinstance(exact, tuple) else (exact,), strict=True):
        assert y.dtype == expected
        assert relative_error(y, right) <= (2e-2 if matrices == torch.bfloat16 else 1e-6)


@pytest.mark.parametrize("eps", [None, 1e-2], ids=["no_norm", "layer_norm"])
def test_gradients_of_gradients(eps):
    calls = [(bottleneck_input, input_arguments(Sizes((2,), 4, 3, 2, 3, 1), variant, eps)) for variant in VARIANTS]
    sizes = Sizes((2,), 4, 3, 2, 3, 2)
    calls += [(bottleneck_ffn, ffn_arguments(sizes, eps, "silu", 0.4, bottleneck)) for bottleneck in (True, False)]
    for function, arguments in calls:
        leaves = [t.double().requires_grad_() for t in arguments.leaves()]

        def of_leaves(*leaves, function=function, arguments=arguments):
            made = arguments.with_leaves(list(leaves))
            outputs = function(*made.tensors, **made.options)
            return outputs if isinstance(outputs, tuple) else (outputs,)

        torch.autograd.gradcheck(of_leaves, leaves, fast_mode=True)
        torch.autograd.gradgradcheck(of_leaves, leaves, fast_mode=True)
