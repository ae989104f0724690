"""Makes everything in tests/golden/tokenizers, with the transformers whose tokenizers did what they document.

    python -m venv /tmp/golden
    /tmp/golden/bin/pip install torch==2.13.0 transformers==4.57.6 sentencepiece==0.2.3 protobuf
    /tmp/golden/bin/python -m tests.golden.make_golden_tokenizers        # from the root of the repository

It trains a small vocabulary on a text of its own for each family that has none there yet, saves the fast tokenizers
made from it, and answers every case of `tokenizer_cases.py`.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import platform
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import sentencepiece
import tokenizers
import transformers
from tokenizers import BertWordPieceTokenizer

from tests.golden.tokenizer_cases import CASES, EXPECTED, FAMILIES, FOLDER, TEXTS, results

SENTENCES = [
    *TEXTS[:8],
    "the dogs and the foxes are quick, lazy and brown; they jump over the café in Tokyo, 東京, 世界.",
    "in 2021, 2021, 2021, 2021, and in 9, 9, 9, 9, 9 or 12,5, 12,5, 12,5 years",
    "in 1,234 years, 567 dollars, 1,000 cities, 9, 8, 7, 2021, 12,5 and 3,5 lines are paid",
    "France is a capital country. The capital of France is Paris, and the middle is happy. unhappy, unaffable",
    "Das Café der Universität ist schön; l'école est naïve, à côté, où ça? Ångström in Århus.",
    "control characters, new things, a new thing, split extra tokens, don't quote it's unused",
]
RULES = {  # a normalization of a few rules: the usual one takes 240 kB
    **dict.fromkeys("\t\n\u00a0\u3000\u200b", " "),
    "\u2122": "TM",
    "\ufb01": "fi",
    "\uff21": "A",
    "e\u0301": "\u00e9",
}


def train_sentencepiece(path: Path, special: bool, model_type: str = "unigram") -> None:
    """A model of a type that SentencePiece knows; with `special`, it has the special tokens."""
    path = path.absolute()
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.chdir(folder),
    ):  # the model keeps the paths that it is given
        Path("rules.tsv").write_text("".join(f"{_codes(old)}\t{_codes(new)}\n" for old, new in RULES.items()))
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(SENTENCES * 20),
            model_prefix="model",
            model_type=model_type,
            vocab_size=400,
            normalization_rule_tsv="rules.tsv",
            split_by_number=False,
            split_by_unicode_script=False,
            pad_id=3,
            control_symbols=["[CLS]", "[SEP]"] if special else [],
            user_defined_symbols=["[MASK]"] if special else [],
            hard_vocab_limit=False,
            character_coverage=1.0,
            num_threads=1,
            minloglevel=2,
        )
        shutil.copyfile("model.model", path)


def _codes(text: str) -> str:
    return " ".join(f"{ord(character):X}" for character in text)


def train_wordpiece(path: Path, special: bool) -> None:
    """A vocabulary with upper and lower case; with `special`, it has the special tokens."""
    tokens: list[str] = []
    for lowercase in (False, True):
        trained = BertWordPieceTokenizer(lowercase=lowercase)
        trained.train_from_iterator(SENTENCES * 3, vocab_size=250, show_progress=False)
        tokens += sorted(trained.get_vocab(), key=trained.get_vocab().__getitem__)
    tokens = list(dict.fromkeys([*tokens, "the", "lazy", "C++", "U.S.A", "[unused1],", "new-thing."]))
    if not special:
        tokens = [token for token in tokens if token not in ("[PAD]", "[CLS]", "[SEP]", "[MASK]")]
    path.write_text("".join(f"{token}\n" for token in tokens), encoding="utf-8")


def _train(path: Path, family: str, kind: str) -> None:
    special = kind != "-plain"
    if family == "MobileBert":
        train_wordpiece(path, special)
    else:
        train_sentencepiece(path, special, model_type="bpe" if kind == "-bpe" else "unigram")


def main() -> None:
    if not transformers.__version__.startswith("4.57."):
        sys.exit(f"transformers 4.57 is needed; this is {transformers.__version__}")
    transformers.logging.set_verbosity_error()
    for family, file_name in FAMILIES.items():
        for folder in {case.folder for case in CASES.values() if case.family == family}:
            path = FOLDER / folder / file_name
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                _train(path, family, kind=folder.removeprefix(family))
        fast = getattr(transformers, f"{family}TokenizerFast")
        fast(str(FOLDER / family / file_name), model_max_length=512).save_pretrained(FOLDER / family)
    made_by: dict[str, Any] = {
        "command": "python -m tests.golden.make_golden_tokenizers",
        "transformers": transformers.__version__,
        "tokenizers": tokenizers.__version__,
        "sentencepiece": sentencepiece.__version__,
        "python": platform.python_version(),
    }
    answers = {name: results(case.tokenizer(transformers), case.call) for name, case in CASES.items()}
    content = json.dumps({"made_by": made_by, "answers": answers}, ensure_ascii=False)
    EXPECTED.write_bytes(gzip.compress(content.encode(), mtime=0))
    size = sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file())
    print(f"{len(answers)} cases, {size} bytes")


if __name__ == "__main__":
    main()
