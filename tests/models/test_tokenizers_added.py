"""Special tokens as `AddedToken`s, models of byte pairs, and sequences too short to be truncated."""

import json
import logging
import re

import pytest
import transformers
from tokenizers import AddedToken

import encoders_fast.models as ours
from tests.golden.make_golden_tokenizers import train_sentencepiece
from tests.golden.tokenizer_cases import CASES, FOLDER, TEXTS

SENTENCEPIECE = ["FNetTokenizer", "FNetTokenizerFast", "BigBirdTokenizer", "BigBirdTokenizerFast"]
LOWER_CASE = [
    ("FNetTokenizerFast", "FNet/spiece.model"),
    ("FNetTokenizerFast", "FNet-plain/spiece.model"),
    ("FNetTokenizerFast", "FNet-bpe/spiece.model"),
    ("MobileBertTokenizerFast", "MobileBert/vocab.txt"),
    ("MobileBertTokenizerFast", "MobileBert-plain/vocab.txt"),
]


# ---- special tokens -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "file"), LOWER_CASE)
def test_special_tokens_keep_their_spelling_in_lower_case(name, file, tmp_path):
    """Whatever of the text they take with them, and whatever the library tokenizers would make of them."""
    kind = getattr(ours, name)
    tokenizer = kind(
        str(FOLDER / file),
        do_lower_case=True,
        mask_token=AddedToken("[MASK]", lstrip=True),
        sep_token=AddedToken("<Sep>", rstrip=True),
        additional_special_tokens=[AddedToken("<Extra>", lstrip=True)],
    )
    tokenizer.add_special_tokens(
        {"additional_special_tokens": [AddedToken("<Late>", lstrip=True)]}, replace_extra_special_tokens=False
    )
    tokenizer.save_pretrained(tmp_path)
    text = "A   [MASK] b  <Extra> c <Late> d<Sep>"
    for one in (tokenizer, kind.from_pretrained(tmp_path)):
        ids = one(text)["input_ids"]
        special = [token for token in one.convert_ids_to_tokens(ids) if token in one.all_special_tokens]
        assert special == ["[CLS]", "[MASK]", "<Extra>", "<Late>", "<Sep>", "<Sep>"]
        assert one.convert_ids_to_tokens(one.mask_token_id) == one.mask_token
        assert one.decode(ids, skip_special_tokens=True) == "a b c d"
        assert "[MASK]" in one.decode(ids)
        assert ids == tokenizer(text)["input_ids"]


@pytest.mark.parametrize(("name", "file"), LOWER_CASE)
def test_special_tokens_of_a_file_keep_their_spelling(name, file, tmp_path):
    """transformers 4 saved them as tokens that are looked for in lower case."""
    kind = getattr(ours, name)
    backend = kind(str(FOLDER / file), do_lower_case=True).backend_tokenizer
    backend.add_special_tokens([AddedToken("<Extra>", lstrip=True, normalized=True)])
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = kind(tokenizer_file=str(tmp_path / "tokenizer.json"), do_lower_case=True)
    ids = tokenizer("A   <Extra> b")["input_ids"]
    assert "<Extra>" in tokenizer.convert_ids_to_tokens(ids)
    assert tokenizer.decode(ids, skip_special_tokens=True) == "a b"


@pytest.mark.parametrize("name", SENTENCEPIECE)
def test_extra_special_tokens_are_special(name):
    for extra in ("<Extra>", AddedToken("<Extra>", lstrip=True)):
        case = CASES[f"{name} default"]
        tokenizer = getattr(ours, name)(str(FOLDER / case.folder / "spiece.model"), additional_special_tokens=[extra])
        ids = tokenizer("in <Extra> the")["input_ids"]
        assert "<Extra>" in tokenizer.decode(ids)
        assert tokenizer.decode(ids, skip_special_tokens=True).split() == ["in", "the"]
        mask = tokenizer.get_special_tokens_mask(ids, already_has_special_tokens=True)
        assert mask[ids.index(tokenizer.convert_tokens_to_ids("<Extra>"))] == 1


# ---- models of byte pairs -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SENTENCEPIECE)
def test_byte_pairs_survive_saving(name, tmp_path):
    kind, tokenizer = getattr(ours, name), CASES[f"{name} byte pairs"].tokenizer(ours)
    expected = [tokenizer(text)["input_ids"] for text in TEXTS]
    tokenizer.save_pretrained(tmp_path)
    assert [kind.from_pretrained(tmp_path)(text)["input_ids"] for text in TEXTS] == expected
    sibling = getattr(ours, name.removesuffix("Fast") if name.endswith("Fast") else f"{name}Fast")
    assert sibling.from_pretrained(tmp_path)(TEXTS[0])["input_ids"] == expected[0]
    if name.startswith("FNet"):  # transformers' own BigBirdTokenizer knows no byte pairs
        assert transformers.AutoTokenizer.from_pretrained(tmp_path)(TEXTS[0])["input_ids"] == expected[0]


@pytest.mark.parametrize("family", ["FNet", "BigBird"])
def test_byte_pairs_are_merged_by_their_scores(family):
    """Those of SentencePiece, one lower for each piece; FNet's converter takes 100 off for "9," and the like."""
    backend = CASES[f"{family}TokenizerFast byte pairs"].tokenizer(ours).backend_tokenizer
    model = json.loads(backend.to_str())["model"]
    made = ["".join(pair) for pair in model["merges"]]
    malus = {piece: 100 if family == "FNet" and re.search(r"\d,$", piece) else 0 for piece in made}
    assert any(malus.values()) == (family == "FNet")
    assert made == sorted(made, key=lambda piece: model["vocab"][piece] + malus[piece])


@pytest.mark.parametrize("family", ["FNet", "BigBird"])
@pytest.mark.parametrize("model_type", ["word", "char"])
def test_models_that_the_fast_tokenizers_do_not_know(family, model_type, tmp_path):
    path = tmp_path / "spiece.model"
    train_sentencepiece(path, special=True, model_type=model_type)
    with pytest.raises(ValueError, match=rf"Fast: '{path}' cannot be converted: .*different algorithm"):
        getattr(ours, f"{family}TokenizerFast")(path)
    slow = getattr(ours, f"{family}Tokenizer")(path)
    slow.save_pretrained(tmp_path / "saved")
    loaded = type(slow).from_pretrained(tmp_path / "saved")
    assert loaded(TEXTS[0])["input_ids"] == slow(TEXTS[0])["input_ids"]


# ---- truncation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["FNetTokenizer", "BigBirdTokenizer", "MobileBertTokenizer"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_sequence_with_nothing_to_spare_stays_whole(name, side, caplog):
    tokenizer = CASES[f"{name} default"].tokenizer(ours)
    tokenizer.truncation_side = side
    one, other = (tokenizer.convert_tokens_to_ids(tokenizer.tokenize(text)) for text in ("the dog", TEXTS[0]))
    whole = {
        "only_first": tokenizer.build_inputs_with_special_tokens(one, other),
        "only_second": tokenizer.build_inputs_with_special_tokens(other, one),
    }
    for strategy, expected in whole.items():
        pair = ("the dog", TEXTS[0]) if strategy == "only_first" else (TEXTS[0], "the dog")
        for spare in (-1, 0, 1):  # how many tokens of the short sequence there would be room for
            caplog.clear()
            length = len(other) + 3 + spare
            with caplog.at_level(logging.ERROR):
                ids = tokenizer(*pair, truncation=strategy, max_length=length)["input_ids"]
            if spare == 1:
                kept = one[:1] if side == "right" else one[-1:]
                sequences = (kept, other) if strategy == "only_first" else (other, kept)
                assert ids == tokenizer.build_inputs_with_special_tokens(*sequences)
                assert not caplog.records
            else:
                assert ids == expected
                assert f"'{strategy}' names has {len(one)}: it stays as it is" in caplog.text
    assert len(tokenizer("the dog", TEXTS[0], truncation="longest_first", max_length=8)["input_ids"]) == 8
