"""The token embeddings of a data set's captions, made once for each distinct text.

captions/manifest.json             which texts, text encoder, tokenizer and length
captions/000000.safetensors ...    embeddings (n, T, D) float16, one row for each text
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from transformers import PreTrainedTokenizerBase

from hf_latent.data.images.captions import choose_captions
from hf_latent.data.shards import SHARD_ROWS, Shards, write_shards
from hf_latent.errors import UserError
from hf_latent.messages import progress_bar
from hf_latent.models.frozen import FrozenWeights
from hf_latent.pipeline.conditions import Conditions
from hf_latent.pipeline.prompts import encode_prompts
from hf_latent.training.run.accelerator import raise_everywhere

BATCH_SIZE = 64


class CaptionEmbeddings:
    """Embeddings of texts, read by their numbers.

    Args:
        texts: N texts.
        text_encoder: as of `load_text_encoder`.
        tokenizer: that of the encoder.
        folder: for the cache.

    Attributes:
        frozen: checks that the text encoder does not change.
    """

    def __init__(
        self,
        texts: Sequence[str],
        text_encoder: Any,
        tokenizer: PreTrainedTokenizerBase,
        folder: Path,
    ):
        """Describe the texts; nothing is encoded yet."""
        self.texts, self.text_encoder, self.tokenizer = texts, text_encoder, tokenizer
        self.folder, self.frozen = folder, FrozenWeights(text_encoder, "text encoder")
        self.identity = {
            "text_encoder": self.frozen.sha256,
            "tokenizer": hash_tokenizer(tokenizer),
            "caption_length": tokenizer.model_max_length,
            "captions": hashlib.sha256("\n".join(texts).encode()).hexdigest(),
        }

    def state(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return dict(self.identity)

    def load_state(self, state: dict[str, Any]) -> None:
        """Check that a checkpoint is of these texts, encoder, tokenizer and length."""
        if changed := [name for name, x in self.identity.items() if state.get(name) != x]:
            raise ValueError(f"it was trained with another {changed[0]}")

    def encode(self, accelerator: Accelerator) -> None:
        """Encode the texts that are not encoded yet, in the first process, on its device.

        Raises:
            UserError: if the folder has embeddings of something else, the disk is full, or an
                embedding is too large for float16.
        """
        with raise_everywhere(accelerator):
            if accelerator.is_main_process:
                self.text_encoder.to(accelerator.device)
                with progress_bar(total=len(self.texts), desc="captions", unit="text") as bar:
                    write_shards(
                        self.folder, len(self.texts), self._encode, self.identity, bar.update
                    )
                self.text_encoder.to("cpu")  # make room for the training
        self._shards = Shards(self.folder, len(self.texts), SHARD_ROWS)

    def _encode(self, rows: range) -> dict[str, torch.Tensor]:
        own = self.texts[rows.start : rows.stop]
        parts = [
            encode_prompts(self.text_encoder, self.tokenizer, own[start : start + BATCH_SIZE])
            for start in range(0, len(own), BATCH_SIZE)
        ]
        embeddings = torch.cat(parts).half().cpu()
        if not embeddings.isfinite().all():
            raise UserError(
                "the embeddings of --text_encoder are too large for float16: name another encoder"
            )
        return {"embeddings": embeddings}

    def read(self, numbers: torch.Tensor) -> torch.Tensor:
        """Return the embeddings `(B, T, D)` float32 of texts `(B,)` int64, on the CPU."""
        return self._shards.read("embeddings", numbers).float()

    def replace_numbers(self, conditions: Conditions, uniform: torch.Tensor) -> Conditions:
        """Replace `caption_ids` `(B, K)` by `encoder_hidden_states` `(B, T, D)`.

        Args:
            conditions: of B images.
            uniform: `(B,)` in [0, 1], chooses one of each image's captions, see `choose_captions`.
        """
        conditions = dict(conditions)
        numbers = conditions.pop("caption_ids")
        chosen = choose_captions(numbers, uniform.to(numbers.device))
        embeddings = self.read(chosen.cpu()).to(numbers.device)
        return conditions | {"encoder_hidden_states": embeddings}

    def empty(self, count: int, device: torch.device) -> Conditions:
        """Return the condition of `count` images without a caption, on a device."""
        return {"encoder_hidden_states": self.read(torch.zeros(count).long()).to(device)}


def hash_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the SHA-256 of how a tokenizer cuts a text into numbered tokens."""
    settings = json.loads(tokenizer.backend_tokenizer.to_str())
    for name in ("truncation", "padding"):  # of its last call
        settings.pop(name)
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
