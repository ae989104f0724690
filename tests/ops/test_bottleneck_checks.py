"""Bad input gets one sentence with the values, of the right type, before any work."""

from __future__ import annotations

import pytest
import torch

from encoders_fast import explain, use_backend
from encoders_fast.ops import NormedProjection, Projection, bottleneck_ffn, bottleneck_input

H, D, A, F = 10, 6, 8, 7
STATE = torch.tensor([1, 2])


def linear(out, width):
    return Projection(torch.ones(out, width), torch.ones(out))


def normed(out, width, eps=None):
    return NormedProjection(torch.ones(out, width), torch.ones(out), torch.ones(out), torch.ones(out), eps)


INPUT = {
    "h": torch.ones(2, 3, H),
    "query": linear(A, D),
    "key": linear(A, D),
    "value": linear(A, H),
    "input": normed(D, H),
    "shared": normed(D, H),
}
FFN = {
    "attention": torch.ones(2, 3, A),
    "u0": torch.ones(2, 3, D),
    "h": torch.ones(2, 3, H),
    "output": normed(D, A),
    "feed_forwards": [(linear(F, D), normed(D, F))],
    "out": normed(H, D),
}


@pytest.mark.parametrize(
    ("wrong", "error", "sentence"),
    [
        ({"h": torch.ones(())}, ValueError, r"h must be \[..., width\], .* its shape is \(\)"),
        ({"h": torch.ones(2, 0)}, ValueError, r"a width of at least 1; its shape is \(2, 0\)"),
        ({"h": torch.ones(2, 3, 11)}, ValueError, r"input's weight \(6, 10\) must be \(width, 11\)"),
        ({"h": [1.0]}, TypeError, "h must be a tensor; it is list"),
        ({"h": torch.ones(2, H).long()}, TypeError, "h must be float32.* it is torch.int64"),
        ({"h": torch.ones(2, H).to_sparse()}, TypeError, "h must be a dense tensor"),
        ({"query": linear(A, H)}, ValueError, r"query's weight \(8, 10\) must be \(width, 6\)"),
        ({"key": linear(A + 1, D)}, ValueError, r"key's weight \(9, 6\) must be \(8, 6\)"),
        ({"value": linear(A, D)}, ValueError, r"value's weight \(8, 6\) must be \(width, 10\)"),
        ({"value": (torch.ones(A, H), torch.ones(A, 1))}, ValueError, r"value's bias \(8, 1\) must be \(8,\)"),
        ({"value": (torch.ones(A, H), None)}, TypeError, "value's bias must be a tensor; it is NoneType"),
        ({"value": torch.ones(A, H)}, TypeError, r"value must be a Projection \(weight, bias\); it is Tensor"),
        ({"input": linear(D, H)}, TypeError, r"input must be a NormedProjection .*; it is Projection"),
        ({"input": normed(D, H, -1.0)}, ValueError, "input's eps must not be negative; it is -1.0"),
        ({"input": normed(D, H, "a")}, TypeError, "input's eps must be a number or None; it is 'a'"),
        ({"input": None}, ValueError, "without input there is no bottleneck, so shared must be None"),
        ({"from_bottleneck": True}, ValueError, "query and key take u0: shared must be None"),
        ({"query": (torch.ones(A, D).half(), torch.ones(A))}, TypeError, "must have one dtype; they have .*float16"),
        ({"key": linear(A, D)._replace(bias=torch.ones(A).long())}, TypeError, r"biases\[1\] must be .* torch.int64"),
        ({"shared": normed(D, H)._replace(norm_bias=torch.ones(D, device="meta"))}, ValueError, "meta, h is on cpu"),
    ],
)  # fmt: skip
def test_bad_input(wrong, error, sentence):
    for call in (bottleneck_input, lambda **options: explain(bottleneck_input, **options)):
        with pytest.raises(error, match=sentence):
            call(**{**INPUT, **wrong})


@pytest.mark.parametrize(
    ("wrong", "error", "sentence"),
    [
        ({"u0": torch.ones(2, 4, D)}, ValueError, r"attention \(2, 3, 8\) and u0 \(2, 4, 6\) .* leading dimensions"),
        ({"h": torch.ones(3, H)}, ValueError, r"attention \(2, 3, 8\) and h \(3, 10\) must have the same leading"),
        ({"h": None}, ValueError, "h and out go together; h is None"),
        ({"out": None}, ValueError, "h and out go together; out is None"),
        ({"output": normed(D, D)}, ValueError, r"output's weight \(6, 6\) must be \(6, 8\)"),
        ({"out": normed(D, H)}, ValueError, r"out's weight \(6, 10\) must be \(10, 6\)"),
        ({"feed_forwards": []}, ValueError, "feed_forwards must have at least one block; it has none"),
        ({"feed_forwards": [(linear(F, H), normed(D, F))]}, ValueError, r"feed_forwards\[0\]\[0\]'s weight \(7, 10\)"),
        ({"feed_forwards": [(linear(F, D), normed(D, D))]}, ValueError, r"feed_forwards\[0\]\[1\]'s .* \(6, 7\)"),
        ({"feed_forwards": [(linear(F, D), linear(D, F))]}, TypeError, r"feed_forwards\[0\]\[1\] must be a Normed"),
        ({"activation": "tanh"}, ValueError, "activation must be one of relu, gelu, gelu_tanh, silu; it is 'tanh'"),
        ({"dropout_p": 1.5, "rng_state": STATE}, ValueError, r"dropout_p must be in \[0, 1\]; it is 1.5"),
        ({"dropout_p": 0.1}, ValueError, "dropout_p is 0.1, so rng_state is needed; it is None"),
        ({"dropout_p": 0.1, "rng_state": STATE.int()}, TypeError, "rng_state must be int64"),
    ],
)  # fmt: skip
def test_bad_ffn(wrong, error, sentence):
    for call in (bottleneck_ffn, lambda **options: explain(bottleneck_ffn, **options)):
        with pytest.raises(error, match=sentence):
            call(**{**FFN, **wrong})


def test_good_calls_are_taken():
    """The cases above differ from these by what is wrong."""
    assert [y.shape[-1] for y in bottleneck_input(**INPUT)] == [A, A, A, D]
    assert bottleneck_ffn(**FFN).shape == (2, 3, H)
    plain = {name: tuple(value) if isinstance(value, tuple) else value for name, value in INPUT.items()}
    plain |= {"input": plain["input"][:4]}  # without an eps
    for one, other in zip(bottleneck_input(**plain), bottleneck_input(**INPUT), strict=True):
        assert torch.equal(one, other)


def test_u0_is_h_without_a_bottleneck():
    h = torch.ones(2, H)
    assert bottleneck_input(h, linear(A, H), linear(A, H), linear(A, H))[3] is h


def test_unknown_keyword_and_backend():
    with pytest.raises(TypeError, match="from_bottlenecks"):
        bottleneck_input(**INPUT, from_bottlenecks=True)
    with use_backend("cpu"), pytest.raises(NotImplementedError, match=r"cpu: takes float32 and bfloat16; activations"):
        bottleneck_ffn(**{**FFN, "u0": FFN["u0"].double()})
