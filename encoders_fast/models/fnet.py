"""FNet: an encoder whose layers mix tokens by a Fourier transform, and its seven heads.

    h = LayerNorm(h + Re(FFT2(h)))              the op fourier_mixing_layer_norm
    h = LayerNorm(h + W2 act(W1 h + b1) + b2)

Class names, parameter names, argument order and outputs are those of transformers' modeling_fnet.py.

Source: FNet: Mixing Tokens with Fourier Transforms (Lee-Thorp et al., 2021).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling, ModelOutput
from transformers.modeling_utils import PreTrainedModel
from transformers.models.fnet.modeling_fnet import FNetForPreTrainingOutput

from ..ops import fourier_mixing, fourier_mixing_layer_norm
from ..ops.fourier_mixing import onnx as _onnx  # noqa: F401  torch.onnx.export finds the op's ONNX form
from . import tasks
from .activations import activation
from .configuration import FNetConfig
from .inputs import check_tokens, one_of, warn_once
from .language_heads import BertLanguageHead
from .masks import make_mask, real_tokens
from .observers import is_layer_norm, unobserved
from .positions import CountsPositions, Lengths, count_tokens, first_tokens, rows_by_length
from .post_layer_norm import PostLayerNormOutput
from .projections import activate
from .unused import NamesUnusedParameters

__all__ = [
    "FNetConfig",
    "FNetForMaskedLM",
    "FNetForMultipleChoice",
    "FNetForNextSentencePrediction",
    "FNetForPreTraining",
    "FNetForPreTrainingOutput",
    "FNetForQuestionAnswering",
    "FNetForSequenceClassification",
    "FNetForTokenClassification",
    "FNetModel",
    "FNetPreTrainedModel",
]


# ---- the encoder's parts --------------------------------------------------------------------------------------------


class FNetEmbeddings(CountsPositions):
    """Words, positions and token types, normalized and projected: [B, T] -> [B, T, D]."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        P, D = config.max_position_embeddings, config.hidden_size
        self.word_embeddings = nn.Embedding(config.vocab_size, D, padding_idx=config.pad_token_id)
        self.position_embeddings = nn.Embedding(P, D)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, D)
        self.LayerNorm = nn.LayerNorm(D, eps=config.layer_norm_eps)
        self.projection = nn.Linear(D, D)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self,
        input_ids: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor:
        h = self.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        # What is the same for every sequence is looked up and added once, not once a sequence.
        positions = torch.arange(h.shape[1], device=h.device)[None] if position_ids is None else position_ids
        types = torch.zeros_like(positions[..., :1]) if token_type_ids is None else token_type_ids
        h = h + (self.token_type_embeddings(types) + self.position_embeddings(positions))
        return self.dropout(self.projection(self.LayerNorm(h)))


class FNetFourierTransform(nn.Module):
    """LayerNorm(h + Re(FFT2(h))). The parameters are `output.LayerNorm`'s, as in checkpoints.

    With `use_tpu_fourier_optimizations`, transformers keeps two DFT matrices per layer in its state dict. They are
    constants: ours takes them from a state dict without a look and puts them into one, but holds none.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.output = nn.Module()
        self.output.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.norm = getattr(config, "fourier_norm", "backward")
        if self.norm not in ("backward", "ortho"):
            raise ValueError(f'fourier_norm must be "backward" or "ortho"; it is {self.norm!r}')
        self.saved_matrices: dict[str, int] = {}
        if config.use_tpu_fourier_optimizations and config.max_position_embeddings <= 4096:
            self.saved_matrices = {
                "self.dft_mat_hidden": config.hidden_size,
                "self.dft_mat_seq": config.tpu_short_seq_length,
            }

    def forward(self, h: Tensor, lengths: Lengths | None = None) -> Tensor:
        """With `lengths`, each row's own tokens alone are mixed, and padding becomes zeros."""
        if lengths is None:
            return self.mix(h)
        parts = [self.mix(h[place]) for place in lengths]
        y = torch.zeros_like(h, dtype=parts[0].dtype if parts else h.dtype)
        for place, part in zip(lengths, parts, strict=True):
            y[place] = part
        return y

    def mix(self, h: Tensor) -> Tensor:
        layer_norm: Any = self.output.LayerNorm
        if not is_layer_norm(layer_norm) or not unobserved(layer_norm):  # its hooks want to see it called
            return layer_norm(h + fourier_mixing(h, self.norm))
        return fourier_mixing_layer_norm(h, layer_norm.weight, layer_norm.bias, layer_norm.eps, self.norm)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        layer_norm: Any = self.output.LayerNorm
        if not layer_norm.weight.is_meta:  # from_pretrained asks a model without memory which keys it can take
            for name, size in self.saved_matrices.items():
                destination[prefix + name] = _dft_matrix(size).to(layer_norm.weight.device)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        for name in self.saved_matrices:
            state_dict.pop(prefix + name, None)
        super()._load_from_state_dict(state_dict, prefix, *args)


def _dft_matrix(size: int) -> Tensor:
    """exp(-2 pi i j k / size), [size, size] complex64."""
    steps = torch.arange(size)
    angles = torch.outer(steps, steps).remainder(size).double() * (-2 * math.pi / size)
    return torch.complex(angles.cos(), angles.sin()).to(torch.complex64)


class FNetIntermediate(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.intermediate_act_fn = activation(config.hidden_act)

    def forward(self, h: Tensor) -> Tensor:
        return activate(self.intermediate_act_fn, self.dense, h)


class FNetOutput(PostLayerNormOutput):
    def __init__(self, config: Any) -> None:
        super().__init__(config, config.intermediate_size)


class FNetLayer(GradientCheckpointingLayer):
    """Mixing, then the feed-forward block: [B, T, D] -> [B, T, D]."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.chunk_size_feed_forward = config.chunk_size_feed_forward
        self.fourier = FNetFourierTransform(config)
        self.intermediate = FNetIntermediate(config)
        self.output = FNetOutput(config)

    def feed_forward(self, h: Tensor) -> Tensor:
        return self.output(self.intermediate(h), h)

    def forward(self, h: Tensor, lengths: Lengths | None = None) -> Tensor:
        h = self.fourier(h) if lengths is None else self.fourier(h, lengths)
        if self.chunk_size_feed_forward <= 0:
            return self.feed_forward(h)
        # The last chunk may be shorter; transformers raises there.
        return torch.cat([self.feed_forward(part) for part in h.split(self.chunk_size_feed_forward, dim=1)], dim=1)


class FNetEncoder(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.layer = nn.ModuleList([FNetLayer(config) for _ in range(config.num_hidden_layers)])

    def forward(
        self, h: Tensor, output_hidden_states: bool = False, lengths: Lengths | None = None
    ) -> tuple[Tensor, tuple[Tensor, ...] | None]:
        """The last hidden state, and all of them, the embeddings' first, where they are asked for."""
        states = [h]
        for layer in self.layer:
            h = layer(h) if lengths is None else layer(h, lengths)
            if output_hidden_states:
                states.append(h)
        return h, tuple(states) if output_hidden_states else None


class FNetPooler(nn.Module):
    """tanh(dense(h of the first token)): [B, T, D] -> [B, D]."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, h: Tensor) -> Tensor:
        return torch.tanh(self.dense(h[:, 0]))


# ---- models ---------------------------------------------------------------------------------------------------------


class FNetPreTrainedModel(NamesUnusedParameters, PreTrainedModel):
    """Base of all FNet models: initialization, and how checkpoints are loaded and saved.

    Trainer with gradient_accumulation_steps adds the batches' losses up, as it does with transformers' own FNet, which
    takes `num_items_in_batch` and does not use it. For their mean, set `model.accepts_loss_kwargs = False`.
    """

    config: FNetConfig
    config_class = FNetConfig
    base_model_prefix = "fnet"
    supports_gradient_checkpointing = True
    _no_split_modules = ["FNetEmbeddings", "FNetLayer"]  # noqa: RUF012  transformers wants a list
    # See FNetFourierTransform: they are read past, whatever the configuration says.
    _keys_to_ignore_on_load_unexpected = [r"fourier\.self\.dft_mat_(hidden|seq)$"]  # noqa: RUF012


class FNetModel(FNetPreTrainedModel):
    """The encoder, with a pooler unless `add_pooling_layer=False`."""

    def __init__(self, config: Any, add_pooling_layer: bool = True) -> None:
        super().__init__(config)
        self.embeddings = FNetEmbeddings(config)
        self.encoder = FNetEncoder(config)
        self.pooler = FNetPooler(config) if add_pooling_layer else None
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: Any) -> None:
        self.embeddings.word_embeddings = value

    def forward(
        self,
        input_ids: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPooling | tuple[Any, ...]:
        """Encode a batch of sequences.

        Args:
            input_ids: [B, T], or else
            inputs_embeds: [B, T, D], in place of the word embeddings.
            token_type_ids: [B, T]; zeros where it is not given.
            position_ids: [B, T] or [T]; 0 to T - 1 where it is not given, and T is at most max_position_embeddings.
            output_hidden_states, return_dict: as the configuration says where they are not given.
            attention_mask: accepted, and without effect: FNet mixes all tokens, padding too. Warns once. With
                `config.exact_padding` [B, T], 0 where a token is padding: such tokens take no part.

        Returns: last_hidden_state [B, T, D], pooler_output [B, D] or None, and with `output_hidden_states` the
        hidden_states, a tuple of num_hidden_layers + 1 times [B, T, D]. Without `return_dict` the same as a tuple.

        Raises: ValueError for inputs of the wrong shape, both or neither of input_ids and inputs_embeds, too long
        sequences; TypeError for ids that are not integers and for unknown keywords.
        """
        exact = getattr(self.config, "exact_padding", False)
        _check_keywords(kwargs, mask_has_effect=exact)
        given = {"input_ids": input_ids, "inputs_embeds": inputs_embeds}
        longest = self.config.max_position_embeddings if position_ids is None else None
        check_tokens(given, token_type_ids, position_ids, self.config.hidden_size, longest)
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        tokens = one_of(given)[1]
        mask = make_mask(kwargs.get("attention_mask"), tokens, tokens.shape[1]) if exact else None
        real = None if mask is None else real_tokens(mask, tokens)
        if real is not None and position_ids is None:
            position_ids = count_tokens(real)
        h = self.embeddings(input_ids, token_type_ids, position_ids, inputs_embeds)
        h, states = self.encoder(h, output_hidden_states, None if real is None else rows_by_length(real))
        pooled = None if self.pooler is None else self.pooler(first_tokens(h, real))
        if self.config.return_dict if return_dict is None else return_dict:
            return BaseModelOutputWithPooling(last_hidden_state=h, pooler_output=pooled, hidden_states=states)
        return (h, pooled) if states is None else (h, pooled, states)


def _check_keywords(keywords: dict[str, Any], mask_has_effect: bool) -> None:
    """Pass what callers of many kinds of model give to FNet as well; raise TypeError for any other keyword."""
    for name, value in keywords.items():
        if name == "attention_mask":
            if value is not None and not mask_has_effect:
                warn_once(
                    "FNet mixes all tokens, padding too: attention_mask has no effect. Pad as the checkpoint was"
                    " trained, encode sequences of different lengths one by one, or set config.exact_padding."
                )
        elif name == "output_attentions":
            if value:
                raise ValueError("FNet has no attentions: output_attentions must be False or None")
        elif name != "num_items_in_batch":  # Trainer's; transformers' FNet takes it and takes means all the same
            raise TypeError(f"FNet has no argument {name!r}")


# ---- heads: FNet's order of arguments, then one class per task -------------------------------------------------------


class FNetHead(tasks.Family, FNetPreTrainedModel):
    """What the tasks need to know of FNet."""

    backbone = FNetModel
    always_pools = True
    language_head = BertLanguageHead
    language_head_path = "cls.predictions"
    pretraining_output = FNetForPreTrainingOutput
    masked_loss_alone = False
    removes_padding = False


class _Labelled(tasks.Task):
    """FNet's order of arguments for the heads with one kind of labels."""

    def forward(
        self,
        input_ids: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> ModelOutput | tuple[Any, ...]:
        """As FNetModel's; the class says what `labels` are. Without them there is no loss."""
        inputs = _inputs(input_ids, token_type_ids, position_ids, inputs_embeds, output_hidden_states, kwargs)
        return self.deliver(self.answer(inputs, labels), return_dict)


def _inputs(
    input_ids: Tensor | None,
    token_type_ids: Tensor | None,
    position_ids: Tensor | None,
    inputs_embeds: Tensor | None,
    output_hidden_states: bool | None,
    keywords: dict[str, Any],
) -> dict[str, Any]:
    return {
        "input_ids": input_ids,
        "token_type_ids": token_type_ids,
        "position_ids": position_ids,
        "inputs_embeds": inputs_embeds,
        "output_hidden_states": output_hidden_states,
        **keywords,
    }


class FNetForPreTraining(tasks.PreTraining, FNetHead):
    """Masked language model and next sentence prediction: the heads that FNet was trained with.

    labels [B, T] and next_sentence_label [B] are those of FNetForMaskedLM and FNetForNextSentencePrediction. The loss,
    the sum of both, needs both. Returns FNetForPreTrainingOutput with prediction_logits [B, T, V] and
    seq_relationship_logits [B, 2].
    """

    def forward(
        self,
        input_ids: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        next_sentence_label: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> ModelOutput | tuple[Any, ...]:
        """As FNetModel's, and the labels that the class describes."""
        inputs = _inputs(input_ids, token_type_ids, position_ids, inputs_embeds, output_hidden_states, kwargs)
        return self.deliver(self.answer(inputs, labels, next_sentence_label), return_dict)


class FNetForMaskedLM(_Labelled, tasks.MaskedLM, FNetHead):
    """Masked language model: logits [B, T, V]. labels [B, T] are token ids, and -100 where a token does not count."""


class FNetForNextSentencePrediction(_Labelled, tasks.NextSentencePrediction, FNetHead):
    """Does the second sentence follow the first? logits [B, 2]. labels [B]: 0 if it does, 1 if it is a random one."""


class FNetForSequenceClassification(_Labelled, tasks.SequenceClassification, FNetHead):
    """Classes or values of a whole sequence: logits [B, num_labels].

    labels are class ids [B] ("single_label_classification"), zeros and ones [B, num_labels]
    ("multi_label_classification") or values [B], with more than one label [B, num_labels] ("regression"). Which of the
    three is `config.problem_type`; where that is None, num_labels = 1 means regression and the dtype of the first
    labels decides otherwise, for good.
    """


class FNetForMultipleChoice(_Labelled, tasks.MultipleChoice, FNetHead):
    """Which of several continuations is right? logits [B, choices].

    The inputs have one dimension more than FNetModel's: input_ids are [B, choices, T]. labels [B] are the right ones.
    """


class FNetForTokenClassification(_Labelled, tasks.TokenClassification, FNetHead):
    """Classes of tokens: logits [B, T, num_labels]. labels [B, T] are class ids, -100 where a token does not count."""


class FNetForQuestionAnswering(tasks.QuestionAnswering, FNetHead):
    """Where in the text is the answer? start_logits and end_logits [B, T].

    start_positions and end_positions [B] are the answer's first and last token; the loss needs both, and a position
    behind the last token does not count.
    """

    def forward(
        self,
        input_ids: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> ModelOutput | tuple[Any, ...]:
        """As FNetModel's, and the positions that the class describes."""
        inputs = _inputs(input_ids, token_type_ids, position_ids, inputs_embeds, output_hidden_states, kwargs)
        return self.deliver(self.answer(inputs, start_positions, end_positions), return_dict)
