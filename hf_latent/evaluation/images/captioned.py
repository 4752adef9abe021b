"""The captions of an evaluation: which ones images are generated from, and whether these show."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from hf_latent.data.images.captions import NO_CAPTION, CaptionTexts
from hf_latent.data.images.dataset import ImageDataset, evenly_spaced
from hf_latent.data.shards import Shards
from hf_latent.errors import UserError
from hf_latent.evaluation.images.reference import RealImages
from hf_latent.evaluation.measures import retrieval
from hf_latent.evaluation.measures.clip_score import ClipScore, mean_score
from hf_latent.evaluation.measures.retrieval import (
    CaptionedVectors,
    center_captions,
    distinct_captions,
    embed_captions,
    train_judge,
)
from hf_latent.evaluation.stages import Stages
from hf_latent.models.frozen import hash_weights
from hf_latent.pipeline import LatentDiffusionPipeline
from hf_latent.pipeline.decode import shown_channels

MOST_JUDGE_IMAGES = 20_000  # of 128,000 draws
CLIP_BATCH_SIZE = 64


@dataclass(frozen=True)
class HeldOutCaptions:
    """Held-out images that have captions.

    Attributes:
        texts: all captions of the data.
        rows: `(n,)` int64, of the held-out images.
        caption_ids: `(n, K)` int64, their captions, see `CaptionTexts.number`.
    """

    texts: CaptionTexts
    rows: torch.Tensor
    caption_ids: torch.Tensor

    @classmethod
    def of(cls, held_out: ImageDataset, texts: CaptionTexts | None) -> "HeldOutCaptions":
        """Find the held-out images that have a caption; UserError if there is none."""
        ids = held_out.caption_ids
        if texts is None or ids is None or (ids[:, 0] == NO_CAPTION).all():
            raise UserError(
                "the model draws from captions, and no held-out image has one: name the column of "
                "captions with --caption_column, or raise --validation_fraction"
            )
        rows = (ids[:, 0] != NO_CAPTION).nonzero().flatten()
        return cls(texts, rows, ids[rows])

    def in_turn(self, count: int) -> "HeldOutCaptions":
        """Return `count` of these images, in turn: the first ones, or some more than once."""
        places = torch.arange(count) % len(self.rows)
        return replace(self, rows=self.rows[places], caption_ids=self.caption_ids[places])

    @property
    def prompts(self) -> list[str]:
        """The first caption of each image."""
        return [self.texts.texts[i] for i in self.caption_ids[:, 0].tolist()]


def draw_conditions(
    reference: ImageDataset, texts: CaptionTexts | None, conditional: bool
) -> tuple[torch.Tensor | None, list[str] | None]:
    """Choose the labels and prompts of as many generated images as there are reference images.

    Args:
        reference: the reference images, whose labels and first captions they are; an image without
            a caption has the empty one.
        texts: the captions of the data; None for a model without prompts.
        conditional: whether the model has classes.

    Returns:
        Labels `(n,)` int64 and n prompts, each None if the model has none.
    """
    labels = reference.labels if conditional else None
    if texts is None or reference.caption_ids is None:
        return labels, None
    first = reference.caption_ids[:, 0].clamp(min=0).tolist()  # text 0 is empty
    return labels, [texts.texts[i] for i in first]


def measure_words(
    samples: Shards,
    captions: HeldOutCaptions,
    real: RealImages,
    vectors: dict[str, Shards],
    pipeline: LatentDiffusionPipeline,
    clip: ClipScore | None,
    seed: int,
    stages: Stages,
) -> dict[str, Any]:
    """Measure whether samples show their captions, by retrieval and, with a CLIP model, its score.

    Args:
        samples: from `write_samples`, with the vectors `features` and the prompts of the first
            held-out captions.
        captions: of the held-out images, each image once.
        real: the real images.
        vectors: their features, from `vectors_by_space`.
        pipeline: its text encoder embeds the captions for retrieval.
        clip: the CLIP model; None: no score.
        seed: of the judge.

    Returns:
        Flat figures; those of held-out images begin with `real_`.
    """
    with stages.stage("retrieval") as bar:
        figures = measure_retrieval(samples, captions, real.train, vectors, pipeline, seed, bar)
    figures["text_encoder_weights_sha256"] = hash_weights(pipeline.text_encoder)
    if clip is not None:
        shown = shown_channels(pipeline.vae)
        with stages.stage("clip score", len(samples) + len(captions.rows)) as bar:
            figures |= measure_clip_score(clip, samples, captions, real.held_out, shown, bar)
        figures["clip_weights_sha256"] = hash_weights(clip.model)
    return figures


def learn_captions(
    captions: HeldOutCaptions,
    train: ImageDataset,
    vectors: dict[str, Shards],
    pipeline: LatentDiffusionPipeline,
    seed: int,
    bar: tqdm,
) -> tuple[nn.Module, torch.Tensor, int]:
    """Train the judge of retrieval, see `measures/retrieval.py`.

    Args:
        captions: of the held-out images.
        train: all training images. They train the judge, at most `MOST_JUDGE_IMAGES` of them.
        vectors: features of the real images.
        pipeline: has the text encoder.
        seed: of the judge.

    Returns:
        The judge, the embeddings `(M, D)` by the captions' numbers, and the number of its images.
    """
    ids, texts = train.caption_ids, captions.texts.texts
    assert ids is not None  # both splits have captions, or none
    rows = (ids[:, 0] != NO_CAPTION).nonzero().flatten()
    rows = rows[evenly_spaced(len(rows), MOST_JUDGE_IMAGES)]
    learned = CaptionedVectors(vectors["train"].select("vectors", rows), ids[rows])
    known = distinct_captions(torch.cat([learned.caption_ids, captions.caption_ids]))
    bar.total = len(known) + retrieval.STEPS * retrieval.BATCH_SIZE
    known_texts = [texts[i] for i in known.tolist()]
    embedded = embed_captions(pipeline.text_encoder, pipeline.tokenizer, known_texts, bar.update)
    embeddings = torch.zeros(len(texts), embedded.shape[1]).index_copy(0, known, embedded)
    embeddings = center_captions(embeddings, learned.caption_ids)
    return train_judge(learned, embeddings, seed, bar.update), embeddings, len(rows)


def measure_retrieval(
    samples: Shards,
    captions: HeldOutCaptions,
    train: ImageDataset,
    vectors: dict[str, Shards],
    pipeline: LatentDiffusionPipeline,
    seed: int,
    bar: tqdm,
) -> dict[str, Any]:
    """Measure how well generated images retrieve the captions that they were generated from.

    See `measures/retrieval.py`. Of a held-out image with several captions, and of an image that was
    generated from one of them, the best-ranked one counts.

    Args:
        samples: as of `measure_words`, like the others.
        captions: of the held-out images.
        train: as of `learn_captions`, like the others.
        vectors: features of the real images.
        pipeline: has the text encoder.
        seed: of the judge.

    Returns:
        Flat figures; those of held-out images begin with `real_`.
    """
    judge, embeddings, learned = learn_captions(captions, train, vectors, pipeline, seed, bar)
    held_out = vectors["held_out"].select("vectors", captions.rows)
    drawn = captions.in_turn(len(samples)).caption_ids
    judged = {
        "": CaptionedVectors(samples.select("features"), drawn),
        "real_": CaptionedVectors(held_out, captions.caption_ids),
    }
    figures: dict[str, Any] = {
        "retrieval_real_images": len(captions.rows),
        "retrieval_judge_train_images": learned,
    }
    for prefix, images in judged.items():
        ranked = distinct_captions(captions.caption_ids)
        found = retrieval.measure_retrieval(judge, images, embeddings, ranked)
        figures |= {f"{prefix}retrieval_{key}": value for key, value in asdict(found).items()}
    return figures


def measure_clip_score(
    clip: ClipScore,
    samples: Shards,
    captions: HeldOutCaptions,
    held_out: ImageDataset,
    shown: Sequence[int] | None,
    bar: tqdm,
) -> dict[str, float]:
    """Measure the CLIP score of generated and of held-out images with their first captions.

    Args:
        clip: the CLIP model.
        samples: as of `measure_words`.
        captions: of the held-out images.
        held_out: all held-out images.
        shown: the channels of measured images, as `decode.shown_channels`.

    Returns:
        `clip_score` and `real_clip_score`.
    """

    def measure(read: Callable[[torch.Tensor], torch.Tensor], count: int) -> float:
        scores, prompts = [], captions.in_turn(count).prompts
        for rows in torch.arange(count).split(CLIP_BATCH_SIZE):
            images = read(rows) if shown is None else read(rows)[:, list(shown)]
            scores.append(clip.scores(images, [prompts[i] for i in rows.tolist()]))
            bar.update(len(rows))
        return mean_score(torch.cat(scores))

    return {
        "clip_score": measure(lambda rows: samples.read("images", rows), len(samples)),
        "real_clip_score": measure(
            lambda rows: held_out.read_uint8(captions.rows[rows]), len(captions.rows)
        ),
    }
