"""What the tokenizers' golden ids are ids of: files, arguments, texts, and what is asked about them.

The same code runs twice: with transformers 4.57, by `make_golden_tokenizers.py`, and with encoders_fast.models, by
tests/models/test_tokenizers_golden.py. It imports neither.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import AddedToken

FOLDER = Path(__file__).with_name("tokenizers")
"""<family>/ as `save_pretrained` of transformers 4.57 left it, <family>-plain with a vocabulary that lacks the special
tokens, <family>-bpe with a SentencePiece model of byte pairs, and expected.json.gz."""
EXPECTED = FOLDER / "expected.json.gz"

FAMILIES = {"FNet": "spiece.model", "BigBird": "spiece.model", "MobileBert": "vocab.txt"}
"""Prefix of the classes -> the name of the slow tokenizer's file."""

TEXTS = (
    "The quick brown fox jumps over the lazy dog.",
    "Café Ünïversität: ÉCOLE naïve coöperation, Ångström!",
    "They paid 1,234,567 dollars, 9, 8, and 2021, in 12,5 years.",
    "two  spaces   and\ttabs\nand lines",
    "  spaces on both sides ",
    "spaces on both sides",
    "東京 is a city; 世界 and ﬁne ligatures™ \uff21\u3000b\u00a0c",
    "emoji 🙂🙃 and œ, ß, Σίσυφος, don't ``quote'' it's 'm n't .",
    "The capital of France is [MASK].",
    "un[MASK]happy [CLS] in [SEP] the middle [UNK]<unk> <pad>[PAD]</s> ",
    "Don't split C++ or U.S.A or [unused1], NewTok newtok new thing <extra>, new-thing.",
    "[mask] [SEP]",
    "unaffable" * 20,
    "\u0000control\u200bcharacters\ufffd \x85and",
    "",
    " ",
    "  spaces on both sides",
    "un[MASK]happy [CLS] in [SEP] the middle [UNK]<unk> <pad>[PAD]</s>",
)
PAIRS = ((0, 1), (2, 8), (9, 10), (17, 10), (14, 0))
"""Indices of texts."""


@dataclass(frozen=True)
class Case:
    """A tokenizer's class, its file, and its arguments."""

    name: str
    folder: str
    """Which vocabulary."""
    options: Mapping[str, Any] = field(default_factory=dict)
    source: str = "vocab_file"
    """"vocab_file", "tokenizer_file", or "folder" for `from_pretrained`."""
    added: tuple[str, ...] = ()
    """For `add_tokens`."""
    call: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of each call."""

    @property
    def family(self) -> str:
        return self.name.split("Tokenizer")[0]

    def tokenizer(self, library: Any) -> Any:
        """Build it from `library`."""
        kind = getattr(library, self.name)
        folder = FOLDER / self.folder
        if self.source == "folder":
            tokenizer = kind.from_pretrained(folder, **self.options)
        elif self.source == "tokenizer_file":
            tokenizer = kind(tokenizer_file=str(folder / "tokenizer.json"), **self.options)
        else:
            tokenizer = kind(str(folder / FAMILIES[self.family]), **self.options)
        tokenizer.add_tokens(list(self.added))
        return tokenizer


def results(tokenizer: Any, call: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that is asked about a tokenizer, as JSON can hold it."""
    return {
        "facts": {
            "vocab_size": tokenizer.vocab_size,
            "length": len(tokenizer),
            "special": [tokenizer.all_special_tokens, tokenizer.all_special_ids],
            "added": sorted(tokenizer.get_added_vocab().items()),
            "last": sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])[-8:],
            "inputs": tokenizer.model_input_names,
        },
        "texts": [_text(tokenizer, text, call) for text in TEXTS],
        "pairs": [_encoded(tokenizer(TEXTS[a], TEXTS[b], **_EVERYTHING, **call)) for a, b in PAIRS],
        "batch": dict(tokenizer([TEXTS[0], TEXTS[2]], padding=True, truncation=True, max_length=12, **call)),
        "formats": {
            "one": tokenizer.build_inputs_with_special_tokens([7, 8, 9]),
            "two": tokenizer.build_inputs_with_special_tokens([7, 8, 9], [10, 11]),
            "types": tokenizer.create_token_type_ids_from_sequences([7, 8, 9]),
            "types of two": tokenizer.create_token_type_ids_from_sequences([7, 8, 9], [10, 11]),
        },
    }


_EVERYTHING = {"return_token_type_ids": True, "return_special_tokens_mask": True}


def _encoded(encoding: Any) -> dict[str, Any]:
    return {name: encoding[name] for name in ("input_ids", "token_type_ids", "special_tokens_mask")}


def _text(tokenizer: Any, text: str, call: Mapping[str, Any]) -> dict[str, Any]:
    ids = tokenizer(text, **call)["input_ids"]
    tokens = tokenizer.tokenize(text, **call)
    decoded = {
        "default": tokenizer.decode(ids),
        "skip": tokenizer.decode(ids, skip_special_tokens=True),
        "spaces": tokenizer.decode(ids, spaces_between_special_tokens=True),
        "no spaces": tokenizer.decode(ids, spaces_between_special_tokens=False),
        "clean": tokenizer.decode(ids, clean_up_tokenization_spaces=True),
        "raw": tokenizer.decode(ids, clean_up_tokenization_spaces=False),
    }
    different = {how: what for how, what in decoded.items() if how == "default" or what != decoded["default"]}
    return {"ids": ids, "tokens": tokens, "string": tokenizer.convert_tokens_to_string(tokens), "decoded": different}


# ---- the cases ------------------------------------------------------------------------------------------------------

_RENAMED = {"cls_token": "<cls>", "sep_token": "<sep>", "mask_token": "<mask>", "pad_token": "<padding>"}
_ADDED = ("NewTok", "new thing")
_COMMON: dict[str, dict[str, Any]] = {
    "default": {},
    "renamed special tokens": {"options": _RENAMED},
    "vocabulary without special tokens": {"folder": "-plain"},
    "added tokens": {"added": _ADDED, "options": {"additional_special_tokens": ["<extra>"]}},
    "extra special token": {"options": {"additional_special_tokens": [AddedToken("<extra>", lstrip=True)]}},
    "split special tokens": {"call": {"split_special_tokens": True}},
    "cleaned": {"options": {"clean_up_tokenization_spaces": True}},
    "uncleaned": {"options": {"clean_up_tokenization_spaces": False}},
    "from a folder": {"source": "folder"},
}
_FNET: dict[str, dict[str, Any]] = {
    "lower case": {"options": {"do_lower_case": True}, "added": _ADDED},
    "no accents": {"options": {"keep_accents": False}},
    "spaces kept": {"options": {"remove_space": False}},
    "lower case without accents, spaces kept": {
        "options": {"do_lower_case": True, "keep_accents": False, "remove_space": False}
    },
}
_MOBILEBERT: dict[str, dict[str, Any]] = {
    "cased": {"options": {"do_lower_case": False}, "added": _ADDED},
    "cased without accents": {"options": {"do_lower_case": False, "strip_accents": True}},
    "lower case with accents": {"options": {"strip_accents": False}, "added": _ADDED},
    "Chinese characters in words": {"options": {"tokenize_chinese_chars": False}},
}
_SLOW_MOBILEBERT: dict[str, dict[str, Any]] = {
    "no basic tokenization": {"options": {"do_basic_tokenize": False}},
    "never split": {"options": {"do_lower_case": False, "never_split": ["C++", "U.S.A", "[unused1],"]}},
    "never split, lower case": {"options": {"never_split": ["[unused1],", "new-thing."]}},
}
_BYTE_PAIRS: dict[str, dict[str, Any]] = {
    "byte pairs": {"folder": "-bpe"},
    "byte pairs, added tokens": {"folder": "-bpe", **_COMMON["added tokens"]},
}
_OF_FAMILY = {"FNet": _FNET | _BYTE_PAIRS, "BigBird": _BYTE_PAIRS, "MobileBert": _MOBILEBERT}


def _cases() -> dict[str, Case]:
    cases = {}
    for family, of_family in _OF_FAMILY.items():
        for suffix in ("", "Fast"):
            name = f"{family}Tokenizer{suffix}"
            chosen = {**_COMMON, **of_family}
            if name == "MobileBertTokenizer":
                chosen |= _SLOW_MOBILEBERT
            if suffix:
                chosen["from a file"] = {"source": "tokenizer_file"}
            for title, arguments in chosen.items():
                cases[f"{name} {title}"] = Case(name, **{**arguments, "folder": family + arguments.get("folder", "")})
    return cases


CASES = _cases()
