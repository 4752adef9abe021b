"""A frozen text encoder of transformers, with its tokenizer."""

from typing import Any

from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedTokenizerBase

from hf_latent.errors import UserError
from hf_latent.models.load import find_text_encoder, loading
from hf_latent.pipeline.prompts import encode_prompts

# The class of a model's text encoder where AutoModel takes the whole model.
ENCODERS = {
    "clip": "CLIPTextModel",
    "siglip": "SiglipTextModel",
    "t5": "T5EncoderModel",
    "mt5": "MT5EncoderModel",
    "umt5": "UMT5EncoderModel",
}


def load_text_encoder(name: str, max_length: int) -> tuple[Any, PreTrainedTokenizerBase]:
    """Load a text encoder from safetensors, with its tokenizer.

    Args:
        name: minilm (from pip, 22.7 M weights), a folder, or an id on the Hub. Of a CLIP model or a
            T5 only the text encoder is loaded.
        max_length: T, the number of tokens of every prompt; at most what the encoder has positions
            for.

    Returns:
        The encoder, frozen, on the CPU in float32, and its tokenizer. Their configurations say
        `use_attention_mask` and `model_max_length`, which the pipelines of diffusers follow.

    Raises:
        UserError: if there is no such encoder, weights are missing, it has fewer positions, or it
            does not make an embedding of each token.
    """
    import transformers

    folder = find_text_encoder(name)
    with loading(folder, "text encoder"):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        kind = getattr(transformers, ENCODERS.get(config.model_type, "AutoModel"), AutoModel)
        encoder, found = kind.from_pretrained(
            folder,
            use_safetensors=True,
            output_loading_info=True,
            dtype="float32",
            trust_remote_code=False,
        )
        if missing := [x for x in found["missing_keys"] if "pooler" not in x]:
            raise ValueError(f"it lacks the weights {', '.join(sorted(missing)[:3])}")
        for key, weight in encoder.named_parameters():
            if key in found["missing_keys"]:
                weight.data.zero_()  # a pooler's, random at each load, which nothing here uses
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    positions = getattr(encoder.config, "max_position_embeddings", None) or max_length
    if max_length > positions:
        raise UserError(
            f"--caption_length {max_length} is more than the {positions} tokens that the text "
            f"encoder {name} takes: choose {positions} or less"
        )
    tokenizer.model_max_length = max_length
    encoder.config.use_attention_mask = True
    encoder = encoder.eval().requires_grad_(False)
    with loading(folder, "text encoder"):
        _check_embeddings(encoder, tokenizer)
    return encoder, tokenizer


def _check_embeddings(encoder: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    """Encode the longest and the empty text; ValueError if this is not possible."""
    if not hasattr(tokenizer, "backend_tokenizer"):
        raise ValueError("its tokenizer has no tokenizer.json")
    texts = ["", "word " * tokenizer.model_max_length]
    found = encode_prompts(encoder, tokenizer, texts)
    expected = (2, tokenizer.model_max_length, text_width(encoder))
    if tuple(found.shape) != expected or not found.isfinite().all():
        raise ValueError(f"it makes no embedding of each token: {tuple(found.shape)}")


def text_width(text_encoder: Any) -> int:
    """Return D of an encoder's embeddings `(B, T, D)`."""
    config = text_encoder.config
    return getattr(config, "hidden_size", None) or config.d_model
