import pytest
import torch
from accelerate import Accelerator

from hf_latent.data.images.captions import NO_CAPTION, CaptionTexts, choose_captions
from hf_latent.errors import UserError
from hf_latent.pipeline.prompts import encode_prompts
from hf_latent.training.latents.captions import CaptionEmbeddings
from tests.models.test_text_encoder import make_bert, make_tokenizer

TEXTS = ["", *(f"a red heart {i}" for i in range(66)), "a blue cat"]


@pytest.fixture
def words():
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    tokenizer.model_max_length = 6
    encoder = make_bert().eval()
    encoder.config.use_attention_mask = True
    return encoder, tokenizer


def test_captions_are_numbered_and_chosen():
    train, held_out = [["b", "a"], [], ["a"]], [["c", "a", "b"]]
    captions = CaptionTexts.of([train, held_out])
    assert captions == CaptionTexts(("", "a", "b", "c"), 3)
    numbers = captions.number(train)
    none = NO_CAPTION
    assert numbers.tolist() == [[2, 1, none], [none] * 3, [1, none, none]]
    for uniform, expected in ((0.0, [2, 0, 1]), (0.49, [2, 0, 1]), (0.5, [1, 0, 1])):
        assert choose_captions(numbers, torch.full((3,), uniform)).tolist() == expected
    for uniform in (0.9999999, 1.0):  # a normal value above 5.4 gives 1
        assert choose_captions(numbers, torch.full((3,), uniform)).tolist() == [1, 0, 1]


def test_embeddings_are_those_of_each_text_in_half_precision(words, tmp_path):
    embeddings = CaptionEmbeddings(TEXTS, *words, tmp_path / "captions")
    embeddings.encode(Accelerator(cpu=True))
    numbers = torch.tensor([67, 0, 3, 67])
    expected = encode_prompts(*words, [TEXTS[i] for i in numbers.tolist()])
    found = embeddings.read(numbers)
    assert found.dtype == torch.float32 and found.shape == (4, 6, 16)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("changed", ["text_encoder", "tokenizer", "caption_length", "captions"])
def test_embeddings_of_something_else_are_refused(words, tmp_path, changed):
    folder, accelerator = tmp_path / "captions", Accelerator(cpu=True)
    before = CaptionEmbeddings(TEXTS, *words, folder)
    before.encode(accelerator)
    before.load_state(before.state())
    encoder, tokenizer = words
    texts = TEXTS
    if changed == "text_encoder":
        encoder.embeddings.word_embeddings.weight.data += 1
    elif changed == "tokenizer":
        tokenizer.add_tokens("dog")
    elif changed == "caption_length":
        tokenizer.model_max_length = 5
    else:
        texts = [*TEXTS[:-1], "a blue dog"]
    with pytest.raises(UserError, match=f"was made with another {changed}: "):
        CaptionEmbeddings(texts, encoder, tokenizer, folder).encode(accelerator)
    with pytest.raises(ValueError, match=f"it was trained with another {changed}"):
        CaptionEmbeddings(texts, encoder, tokenizer, folder).load_state(before.state())


def test_embeddings_too_large_for_half_precision_are_one_line(words, tmp_path):
    words[0].encoder.layer[-1].output.LayerNorm.weight.data.fill_(1e6)
    with pytest.raises(UserError, match="the embeddings of --text_encoder are too large for"):
        CaptionEmbeddings(TEXTS, *words, tmp_path / "captions").encode(Accelerator(cpu=True))
