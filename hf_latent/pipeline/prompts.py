"""Prompts as a condition: what a frozen text encoder makes of each of their tokens.

The pipelines of diffusers do the same, so a denoiser trained on these works in theirs.
"""

from collections.abc import Sequence
from typing import Any, TypeAlias
from unicodedata import normalize

import torch
from diffusers import DiffusionPipeline

from .conditions import Conditions, Denoiser, Labels, has_prompts
from .denoise import prompt_width

# Texts, or their embeddings `(P, T, D)`.
Prompts: TypeAlias = list[str] | torch.Tensor


def clean_text(text: str) -> str:
    """Return a text in Unicode's form NFC, with single spaces, as captions are."""
    return " ".join(normalize("NFC", text).split())


@torch.no_grad()
def encode_prompts(text_encoder: Any, tokenizer: Any, prompts: Sequence[str]) -> torch.Tensor:
    """Encode prompts, each cut or padded to `tokenizer.model_max_length` tokens.

    Args:
        text_encoder: a model of transformers. It attends to the padding unless its configuration
            has a true `use_attention_mask`. The denoiser always attends to it.
        tokenizer: that of the encoder.
        prompts: B texts.

    Returns:
        `(B, T, D)`: the encoder's last hidden states, in its dtype and on its device.
    """
    tokens = tokenizer(
        list(prompts),
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    )
    if text_encoder.device.type != "meta":  # the hooks of an offloaded encoder move them
        tokens = tokens.to(text_encoder.device)
    attends_to_all = not getattr(text_encoder.config, "use_attention_mask", False)
    mask = None if attends_to_all else tokens.attention_mask
    return text_encoder(tokens.input_ids, attention_mask=mask)[0]


def describe_cut(tokenizer: Any, prompts: Sequence[str]) -> str | None:
    """Return one line on the prompts that are longer than the tokenizer's length; None: none is."""
    lengths = [len(ids) for ids in tokenizer(list(prompts), verbose=False).input_ids]
    cut = [x for x, n in zip(prompts, lengths, strict=True) if n > tokenizer.model_max_length]
    if not cut:
        return None
    return (
        f"{len(cut):,} of {len(prompts):,} texts are cut to {tokenizer.model_max_length} tokens, "
        f"such as {cut[0][:60]!r}"
    )


def first_argument(unet: Denoiser, argument: Any, prompt: Any) -> tuple[Labels | None, Any]:
    """Return a call's class labels and its prompt. Its first argument is one of them.

    Args:
        unet: if it has prompts and no classes, the first argument is the prompt.
        argument: the first argument.
        prompt: that was given by its name.

    Raises:
        ValueError: if a prompt is given in both ways.
    """
    if argument is None or not has_prompts(unet) or unet.config.num_class_embeds is not None:
        return argument, prompt
    if prompt is not None:
        raise ValueError("this model has no classes, so the first argument is the prompt: pass one")
    return None, argument


def choose_prompts(
    unet: Denoiser, prompt: str | Sequence[str] | None, embeds: torch.Tensor | None
) -> Prompts | None:
    """Return a call's prompts, or their embeddings; None if there are neither.

    Raises:
        ValueError: if both are given, one of them is for a denoiser without prompts, there is none
            in a list, or they are no texts and no embeddings of the denoiser's width.
    """
    if prompt is None and embeds is None:
        return None
    width = prompt_width(unet)
    if width is None:
        raise ValueError("this model was trained without prompts: use class_labels")
    if prompt is not None and embeds is not None:
        raise ValueError("pass either a prompt or its embeddings, not both")
    if embeds is not None:
        if embeds.ndim != 3 or embeds.shape[2] != width or not len(embeds):
            raise ValueError(
                f"embeddings of prompts have the shape (P, T, {width}), and these have "
                f"{tuple(embeds.shape)}"
            )
        return embeds
    texts = [prompt] if isinstance(prompt, str) else prompt
    if not isinstance(texts, Sequence) or not all(isinstance(x, str) for x in texts):
        raise ValueError("a prompt is a text, or a list of texts")
    if not texts:
        raise ValueError("there are no prompts in the list: pass at least one, or none at all")
    return list(texts)


def prompt_conditions(
    pipeline: DiffusionPipeline, prompts: Prompts | None, count: int
) -> Conditions:
    """Return the condition `encoder_hidden_states` `(B, T, D)`; nothing without prompts.

    Args:
        pipeline: has the text encoder.
        prompts: from `choose_prompts`, used in turn.
        count: B, the number of images.

    Raises:
        ValueError: if prompts are text, and the pipeline was loaded without text encoder.
    """
    if prompts is None:
        return {}
    if not isinstance(prompts, torch.Tensor):
        prompts = encode_prompts(pipeline.require("text_encoder"), pipeline.tokenizer, prompts)
    rows = torch.arange(count) % len(prompts)
    embeddings = prompts.to(pipeline._execution_device, pipeline.unet.dtype)
    return {"encoder_hidden_states": embeddings[rows.to(embeddings.device)]}


def complete_prompts(
    pipeline: DiffusionPipeline,
    conditions: Conditions,
    null: Conditions,
    count: int,
    needs_null: bool,
) -> tuple[Conditions, Conditions]:
    """Return conditions and null conditions with the empty prompt where they need one.

    Args:
        pipeline: has the text encoder, if the empty prompt is needed.
        conditions: of B images; they need a prompt.
        null: null conditions, which may have a negative prompt.
        count: B.
        needs_null: whether guidance uses the null conditions.

    Raises:
        ValueError: if the empty prompt is needed and there is no text encoder, or if prompt and
            negative prompt have different numbers of tokens.
    """
    name = "encoder_hidden_states"
    if not has_prompts(pipeline.unet):
        return conditions, null
    if name not in conditions or (needs_null and name not in null):
        empty = prompt_conditions(pipeline, [""], count)
        conditions, null = empty | conditions, empty | null
    if name in null and null[name].shape != conditions[name].shape:
        shapes = [tuple(x[name].shape) for x in (conditions, null)]
        raise ValueError(
            f"embeddings of prompts have the shape {shapes[0]}, and negative ones {shapes[1]}: "
            "both must be equal"
        )
    return conditions, null
