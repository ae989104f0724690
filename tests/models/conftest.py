import pydoc_data.topics

import pytest
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, trainers


@pytest.fixture(autouse=True)
def _causal_big_bird(monkeypatch):
    """Some versions of transformers (5.17) forget that a BigBird decoder with full attention is causal. Those before
    and after do not, and they are what ours is compared with."""
    modeling = transformers.models.big_bird.modeling_big_bird
    bidirectional = getattr(modeling, "create_bidirectional_mask", None)
    if bidirectional is None or hasattr(modeling, "create_causal_mask"):
        return

    def mask(config, encoder_hidden_states=None, **kwargs):
        if config.is_decoder and encoder_hidden_states is None:
            return transformers.masking_utils.create_causal_mask(config=config, past_key_values=None, **kwargs)
        return bidirectional(config=config, encoder_hidden_states=encoder_hidden_states, **kwargs)

    monkeypatch.setattr(modeling, "create_bidirectional_mask", mask)


@pytest.fixture(scope="session")
def sentences() -> list[str]:
    """English that every Python carries."""
    return " ".join(pydoc_data.topics.topics["assignment"].split()).split(". ")


@pytest.fixture(scope="session")
def tokenizer(sentences):
    """FNet's own kind of tokenizer, trained on the spot: 200 pieces."""
    special = ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"]
    unigram = Tokenizer(models.Unigram())
    unigram.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=200, special_tokens=special, unk_token="<unk>", show_progress=False)
    unigram.train_from_iterator(sentences, trainer)
    pieces = sorted(unigram.get_vocab().items(), key=lambda item: item[1])
    scores = [(piece, 0.0 if i < len(special) else -float(i)) for i, (piece, _) in enumerate(pieces)]
    return transformers.FNetTokenizer(vocab=scores, model_max_length=64)
