"""Checkpoints made on the spot, for machines that have none and no network: one of each family.

Seeded random weights in the shape of a published model and a tokenizer trained on the text: real text goes through a
model of real size, only its predictions mean nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .checkpoint import libraries


@dataclass(frozen=True)
class Demo:
    """One model to show. What its configuration does not say is as in the family's published checkpoints."""

    class_name: str
    shape: str
    """Whose sizes these are."""
    batch: int
    length: int
    config: dict[str, Any]

    @property
    def source(self) -> str:
        return f"seeded weights in the shape of {self.shape}; saved, and loaded again"


VOCABULARY = 32_000
DEMOS = (
    Demo(
        "FNetForMaskedLM",
        "FNet-base",
        2,
        512,
        {"hidden_size": 768, "num_hidden_layers": 12, "intermediate_size": 3072, "max_position_embeddings": 512},
    ),
    Demo("BigBirdForMaskedLM", "BigBird-base", 1, 1024, {}),
    Demo("MobileBertForMaskedLM", "MobileBERT", 4, 128, {}),
    Demo("RobertaPreLayerNormForMaskedLM", "RoBERTa-PreLayerNorm-base", 2, 256, {}),
    Demo(
        "XLMRobertaXLForMaskedLM",
        "XLM-RoBERTa-XL with 2 of its 36 layers",
        1,
        128,
        {"num_hidden_layers": 2},
    ),
)

# In the order of their ids; the configurations below say the same.
SPECIAL_TOKENS = {
    "unk_token": "<unk>",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "pad_token": "<pad>",
    "mask_token": "[MASK]",
}
IDS = {"bos_token_id": 1, "eos_token_id": 2, "sep_token_id": 2, "pad_token_id": 3}


def build(folder: Path, demo: Demo, tokenizer: Any) -> None:
    """Save `tokenizer` and the model of `demo` in `folder`."""
    tokenizer.save_pretrained(folder)
    _, models = libraries()
    torch.manual_seed(0)
    config_class = getattr(models, demo.class_name).config_class
    getattr(models, demo.class_name)(config_class(vocab_size=VOCABULARY, **IDS, **demo.config)).save_pretrained(folder)


def train_tokenizer(text: str) -> Any:
    """A Unigram tokenizer like FNet's own. Small texts have fewer pieces in them than the models' vocabulary."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokens = list(SPECIAL_TOKENS.values())
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=VOCABULARY, special_tokens=tokens, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(text.split("\n\n"), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, tokens.index(token)) for token in ("[CLS]", "[SEP]")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=512,
        # FNet has no attention, and so nothing to mask.
        model_input_names=["input_ids", "token_type_ids"],
        **SPECIAL_TOKENS,
    )
