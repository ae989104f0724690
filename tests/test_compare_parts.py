"""The parts of `compare` that can be wrong without anyone noticing in its table."""

import io

import pytest
import torch

pytest.importorskip("transformers", reason="compare needs the extra [models]")

from encoders_fast import _machine, models
from encoders_fast._compare import agreement, timing
from encoders_fast._compare.families import FAMILIES
from encoders_fast._compare.progress import Progress
from encoders_fast._compare.text import Windows
from encoders_fast.ops import fourier_mixing


class Letters:
    """A tokenizer that knows a to z, with 30 before and 31 after each text."""

    def __call__(self, text, add_special_tokens, verbose):
        ids = [ord(letter) - ord("a") for letter in text]
        return {"input_ids": [30, *ids, 31] if add_special_tokens else ids}


def test_windows_follow_each_other_and_start_over():
    windows = Windows(Letters(), "abcdefg", batch=2, length=5, vocabulary=32)
    assert windows[0].tolist() == [[30, 0, 1, 2, 31], [30, 3, 4, 5, 31]]
    assert windows[1].tolist() == [[30, 6, 0, 1, 31], [30, 2, 3, 4, 31]]
    assert not windows.repeats_text(1)
    assert windows.repeats_text(2)


def test_difference_is_that_of_the_definition():
    theirs = torch.tensor([3.0, -4.0, 0.0, 0.0])
    found = agreement.difference(theirs + torch.tensor([0.0, 0.5, 0.0, 0.0]), theirs)
    assert found.absolute == pytest.approx(0.5)
    assert found.relative == pytest.approx(0.5 / 2.5)
    assert found.l2 == pytest.approx(0.25 / 2.5)


@pytest.mark.parametrize("wrong", [torch.full((4,), float("nan")), torch.ones(5), torch.zeros(4)])
def test_a_bad_round_is_not_forgotten(wrong):
    right = torch.ones(4)
    found = {}
    for ours in (right, wrong, right):
        agreement.widen(found, {"logits": ours}, {"logits": right})
    assert not agreement.agree(found, torch.float32)


def test_an_output_that_only_one_side_has():
    found = {}
    agreement.widen(found, {"logits": torch.ones(4)}, {"logits": torch.ones(4), "pooled": torch.ones(4)})
    assert not agreement.agree(found, torch.float32)
    assert not agreement.agree({}, torch.float32)


def test_equal_outputs_agree_even_if_zero():
    found = {}
    agreement.widen(found, {"logits": torch.zeros(4)}, {"logits": torch.zeros(4)})
    assert agreement.agree(found, torch.float32)


def test_in_turn():
    order = []

    def ours(ids):
        order.append("ours")
        return {"y": fourier_mixing(ids)}

    def theirs(ids):
        order.append("theirs")
        return {"y": torch.fft.fftn(ids, dim=(1, 2)).real}

    torch.manual_seed(0)
    found = timing.in_turn(ours, theirs, lambda index: torch.randn(1, 3, 4), 3, lambda index: None)
    assert order == ["theirs", "ours", "ours", "theirs"] * 2
    assert len(found.ours) == len(found.theirs) == 3
    assert sum(found.backends["fourier_mixing"].values()) == 1
    assert 0 < found.differences["y"].l2 < 1e-5 or found.differences["y"].l2 == 0


def test_multiple_choice_gets_its_choices():
    ids = torch.zeros(2, 8, dtype=torch.long)
    for family in FAMILIES:
        assert family.inputs(ids, f"{family.prefix}ForMultipleChoice")["input_ids"].shape == (2, 1, 8)
        assert family.inputs(ids, f"{family.prefix}ForMaskedLM")["input_ids"].shape == (2, 8)


def test_every_family_that_there_are_models_for():
    assert {family.model_type.replace("-", "_") for family in FAMILIES} == set(models.FAMILIES)
    for family in FAMILIES:
        config = getattr(models, f"{family.prefix}Config")()
        assert config.model_type == family.model_type
        assert 0 < family.positions(config) <= config.max_position_embeddings


def test_roberta_has_as_many_positions_fewer_as_padding_takes():
    family = next(family for family in FAMILIES if family.prefix == "XLMRobertaXL")
    assert family.positions(models.XLMRobertaXLConfig()) == 512


def test_progress_on_a_terminal_and_in_a_log(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    for stream, words in ((Terminal(), "|"), (io.StringIO(), "[2/2] second")):
        monkeypatch.setattr("sys.stderr", stream)
        with Progress(2) as progress:
            progress.step("first")
            progress.step("second")
        assert words in stream.getvalue()
        assert "second" in stream.getvalue()


@pytest.mark.skipif(_machine.peak_memory(lambda: None) is None, reason="the kernel does not tell peak memory here")
def test_peak_memory_sees_what_is_freed_again():
    def call():
        scratch = torch.ones(8_000_000)
        return scratch[:10].clone()

    call()
    # The kernel counts in pages, and some of them late.
    assert 31e6 <= _machine.peak_memory(call) < 64e6
    assert _machine.peak_memory(lambda: None) < 4e6


def test_others_load_does_not_count_our_own():
    load = _machine.OthersLoad()
    assert load.share() is None
    x = torch.randn(600, 600)
    for _ in range(60):
        x @ x
    share = load.share()
    assert share is None or 0.0 <= share <= 1.0
