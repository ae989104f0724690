"""A checkpoint made on the spot, for machines that have none and no network.

Seeded random weights in FNet-base's shape and a tokenizer trained on the text: real text goes through a model of real
size, only its predictions mean nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from .checkpoint import libraries

# google/fnet-base. Position embeddings and all else are FNetConfig's defaults, which are fnet-base's too.
FNET_BASE: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 512,
}
# In the order of their ids, as FNetConfig has them: bos 1, eos 2, pad 3.
SPECIAL_TOKENS = {
    "unk_token": "<unk>",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "pad_token": "<pad>",
    "mask_token": "[MASK]",
}
STEPS = 2


def build(folder: Path, text: str, on_step: Callable[[str], None]) -> None:
    """Save a tokenizer trained on `text` and an FNetForMaskedLM in `folder`."""
    on_step("training a tokenizer on the text")
    train_tokenizer(text).save_pretrained(folder)
    on_step("making and saving the checkpoint")
    transformers, models = libraries()
    torch.manual_seed(0)
    config = transformers.FNetConfig(**FNET_BASE)
    models.FNetForMaskedLM(config).save_pretrained(folder)


def train_tokenizer(text: str) -> Any:
    """A Unigram tokenizer like FNet's own. Small texts have fewer pieces in them than the model's vocabulary."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokens = list(SPECIAL_TOKENS.values())
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=FNET_BASE["vocab_size"], special_tokens=tokens, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(text.split("\n\n"), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, tokens.index(token)) for token in ("[CLS]", "[SEP]")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=FNET_BASE["max_position_embeddings"],
        # FNet has no attention, and so nothing to mask.
        model_input_names=["input_ids", "token_type_ids"],
        **SPECIAL_TOKENS,
    )
