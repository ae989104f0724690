"""The six tokenizers, on vocabularies trained here: their methods, their files, and what is said about bad ones."""

import copy
import json
import pickle
import shutil
import subprocess
import sys

import pytest
import transformers

import encoders_fast.models as ours
from tests.golden.make_golden_tokenizers import SENTENCES, train_sentencepiece, train_wordpiece
from tests.golden.tokenizer_cases import FAMILIES, TEXTS

NAMES = [name for names in ours.TOKENIZERS.values() for name in names]
SENTENCEPIECE = [name for name in NAMES if not name.startswith("MobileBert")]
OPTIONS = {
    "FNetTokenizer": {"do_lower_case": True, "remove_space": False, "keep_accents": False},
    "FNetTokenizerFast": {"do_lower_case": True, "remove_space": False, "keep_accents": False},
    "BigBirdTokenizer": {"cls_token": "<cls>", "sep_token": "<sep>", "mask_token": "<mask>"},
    "BigBirdTokenizerFast": {"cls_token": "<cls>", "sep_token": "<sep>", "mask_token": "<mask>"},
    "MobileBertTokenizer": {
        "do_lower_case": False,
        "strip_accents": True,
        "tokenize_chinese_chars": False,
        "never_split": {"C++"},
    },
    "MobileBertTokenizerFast": {"do_lower_case": False, "strip_accents": True, "tokenize_chinese_chars": False},
}
"""Values that are not the default ones."""


pytestmark = pytest.mark.filterwarnings("ignore:Deprecated in 0.9.0:DeprecationWarning")
"""transformers 5.0 reads MobileBERT's vocabulary in a way of which its library tokenizers warns."""


def _family(name):
    return name.split("Tokenizer")[0]


def _sibling(name):
    return name.removesuffix("Fast") if name.endswith("Fast") else f"{name}Fast"


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """Prefix of the classes -> the slow tokenizer's file."""
    folder = tmp_path_factory.mktemp("vocabularies")
    paths = {family: folder / family / name for family, name in FAMILIES.items()}
    for family, path in paths.items():
        path.parent.mkdir()
        (train_wordpiece if family == "MobileBert" else train_sentencepiece)(path, special=True)
    return paths


@pytest.fixture
def build(files):
    return lambda name, **options: getattr(ours, name)(str(files[_family(name)]), **options)


def _ids(tokenizer):
    return [tokenizer(text)["input_ids"] for text in TEXTS]


# ---- special tokens -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_special_tokens_around_sequences(name, build):
    tokenizer = build(name)
    cls, sep, pad, mask = (getattr(tokenizer, f"{token}_token_id") for token in ("cls", "sep", "pad", "mask"))
    first, second = ([int(i) for i in range(10, 10 + n)] for n in (4, 2))
    for one, other, ids, types in (
        (first, None, [cls, *first, sep], [0] * 6),
        (first, second, [cls, *first, sep, *second, sep], [0] * 6 + [1] * 3),
        ([], [], [cls, sep, sep], [0, 0, 1]),
    ):
        assert tokenizer.build_inputs_with_special_tokens(one, other) == ids
        assert tokenizer.create_token_type_ids_from_sequences(one, other) == types
        expected = [int(i in (cls, sep)) for i in ids]
        assert tokenizer.get_special_tokens_mask(one, other) == expected
        assert tokenizer.get_special_tokens_mask(ids, already_has_special_tokens=True) == expected
    padded = [cls, 10, mask, sep, pad]  # "1 for a special token": in transformers 4 a fast BigBird tokenizer had 0 here
    assert tokenizer.get_special_tokens_mask(padded, already_has_special_tokens=True) == [1, 0, 1, 1, 1]
    with pytest.raises(ValueError, match="token_ids_1 must be None"):
        tokenizer.get_special_tokens_mask(first, second, already_has_special_tokens=True)


@pytest.mark.parametrize("name", NAMES)
def test_calls_put_the_same_special_tokens(name, build):
    tokenizer = build(name, **OPTIONS[name])
    for pair in ((TEXTS[0],), (TEXTS[1], TEXTS[2])):
        encoding = tokenizer(*pair, return_token_type_ids=True, return_special_tokens_mask=True)
        ids = [tokenizer.convert_tokens_to_ids(tokenizer.tokenize(text)) for text in pair]
        assert encoding["input_ids"] == tokenizer.build_inputs_with_special_tokens(*ids)
        assert encoding["token_type_ids"] == tokenizer.create_token_type_ids_from_sequences(*ids)
        assert encoding["special_tokens_mask"] == tokenizer.get_special_tokens_mask(*ids)


# ---- saving and loading ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_options_survive_saving(name, build, tmp_path):
    kind, options = getattr(ours, name), OPTIONS[name]
    tokenizer = build(name, **options, model_max_length=77, additional_special_tokens=["<extra>"])
    tokenizer.add_tokens(["NewTok"])
    assert _ids(tokenizer) != _ids(build(name))
    tokenizer.save_pretrained(tmp_path)
    loaded = kind.from_pretrained(tmp_path)
    assert type(loaded) is kind
    assert loaded.model_max_length == 77
    assert _ids(loaded) == _ids(tokenizer)
    assert loaded.get_vocab() == tokenizer.get_vocab()
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    for option, value in options.items():
        assert config[option] == (list(value) if isinstance(value, set) else value)
    loaded.save_pretrained(tmp_path / "again")
    assert _ids(kind.from_pretrained(tmp_path / "again")) == _ids(tokenizer)


@pytest.mark.parametrize("name", NAMES)
def test_slow_and_fast_load_each_other(name, build, tmp_path):
    tokenizer, sibling = build(name), build(_sibling(name))
    for one in (tokenizer, sibling):
        one.add_tokens(["newtok"])
    tokenizer.save_pretrained(tmp_path)
    loaded = getattr(ours, _sibling(name)).from_pretrained(tmp_path)
    for text in TEXTS:
        if name != "FNetTokenizerFast" or "</s>" not in text:  # tokenizer.json makes SentencePiece's "</s>" a token
            assert loaded(text)["input_ids"] == sibling(text)["input_ids"], text
    assert loaded.get_vocab() == sibling.get_vocab()
    if name not in ("BigBirdTokenizer", "MobileBertTokenizer"):  # their slow ones save no such file
        alone = getattr(ours, f"{_family(name)}TokenizerFast")(tokenizer_file=tmp_path / "tokenizer.json")
        assert alone.get_vocab() == sibling.get_vocab()


@pytest.mark.parametrize("name", [name for name in NAMES if name.endswith("Fast")])
def test_either_format_is_enough(name, build, tmp_path):
    tokenizer = build(name, **OPTIONS[name])
    tokenizer.add_tokens(["NewTok"])
    for legacy in (True, False):
        folder = tmp_path / str(legacy)
        tokenizer.save_pretrained(folder, legacy_format=legacy)
        files = {path.name for path in folder.iterdir()}
        assert (FAMILIES[_family(name)] in files, "tokenizer.json" in files) == (legacy, not legacy)
        assert _ids(type(tokenizer).from_pretrained(folder)) == _ids(tokenizer)


@pytest.mark.parametrize("name", NAMES)
def test_transformers_reads_what_ours_saved(name, build, tmp_path):
    tokenizer = build(name)
    tokenizer.save_pretrained(tmp_path)
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert type(loaded) is getattr(transformers, name.removesuffix("Fast"))
    assert loaded(TEXTS[0])["input_ids"] == tokenizer(TEXTS[0])["input_ids"]
    assert loaded.get_vocab() == tokenizer.get_vocab()


def test_ours_reads_what_transformers_saved(tokenizer, sentences, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = ours.FNetTokenizerFast.from_pretrained(tmp_path)
    for sentence in sentences[:20]:
        assert loaded(sentence)["input_ids"] == tokenizer(sentence)["input_ids"]
    assert loaded.model_max_length == 64
    with pytest.raises(ValueError, match=r"FNetTokenizer needs vocab_file, the path of a spiece.model, and got none"):
        ours.FNetTokenizer.from_pretrained(tmp_path)


@pytest.mark.parametrize("family", FAMILIES)
def test_auto_tokenizer(family, build, tmp_path):
    config = getattr(ours, f"{family}Config")
    slow = build(f"{family}Tokenizer")
    slow.save_pretrained(tmp_path)
    config().save_pretrained(tmp_path)
    stock = type(transformers.AutoTokenizer.from_pretrained(tmp_path))
    unregister = ours.register_auto_classes(config.model_type)
    try:
        for _ in ("by the tokenizer's name", "by the model's type"):
            loaded = transformers.AutoTokenizer.from_pretrained(tmp_path)
            assert type(loaded) is getattr(ours, f"{family}TokenizerFast")
            assert loaded(TEXTS[2])["input_ids"] == slow(TEXTS[2])["input_ids"]
            (tmp_path / "tokenizer_config.json").unlink(missing_ok=True)
    finally:
        unregister()
    slow.save_pretrained(tmp_path)
    assert type(transformers.AutoTokenizer.from_pretrained(tmp_path)) is stock


@pytest.mark.parametrize("name", NAMES)
def test_pickles_and_copies(name, build, files, tmp_path):
    path = tmp_path / files[_family(name)].name
    shutil.copyfile(files[_family(name)], path)
    tokenizer = getattr(ours, name)(path, **OPTIONS[name])
    state = pickle.dumps(tokenizer)
    path.unlink()  # a process that unpickles need not see the file
    for other in (pickle.loads(state), copy.deepcopy(tokenizer)):
        assert _ids(other) == _ids(tokenizer)
        assert other.decode(_ids(tokenizer)[8]) == tokenizer.decode(_ids(tokenizer)[8])


@pytest.mark.parametrize("name", NAMES)
def test_save_vocabulary(name, build, files, tmp_path):
    tokenizer = build(name)
    (path,) = tokenizer.save_vocabulary(str(tmp_path), filename_prefix="my")
    assert path == str(tmp_path / f"my-{FAMILIES[_family(name)]}")
    assert (tmp_path / path).read_bytes() == files[_family(name)].read_bytes()
    if name == "MobileBertTokenizer":
        return  # writes into any file
    with pytest.raises(NotADirectoryError, match=r"'.*nowhere' is not a folder"):
        tokenizer.save_vocabulary(str(tmp_path / "nowhere"))


def test_save_vocabulary_without_the_file_it_came_from(files, tmp_path):
    path = tmp_path / "spiece.model"
    shutil.copyfile(files["FNet"], path)
    slow, fast = ours.FNetTokenizer(path), ours.FNetTokenizerFast(path)
    path.unlink()
    (saved,) = slow.save_vocabulary(str(tmp_path))
    assert _ids(ours.FNetTokenizer(saved)) == _ids(slow)
    path.unlink()
    slow.save_pretrained(tmp_path / "slow")
    assert _ids(ours.FNetTokenizer.from_pretrained(tmp_path / "slow")) == _ids(slow)
    with pytest.raises(ValueError, match=r"FNetTokenizerFast has no SentencePiece model to save: .*spiece.model'"):
        fast.save_vocabulary(str(tmp_path))
    assert not path.exists()
    fast.save_pretrained(tmp_path)
    assert _ids(ours.FNetTokenizerFast.from_pretrained(tmp_path)) == _ids(fast)


# ---- bad files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_bad_files(name, tmp_path):
    kind = getattr(ours, name)
    missing, broken = tmp_path / "missing", tmp_path / "broken"
    broken.write_bytes(b"\xff\xfe nonsense")
    with pytest.raises(FileNotFoundError, match=rf"{name}: vocab_file '{missing}' is not a file"):
        kind(missing)
    with pytest.raises(FileNotFoundError, match=rf"{name}: vocab_file '{tmp_path}' is not a file"):
        kind(str(tmp_path))
    with pytest.raises(ValueError, match=rf"{broken}' is not a (SentencePiece model|text file in UTF-8)"):
        kind(str(broken))
    with pytest.raises(ValueError, match=rf"{name} needs vocab_file"):
        kind(None)
    broken.write_bytes(b"")
    with pytest.raises(ValueError, match=rf"{broken}' (is not a SentencePiece model|has no tokens)"):
        kind(str(broken))
    if name.endswith("Fast"):
        with pytest.raises(FileNotFoundError, match=rf"{name}: tokenizer_file '{missing}' is not a file"):
            kind(tokenizer_file=missing)
        with pytest.raises(ValueError, match=rf"{broken}' is not a file of the library tokenizers: "):
            kind(tokenizer_file=str(broken))


# ---- arguments ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["FNetTokenizerFast", "MobileBertTokenizerFast"])
def test_arguments_count_more_than_the_file(name, build, tmp_path):
    for saved in ({}, OPTIONS[name]):
        build(name, **saved).save_pretrained(tmp_path)
        for options in ({}, OPTIONS[name]):
            tokenizer = getattr(ours, name)(tokenizer_file=str(tmp_path / "tokenizer.json"), **options)
            assert _ids(tokenizer) == _ids(build(name, **options))


def test_never_split_keeps_capitals_in_lower_case(build):
    """It "will never be split"; transformers 4 turned such tokens into lower case first, and split what it then had."""
    text = "The C++ in USA or U.S.A there"
    assert build("MobileBertTokenizer").tokenize("C++") == ["c", "[UNK]", "[UNK]"]
    tokens = build("MobileBertTokenizer", never_split=["C++", "U.S.A"]).tokenize(text)
    assert [token for token in tokens if token in ("C++", "U.S.A")] == ["C++", "U.S.A"]
    assert "the" in tokens
    assert "USA" not in "".join(tokens)


def test_documented_arguments_of_the_fast_mobilebert(build, tmp_path):
    """transformers 4 documents `clean_text` and `wordpieces_prefix`, and passes them by."""
    text = "the la\u200bzy"
    assert build("MobileBertTokenizerFast").tokenize(text) == ["the", "lazy"]
    unclean = build("MobileBertTokenizerFast", clean_text=False)
    assert unclean.tokenize(text) != ["the", "lazy"]
    unclean.save_pretrained(tmp_path)
    assert _ids(ours.MobileBertTokenizerFast.from_pretrained(tmp_path)) == _ids(unclean)

    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "un", "@@aff", "@@able", "##able"]))
    prefixed = ours.MobileBertTokenizerFast(path, wordpieces_prefix="@@")
    assert prefixed.tokenize("unaffable") == ["un", "@@aff", "@@able"]
    assert prefixed.decode(prefixed("unaffable un")["input_ids"]) == "[CLS] unaffable un [SEP]"
    prefixed.save_pretrained(tmp_path)
    assert ours.MobileBertTokenizerFast.from_pretrained(tmp_path).tokenize("unaffable") == ["un", "@@aff", "@@able"]


def test_mask_token_takes_the_spaces_before_it(build, tmp_path):
    for name in SENTENCEPIECE:
        tokenizer = build(name)
        tokenizer.save_pretrained(tmp_path / name)
        for one in (tokenizer, getattr(ours, name).from_pretrained(tmp_path / name)):
            ids = one("The capital of")["input_ids"]
            assert one("The capital of   [MASK]")["input_ids"] == [*ids[:-1], one.mask_token_id, ids[-1]]


def test_spaces_behind_a_text_change_no_offset(build):
    tokenizer = build("FNetTokenizerFast")
    plain = tokenizer("  The capital", "of France", return_offsets_mapping=True)
    spaced = tokenizer("  The capital  ", "of France\n", return_offsets_mapping=True)
    assert spaced == plain
    assert tokenizer([("The ", "capital ")])["input_ids"] == tokenizer([("The", "capital")])["input_ids"]
    words = ["The ", "capital "]
    slow = build("FNetTokenizer")(words, is_split_into_words=True)["input_ids"]
    assert tokenizer(words, is_split_into_words=True)["input_ids"] == slow


def test_decode_one_id(build):
    for name in NAMES:
        tokenizer = build(name)
        for token in (tokenizer.mask_token, tokenizer.convert_ids_to_tokens(20)):
            text = tokenizer.decode(tokenizer.convert_tokens_to_ids(token))
            assert text.strip() == token.replace("▁", "").replace(
                "##", "" if name == "MobileBertTokenizerFast" else "##"
            )


def test_decode_a_space_between_added_tokens(build):
    for name, text in (("FNetTokenizer", "newtok newtok"), ("BigBirdTokenizer", "newtok  newtok")):
        tokenizer = build(name)
        tokenizer.add_tokens(["newtok"])
        ids = tokenizer.convert_tokens_to_ids(["newtok", "▁", "newtok"])
        assert tokenizer.decode(ids, spaces_between_special_tokens=True) == text


# ---- in use ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_fill_mask(name, build):
    tokenizer = build(name)
    small = {"vocab_size": len(tokenizer), "num_hidden_layers": 1, "hidden_size": 32, "intermediate_size": 32}
    if not name.startswith("FNet"):
        small["num_attention_heads"] = 2
    if name.startswith("MobileBert"):
        small |= {"embedding_size": 16, "intra_bottleneck_size": 16}
    model = getattr(ours, f"{_family(name)}ForMaskedLM")(getattr(ours, f"{_family(name)}Config")(**small))
    fill = transformers.pipeline("fill-mask", model=model, tokenizer=tokenizer, device="cpu")
    answers = fill(f"The capital of France is {tokenizer.mask_token}.")
    ids = tokenizer("The capital of France is")["input_ids"][:-1]
    for answer in answers:
        assert answer["token_str"] == tokenizer.decode([answer["token"]])
        assert tokenizer.decode(ids[1:], skip_special_tokens=True) in answer["sequence"]


@pytest.mark.parametrize("name", NAMES)
def test_subclasses(name, files, tmp_path):
    class Loud(getattr(ours, name)):
        def __init__(self, *args, mark="!", **kwargs):
            super().__init__(*args, mark=mark, **kwargs)
            self.mark = mark

        def tokenize(self, text, **kwargs):
            return [*super().tokenize(text, **kwargs), self.mark]

    tokenizer = Loud(str(files[_family(name)]), mark="?")
    assert isinstance(tokenizer, transformers.PreTrainedTokenizerBase)
    assert tokenizer.is_fast == name.endswith("Fast")
    assert tokenizer.tokenize("The dog")[-1] == "?"
    tokenizer.save_pretrained(tmp_path)
    assert Loud.from_pretrained(tmp_path).mark == "?"
    assert tokenizer.vocab_size == len(tokenizer) == len(tokenizer.get_vocab())


@pytest.mark.parametrize("name", [name for name in NAMES if name.endswith("Fast")])
def test_training_a_new_one(name, build, tmp_path):
    trained = build(name).train_new_from_iterator([SENTENCES * 3], vocab_size=90, show_progress=False)
    assert type(trained) is getattr(ours, name)
    ids = trained("the lazy dog")["input_ids"]
    assert (ids[0], ids[-1]) == (trained.cls_token_id, trained.sep_token_id)
    trained.save_pretrained(tmp_path)
    assert not (tmp_path / "spiece.model").exists()  # not the old one's
    assert type(trained).from_pretrained(tmp_path)("the lazy dog")["input_ids"] == ids


def test_nothing_is_loaded_before_it_is_used():
    code = (
        "import sys, encoders_fast; assert 'FNetTokenizer' in dir(encoders_fast)\n"
        "assert not {'transformers', 'tokenizers', 'sentencepiece'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
