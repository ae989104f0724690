"""The examples of transformers' public documentation run with this library's classes: the installed one's own
docstrings, with our import and a small checkpoint made here in place of the hub's."""

import doctest
import re

import pytest
import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

import encoders_fast.models as ours
from encoders_fast._compare import demo
from tests.models.model_cases import HEADS, config, family, tensors

ARTICLE = "The maximum length of an article was a question of habit. " * 15
EXAMPLES = {head: getattr(transformers, head).forward.__doc__ or "" for head in HEADS}
# Documented, but without an example.
SILENT = {"BigBirdForCausalLM"}


@pytest.fixture(scope="module")
def tokenizer():
    """A word is a token: the examples put [MASK] in the place of one."""
    special = list(demo.SPECIAL_TOKENS.values())
    vocabulary = {word: i for i, word in enumerate([*special, *dict.fromkeys(re.findall(r"\w+", ARTICLE))])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **demo.SPECIAL_TOKENS)


@pytest.fixture
def checkpoint(tokenizer, tmp_path):
    def save(head, **options):
        tokenizer.save_pretrained(tmp_path)
        sizes = {"vocab_size": len(tokenizer), "max_position_embeddings": 256, "num_hidden_layers": 1}
        getattr(ours, head)(config(head, **sizes, **demo.IDS, **options)).save_pretrained(tmp_path)
        return str(tmp_path)

    return save


def program(head: str, package: str) -> str:
    """The code between the prompts. XLM-RoBERTa-XL's examples show plain RoBERTa: it gets the family's own prefix."""
    documentation, prefix = EXAMPLES[head], family(head)
    documentation = re.sub(r"# doctest: .*", "", documentation)
    lines = []
    for example in doctest.DocTestParser().get_examples(documentation):
        source = re.sub(r"\bRoberta(For|Config)", rf"{prefix}\1", example.source)
        source = re.sub(r'"[\w.-]+/[\w.-]+"', "CHECKPOINT", source).replace("<mask>", "[MASK]")
        source = re.sub(r"torch.tensor\(\[1[45]\]\)", "torch.tensor([8])", source)  # of fewer tokens: one a word
        if source.startswith("from datasets") or source.startswith("assert"):
            continue  # there is no hub here, and a model that nobody trained predicts nothing
        imported = re.match(r"from transformers import (.*)\n", source)
        if imported:
            for name in imported[1].split(","):
                has_it = name.strip() in ours.__all__
                lines.append(f"from {package if has_it else 'transformers'} import {name.strip()}\n")
        else:
            lines.append(source)
    return "".join(lines)


def test_which_heads_have_examples():
    assert {head for head, documentation in EXAMPLES.items() if ">>>" not in documentation} == SILENT & set(HEADS)


@pytest.mark.filterwarnings("ignore:FNet mixes all tokens")
@pytest.mark.parametrize("head", [head for head in HEADS if head not in SILENT])
def test_example(head, checkpoint):
    folder = checkpoint(head, **({"num_labels": 2} if "SequenceClassification" in head else {}))
    rows = {81514: {"context": ARTICLE, "question": "How long was it?"}}

    def run(package, library):
        names = {"CHECKPOINT": folder, "load_dataset": lambda *_, **__: rows}
        torch.manual_seed(0)
        exec(compile(program(head, package), f"the example of {head}", "exec"), names)
        assert type(names["model"]) is getattr(library, head)
        found = {name: value for name, value in names.items() if isinstance(value, torch.Tensor)}
        found |= {f"outputs.{name}": value for name, value in tensors(names["outputs"])} if "outputs" in names else {}
        return {name: value for name, value in found.items() if value.is_floating_point()}

    ours_found, stock_found = run("encoders_fast", ours), run("transformers", transformers)
    assert ours_found.keys() == stock_found.keys() != set()
    for name, value in ours_found.items():
        torch.testing.assert_close(value, stock_found[name], rtol=1e-4, atol=1e-5)
        assert value.isfinite().all()
