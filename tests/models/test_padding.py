"""Padding is left out of the layers where nobody looks at it, and what is left is the same at every real token."""

import pytest
import torch

import encoders_fast.models as ours
from encoders_fast.models import mobilebert_stack
from encoders_fast.models.big_bird_layers import BigBirdLayer
from encoders_fast.models.mobilebert_layer import MobileBertLayer
from encoders_fast.models.padding import RealTokens
from encoders_fast.models.roberta_prelayernorm import RobertaPreLayerNormLayer
from encoders_fast.models.xlm_roberta_xl import XLMRobertaXLLayer
from tests.closeness import assert_as_good_as, relative_error
from tests.models.model_cases import LEAVES_PADDING_OUT, MODELS, assert_outputs_as_good, batch, exact, family, pair

SPARSE = {"attention_type": "block_sparse", "block_size": 2, "num_random_blocks": 1}
ENCODERS = [name for name in MODELS if family(name) in LEAVES_PADDING_OUT and "CausalLM" not in name]
CASES = [(name, {}) for name in ENCODERS] + [(name, SPARSE) for name in ENCODERS if family(name) == "BigBird"]
BACKBONES = [(name, options) for name, options in CASES if name.endswith("Model")]
T = 24  # with these blocks enough to be sparse

each_case = pytest.mark.parametrize(("name", "options"), CASES, ids=str)
each_backbone = pytest.mark.parametrize(("name", "options"), BACKBONES, ids=str)


@pytest.fixture
def rows_seen(monkeypatch):
    """How many tokens the layers were given, call by call."""
    seen = []

    def watch(kind):
        forward = kind.forward

        def watched(self, h, *args, **kwargs):
            seen.append(h.shape[0] * h.shape[1])
            return forward(self, h, *args, **kwargs)

        monkeypatch.setattr(kind, "forward", watched)

    together = mobilebert_stack.packed_layers

    def watched_together(h, before, behind, count, *args):
        y = together(h, before, behind, count, *args)
        if y is not None:
            seen.extend([h.shape[0] * h.shape[1]] * count)
        return y

    monkeypatch.setattr(mobilebert_stack, "packed_layers", watched_together)
    for layer in (BigBirdLayer, MobileBertLayer, RobertaPreLayerNormLayer, XLMRobertaXLLayer):
        watch(layer)
    return seen


def padded(name, model, labels=False, lengths=(T, 9, 1)):
    """Sequences of these lengths, one of them with a hole."""
    inputs = batch(name, model.config, labels, B=len(lengths), T=T)
    mask = torch.arange(T) < torch.tensor(lengths)[:, None]
    mask[0, 5:7] = False
    shape = inputs["input_ids"].shape
    of_choices = [1] * (len(shape) - 2)
    inputs["attention_mask"] = mask.long().view(len(lengths), *of_choices, T).expand(shape).contiguous()
    return inputs, mask


def models(name, **options):
    stock, model = pair(name, **options)
    model.config.keep_padding = False
    return stock, model


def only_real(output, mask, shape):
    """Every [B, T, ...] of the output at its real tokens."""
    kept = {}
    for key, value in output.items():
        of_tokens = key != "pooler_output" and value.shape[: len(shape)] == shape
        kept[key] = value[mask.expand(shape)] if of_tokens else value
    return kept


@each_case
@torch.no_grad()
def test_outputs_at_real_tokens(name, options, rows_seen):
    stock, model = models(name, **options)
    inputs, mask = padded(name, stock)
    mask = inputs["attention_mask"].bool()
    output = model(**inputs)
    # A softmax over positions is one over padded ones too.
    assert rows_seen == [mask.numel() if "QuestionAnswering" in name else int(mask.sum())] * 2
    parts = [only_real(o, mask, mask.shape) for o in (output, stock(**inputs), exact(stock)(**inputs))]
    assert_outputs_as_good(*parts)
    if name.endswith("Model"):
        assert not output.last_hidden_state[~mask].any()
        assert torch.isfinite(output.last_hidden_state).all()


@pytest.mark.parametrize(("name", "options"), [case for case in CASES if case not in BACKBONES], ids=str)
def test_losses_and_gradients_are_those_of_all_tokens(name, options):
    """With labels at padded tokens, which stock counts: whoever trains on them gets what it gets from stock."""
    stock, model = models(name, **options)
    inputs, _ = padded(name, stock, labels=True)
    wide = exact(stock)
    outputs = [m.train()(**inputs) for m in (model, stock, wide)]
    for output in outputs:
        output.loss.backward()
    assert abs(outputs[0].loss - outputs[2].loss) <= 2 * abs(outputs[1].loss - outputs[2].loss) + 1e-5
    for (key, p), r in zip(model.named_parameters(), wide.parameters(), strict=True):
        if r.grad is not None and r.grad.norm() > 1e-6:  # softmax hides the keys' bias
            assert p.grad is not None, key
            assert relative_error(p.grad, r.grad) < 1e-4, key  # of wrong tokens it is near 1


@pytest.mark.parametrize("name", [f"{family}ForMaskedLM" for family in LEAVES_PADDING_OUT])
def test_training_without_padding(name, rows_seen):
    stock, model = models(name)
    inputs, mask = padded(name, stock, labels=True)
    inputs["labels"].masked_fill_(~mask, -100)
    wide = exact(stock)
    outputs = [m.train()(**inputs) for m in (model, stock, wide)]
    assert rows_seen == [int(mask.sum())] * 2
    for output in outputs:
        output.loss.backward()
    for (key, p), r in zip(model.named_parameters(), wide.parameters(), strict=True):
        if r.grad is not None and r.grad.norm() > 1e-6:
            assert p.grad is not None, key
            assert relative_error(p.grad, r.grad) < 1e-4, key  # of wrong tokens it is near 1


@each_backbone
@pytest.mark.parametrize("attention", ["eager", "sdpa", "encoders_fast"])
@torch.no_grad()
def test_every_attention(name, options, attention, rows_seen):
    stock, model = models(name, **options)
    model.config._attn_implementation = attention
    inputs, mask = padded(name, stock)
    factors = torch.tensor([0.5, 1.0, 0.0, 2.0])
    for head_mask in (None, factors):
        model.config.keep_padding = False
        output = model(**inputs, head_mask=head_mask).last_hidden_state
        model.config.keep_padding = True
        kept = model(**inputs, head_mask=head_mask).last_hidden_state
        torch.testing.assert_close(output[mask], kept[mask], rtol=1e-4, atol=1e-5)
    assert rows_seen == [n for n in (int(mask.sum()), mask.numel()) for _ in range(2)] * 2


@each_backbone
@torch.no_grad()
def test_who_looks_at_padding_gets_it(name, options, rows_seen):
    stock, model = models(name, **options)
    inputs, mask = padded(name, stock)
    everything, right = stock(**inputs), exact(stock)(**inputs)

    def assert_kept(output):
        assert set(rows_seen) == {mask.numel()}
        rows_seen.clear()
        assert_as_good_as(output.last_hidden_state, everything.last_hidden_state, right.last_hidden_state)

    assert_kept(model(**inputs, keep_padding=True))
    assert_kept(model(**inputs, output_hidden_states=True))
    assert_kept(model(**inputs, output_attentions=True))
    handle = model.encoder.layer[1].output.dense.register_forward_hook(lambda *_: None)
    assert_kept(model(**inputs))
    handle.remove()
    model.config.keep_padding = True
    assert_kept(model(**inputs))
    model.config.keep_padding = False
    model(**inputs)
    assert set(rows_seen) == {int(mask.sum())}


@each_backbone
@torch.no_grad()
def test_padding_on_the_left_stays(name, options, rows_seen):
    """Poolers read the first token, whatever it is."""
    stock, model = models(name, **options)
    inputs, _ = padded(name, stock)
    inputs["attention_mask"] = inputs["attention_mask"].flip(1)
    assert_as_good_as(*(m(**inputs).last_hidden_state for m in (model, stock, exact(stock))))
    assert set(rows_seen) == {inputs["attention_mask"].numel()}


def test_there_and_back():
    mask = torch.tensor([[1, 1, 0, 1], [1, 0, 0, 0], [1, 1, 1, 1]]).bool()
    real = RealTokens(mask)
    x = torch.randn(3, 4, 5)
    taken = real.take(x)
    assert torch.equal(taken[0], x[mask])
    assert real.lengths == [3, 1, 4]
    assert torch.equal(real.put_back(taken), x * mask[..., None])
    heads = taken.unflatten(-1, (1, 5)).transpose(1, 2)
    assert torch.equal(real.put_back_heads(heads)[:, 0], x * mask[..., None])


@pytest.mark.parametrize("name", LEAVES_PADDING_OUT)
def test_the_option_is_saved_where_it_says_something(name, tmp_path):
    kind = getattr(ours, f"{name}Config")
    assert "keep_padding" not in kind().to_dict()
    kind(keep_padding=True).save_pretrained(tmp_path)
    assert kind.from_pretrained(tmp_path).keep_padding is True


@pytest.mark.filterwarnings("ignore:.*is_decoder=False")
@pytest.mark.parametrize("name", [name for name in MODELS if name.endswith("CausalLM")])
def test_a_causal_head_on_an_encoder_counts_padding_too(name):
    stock, model = models(name, is_decoder=False)
    inputs, _ = padded(name, stock, labels=True)
    losses = [m(**inputs).loss.item() for m in (model, stock, exact(stock))]
    assert abs(losses[0] - losses[2]) <= 2 * abs(losses[1] - losses[2]) + 1e-5


@pytest.mark.parametrize("name", ["RobertaPreLayerNormModel", "XLMRobertaXLModel"])
@torch.no_grad()
def test_behind_a_prefix_in_an_encoder(name, rows_seen):
    """As prefix tuning puts it there."""
    stock, model = models(name)
    inputs, mask = padded(name, stock)
    inputs["attention_mask"] = torch.cat([torch.ones(3, 2, dtype=torch.long), inputs["attention_mask"]], dim=1)
    prefix = tuple((torch.randn(3, 4, 2, 8), torch.randn(3, 4, 2, 8)) for _ in range(2))
    found = model(**inputs, past_key_values=prefix).last_hidden_state
    kept = model(**inputs, past_key_values=prefix, keep_padding=True).last_hidden_state
    assert torch.equal(found, kept)
    assert set(rows_seen) == {mask.numel()}


@pytest.mark.parametrize("family", LEAVES_PADDING_OUT)
def test_a_mask_of_another_width_is_a_sentence(family):
    _, model = models(f"{family}ForMaskedLM")
    inputs, _ = padded(f"{family}ForMaskedLM", model, labels=True)
    for width in (0, T + 3):
        mask = torch.ones(3, width, dtype=torch.long)
        with pytest.raises(ValueError, match="attention_mask"):
            model(**{**inputs, "attention_mask": mask})
