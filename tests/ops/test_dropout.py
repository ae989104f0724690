"""Dropout's random numbers: Philox4x32-10 word for word, and masks that depend on a state and an index alone."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from encoders_fast import _dropout

STATE = torch.tensor([0x1234_5678_9ABC_DEF0, 0x0FED_CBA9_8765_4321])


def philox_in_python(counter: list[int], key: list[int]) -> list[int]:
    """The definition in whole numbers of any size."""
    for _ in range(10):
        first, second = 0xD2511F53 * counter[0], 0xCD9E8D57 * counter[2]
        counter = [
            (second >> 32) ^ counter[1] ^ key[0],
            second & 0xFFFFFFFF,
            (first >> 32) ^ counter[3] ^ key[1],
            first & 0xFFFFFFFF,
        ]
        key = [(key[0] + 0x9E3779B9) & 0xFFFFFFFF, (key[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return counter


def halves(number: int) -> list[int]:
    return [number & 0xFFFFFFFF, (number >> 32) & 0xFFFFFFFF]


def word(state: Tensor, element: int) -> int:
    seed, offset = state.tolist()
    return philox_in_python(halves(element // 4) + halves(offset), halves(seed))[element % 4]


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ("0 0 0 0", "0 0", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        (
            "ffffffff ffffffff ffffffff ffffffff",
            "ffffffff ffffffff",
            "408f276d 41c83b0e a20bc7c6 6d5451fd",
        ),
        (
            "243f6a88 85a308d3 13198a2e 03707344",
            "a4093822 299f31d0",
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
    ids=["zeros", "ones", "pi"],
)
def test_known_answers(counter, key, expected):
    """Those that the authors' library Random123 publishes."""

    def tensors(text: str) -> tuple[Tensor, ...]:
        return tuple(torch.tensor(word) for word in words(text))

    assert [int(word) for word in _dropout.philox(tensors(counter), tensors(key))] == words(expected)
    assert philox_in_python(words(counter), words(key)) == words(expected)


@pytest.mark.parametrize("state", [STATE, torch.tensor([-1, -(2**63)]), torch.tensor([0, 0])], ids=str)
@pytest.mark.parametrize("first", [0, 3, 2**34 - 2, 2**62 + 1])  # 2**34: where a block's number leaves 32 bits
def test_element_has_its_word_of_its_block(state, first):
    probability = 0.3
    expected = [word(state, first + i) >= round(0.3 * 2**32) for i in range(11)]
    assert _dropout.keep(state, (11,), probability, first_element=first).tolist() == expected
    elements = torch.arange(10, -1, -1) + first
    assert _dropout.keep_elements(state, elements, probability).tolist() == expected[::-1]


def test_threshold_is_exact():
    """Kept where the word is at least round(p 2**32): at p = word / 2**32 still, one step above no longer."""
    for element in range(8):
        at = word(STATE, element)
        for probability, kept in ((at / 2**32, True), ((at + 1) / 2**32, False)):
            assert _dropout.keep_elements(STATE, torch.tensor([element]), probability).tolist() == [kept]


@pytest.mark.parametrize(("probability", "threshold"), [(0.1, 429_496_730), (0.3, 1_288_490_189), (0.5, 2**31)])
def test_threshold_is_rounded_to_the_nearest(monkeypatch, probability, threshold):
    """0.1 * 2**32 ends in .6 and is rounded up, 0.3 * 2**32 ends in .8; a backend that rounds down drops others."""
    four = tuple(torch.tensor([threshold + step]) for step in (-2, -1, 0, 1))
    monkeypatch.setattr(_dropout, "philox", lambda counter, key: four)
    assert _dropout.keep(STATE, (4,), probability).tolist() == [False, False, True, True]


def test_mask_of_a_part_is_that_part_of_the_mask():
    mask = _dropout.keep(STATE, (6, 5, 7), 0.5)
    for row in range(6):
        assert torch.equal(_dropout.keep(STATE, (5, 7), 0.5, first_element=row * 35), mask[row])
    elements = torch.arange(210).view(6, 5, 7)
    assert torch.equal(_dropout.keep_elements(STATE, elements, 0.5), mask)
    assert _dropout.keep(STATE, (), 0.5).shape == ()
    assert _dropout.keep(STATE, (0, 3), 0.5).shape == (0, 3)
    assert _dropout.keep_elements(STATE, elements[:0], 0.5).shape == (0, 5, 7)


def test_borders_between_groups_of_blocks(monkeypatch):
    """A long mask is computed in parts; the first element is not the first of its block."""
    whole = _dropout.keep(STATE, (203,), 0.5, first_element=6)
    for blocks in (1, 2, 7, 50, 51, 52):
        monkeypatch.setattr(_dropout, "_BLOCKS_AT_A_TIME", blocks)
        assert torch.equal(_dropout.keep(STATE, (203,), 0.5, first_element=6), whole)


@pytest.mark.parametrize("probability", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_share_of_kept_elements(probability):
    count = 300_001
    for state in (STATE, _dropout.at(STATE, 0, 1), _dropout.at(STATE, 1, 0)):
        share = _dropout.keep(state, (count,), probability).double().mean().item()
        # Five deviations of a binomial: one run in 1.7 million, and the states are fixed.
        assert abs(share - (1 - probability)) <= 5 * math.sqrt(probability * (1 - probability) / count)


def test_states_of_places_differ():
    """Every layer and site has an offset of its own; masks of two of them agree as often as chance has it."""
    states = {(layer, site): _dropout.at(STATE, layer, site) for layer in range(3) for site in range(_dropout.SITES)}
    assert len({tuple(state.tolist()) for state in states.values()}) == 3 * _dropout.SITES
    assert states[2, 5].tolist() == [STATE[0], STATE[1] + 2 * _dropout.SITES + 5]
    assert STATE.tolist() == [0x1234_5678_9ABC_DEF0, 0x0FED_CBA9_8765_4321]
    last = torch.tensor([7, 2**63 - 1])
    assert _dropout.at(last, 0, 1).tolist() == [7, -(2**63)]
    masks = [_dropout.keep(state, (100_000,), 0.5) for state in (states[0, 0], states[0, 1], states[1, 0])]
    for i in range(3):
        agreement = (masks[i] == masks[i - 1]).double().mean().item()
        assert abs(agreement - 0.5) < 5 * 0.5 / math.sqrt(100_000)


def test_draw_follows_torchs_generator():
    torch.manual_seed(3)
    first, second = _dropout.draw("cpu"), _dropout.draw(torch.device("cpu"))
    torch.manual_seed(3)
    assert torch.equal(_dropout.draw("cpu"), first)
    assert not torch.equal(first, second)
    _dropout.check_rng_state(first, torch.device("cpu"))
    high = torch.stack([_dropout.draw("cpu") for _ in range(40)]) >> 32
    assert len(set(high.flatten().tolist())) == 80, "the upper halves are random too"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_dropout_scales_what_it_keeps(dtype):
    x = torch.randn(5, 33).to(dtype).requires_grad_()
    y = _dropout.dropout(x, 0.3, STATE)
    kept = _dropout.keep(STATE, x.shape, 0.3)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    factor = torch.tensor(1 / (1 - 0.3), dtype=wide)
    assert 0 < kept.sum() < kept.numel()
    assert torch.equal(y, (x.detach().to(wide) * kept * factor).to(dtype))
    dy = torch.randn(5, 33).to(dtype)
    y.backward(dy)
    assert torch.equal(x.grad, (dy.to(wide) * kept * factor).to(dtype))


def test_dropped_number_cannot_overflow():
    x = torch.full((4, 16), 60_000.0, dtype=torch.float16)
    y = _dropout.dropout(x, 0.5, STATE)
    kept = _dropout.keep(STATE, x.shape, 0.5)
    assert y[~kept].eq(0).all()
    assert y[kept].isinf().all()


def test_probabilities_of_zero_and_one():
    x = torch.randn(3, 9, requires_grad=True)
    assert torch.equal(_dropout.dropout(x, 0.0, STATE), x)
    y = _dropout.dropout(x, 1.0, STATE)
    assert y.eq(0).all()
    assert torch.autograd.grad(y.sum(), x)[0].eq(0).all()
    assert _dropout.keep(STATE, (9,), 0).all()
    assert not _dropout.keep(STATE, (9,), 1).any()
    assert (_dropout.scale(0.0), _dropout.scale(0.5), _dropout.scale(1.0)) == (1, 2, 0)
    assert _dropout.keep_elements(STATE, torch.arange(9), 0.0).all()
    assert not _dropout.keep_elements(STATE, torch.arange(9), 1.0).any()


def test_compiled_code_draws_anew_and_drops_the_same():
    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        state = _dropout.draw(x.device)
        return state, _dropout.dropout(x, 0.5, _dropout.at(state, 3, 2))

    compiled = torch.compile(forward, fullgraph=True, backend="aot_eager", dynamic=True)
    x = torch.randn(13, 21)
    (first, y), (second, _) = compiled(x), compiled(x)
    assert not torch.equal(first, second)
    assert torch.equal(y, _dropout.dropout(x, 0.5, _dropout.at(first, 3, 2)))


@pytest.mark.parametrize(
    ("arguments", "error", "sentence"),
    [
        ((1.5, STATE), ValueError, r"dropout_p must be in \[0, 1\]; it is 1.5"),
        ((-0.1, STATE), ValueError, r"it is -0.1"),
        ((float("nan"), STATE), ValueError, "it is nan"),
        (("a", STATE), TypeError, "dropout_p must be a number; it is 'a'"),
        ((0.1, None), ValueError, "dropout_p is 0.1, so rng_state is needed; it is None"),
        ((0.1, [1, 2]), TypeError, "rng_state must be a tensor; it is list"),
        ((0.1, STATE.int()), TypeError, "rng_state must be int64; it is torch.int32"),
        ((0.1, STATE[:1]), ValueError, r"rng_state must be \[2\], seed and offset; its shape is \(1,\)"),
        ((0.0, STATE.to("meta")), ValueError, "rng_state is on meta, the input is on cpu"),
    ],
)
def test_bad_input(arguments, error, sentence):
    with pytest.raises(error, match=sentence):
        _dropout.check(*arguments, torch.device("cpu"))


def test_bad_places_and_probabilities():
    for layer, site in ((-1, 0), (0, _dropout.SITES), (0, -1)):
        with pytest.raises(ValueError, match=rf"site must be in \[0, 16\); they are {layer} and {site}"):
            _dropout.at(STATE, layer, site)
    for call in (
        lambda: _dropout.keep(STATE, (3,), 2),
        lambda: _dropout.keep_elements(STATE, torch.arange(3), 2),
        lambda: _dropout.dropout(torch.ones(3), 2, STATE),
    ):
        with pytest.raises(ValueError, match=r"probability must be in \[0, 1\]; it is 2"):
            call()
