"""What happens around a model in other people's code: inference before training, offloaded weights, generation from
embeddings, caches of fixed size, masks for pruned heads."""

import numpy as np
import pytest
import torch

import encoders_fast.models as ours
from tests.models.model_cases import MODELS, SMALL, TOKENS, batch, config, pair

BACKBONES = [name for name in MODELS if name.endswith("Model")]
ATTENDING = [name for name in BACKBONES if not name.startswith("FNet")]
DECODERS = [name for name in MODELS if name.endswith("ForCausalLM")]
SPARSE = {"attention_type": "block_sparse", "block_size": 2, "num_random_blocks": 1}


def sparse(name, **options):
    return {**options, **SPARSE} if name.startswith("BigBird") else options


@pytest.mark.parametrize("implementation", ["sdpa", "encoders_fast"])
@pytest.mark.parametrize("name", ATTENDING)
def test_training_after_inference_mode(name, implementation):
    # A width of tokens that no other test has: what the first call keeps, the second one finds.
    tokens = {"sdpa": 38, "encoders_fast": 42}[implementation]
    model = getattr(ours, name)(config(name, **sparse(name), attn_implementation=implementation))
    inputs = batch(name, model.config, T=tokens)
    with torch.inference_mode():
        model.eval()(**inputs)
    model.train()(**inputs).last_hidden_state.square().sum().backward()
    assert model.get_input_embeddings().weight.grad.isfinite().all()


@pytest.mark.parametrize("name", BACKBONES)
def test_offloaded_weights(name):
    accelerate = pytest.importorskip("accelerate")
    model = getattr(ours, name)(config(name, **sparse(name))).eval()
    inputs = batch(name, model.config)
    with torch.no_grad():
        before = model(**inputs).last_hidden_state
        accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
        torch.testing.assert_close(model(**inputs).last_hidden_state, before)


def test_an_offloaded_language_head_is_refused():
    accelerate = pytest.importorskip("accelerate")
    model = ours.MobileBertForMaskedLM(config("MobileBertForMaskedLM")).eval()
    inputs = batch("MobileBertForMaskedLM", model.config)
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    with torch.no_grad(), pytest.raises(NotImplementedError, match=r"cls\.predictions\.dense is offloaded"):
        model(**inputs)


@pytest.mark.parametrize("path", ["encoder.layer.0.output.LayerNorm", "encoder.layer.0.output.dropout"])
@pytest.mark.parametrize("name", ["BigBirdModel", "FNetModel"])
def test_another_forward_in_a_module_is_called(name, path):
    _, model = pair(name)
    inputs, called = batch(name, model.config), []
    module = model.get_submodule(path)
    original = module.forward
    module.forward = lambda *args: called.append(1) or original(*args)
    model(**inputs)
    assert called


@pytest.mark.parametrize("name", DECODERS)
def test_generation_from_embeddings(name):
    stock, model = pair(name)
    ids = batch(name, model.config)["input_ids"]
    tokens = [
        each.generate(
            inputs_embeds=each.get_input_embeddings()(ids),
            attention_mask=torch.ones_like(ids),
            max_new_tokens=4,
            do_sample=False,
            eos_token_id=None,
        )
        for each in (stock, model)
    ]
    assert torch.equal(*tokens)


@pytest.mark.parametrize("implementation", ["eager", "sdpa", "encoders_fast"])
def test_generation_over_blocks_with_a_static_cache(implementation):
    name = "BigBirdForCausalLM"
    model = ours.BigBirdForCausalLM(config(name, **SPARSE, attn_implementation=implementation)).eval()
    ids = batch(name, model.config)["input_ids"][:, :7]
    options = {"max_new_tokens": 20, "do_sample": False, "eos_token_id": None, "attention_mask": torch.ones_like(ids)}
    dynamic = model.generate(ids, **options)
    assert torch.equal(model.generate(ids, **options, cache_implementation="static"), dynamic)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("name", ATTENDING)
def test_a_mask_for_each_head_of_a_pruned_model(name, implementation):
    model = getattr(ours, name)(config(name, attn_implementation=implementation)).eval()
    inputs, heads = batch(name, model.config), SMALL[name.removesuffix("Model")]["num_attention_heads"]
    inputs.pop("attention_mask", None)
    generator = torch.Generator().manual_seed(2)
    mask = torch.rand(2, heads, TOKENS, TOKENS, generator=generator) < 0.5
    mask |= torch.eye(TOKENS, dtype=torch.bool)
    off = torch.ones(model.config.num_hidden_layers, heads)
    off[0, 0] = off[0, 2] = off[1, 1] = 0
    with torch.no_grad():
        masked = model(**inputs, attention_mask=mask, head_mask=off).last_hidden_state
        model.prune_heads({0: [0, 2], 1: [1]})
        torch.testing.assert_close(model(**inputs, attention_mask=mask).last_hidden_state, masked)


@pytest.mark.parametrize("name", ATTENDING)
def test_heads_are_pruned_by_any_kind_of_integers(name, tmp_path):
    model = getattr(ours, name)(config(name))
    model.prune_heads({np.int64(0): np.array([0, 2]), 1: torch.tensor([1])})
    model.save_pretrained(tmp_path)
    assert getattr(ours, name).from_pretrained(tmp_path).config.pruned_heads in (
        {0: [0, 2], 1: [1]},
        {"0": [0, 2], "1": [1]},
    )


def test_one_mask_for_all_sequences_with_token_labels():
    name = "XLMRobertaXLForTokenClassification"
    stock, model = pair(name)
    inputs = batch(name, model.config, labels=True)
    inputs.pop("attention_mask", None)
    mask = torch.ones(1, TOKENS, dtype=torch.long)
    mask[:, 8:] = 0
    with torch.no_grad():
        expected = stock(**inputs, attention_mask=mask.repeat(2, 1)).loss
        torch.testing.assert_close(model(**inputs, attention_mask=mask).loss, expected)


@pytest.mark.parametrize("name", BACKBONES)
def test_no_tokens(name):
    model = getattr(ours, name)(config(name))
    with pytest.raises(ValueError, match="the sequences have no tokens"):
        model(torch.zeros(2, 0, dtype=torch.long))


@pytest.mark.parametrize("name", ATTENDING)
def test_an_implementation_that_is_not_supported_is_refused(name):
    with pytest.raises(ValueError, match="flex"):
        getattr(ours, name)(config(name, attn_implementation="flex_attention"))
