"""Do generated images show their captions? Measured by retrieval, beside real held-out images.

A judge, trained on the captions of real training images, ranks all distinct held-out captions by
how well they fit an image. The image's own caption should come first. The judge errs for real
images too, so their figures stand beside, and those of generated images mean nothing alone. Judges
of other feature networks, text encoders, images or captions give other figures.

The judge is one linear layer from feature vectors to caption embeddings, trained by the contrastive
loss of CLIP (Radford et al. 2021, section 2.3), from images to captions. Of 3,000 emoji, held-out
ones retrieve their captions more often by it than by ridge regression or by a small convolutional
network of pixels, and about as often as by a layer more.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy, normalize

from hf_latent.data.images.captions import NO_CAPTION, choose_captions
from hf_latent.data.shards import Selection
from hf_latent.evaluation.measures.neighbours import finite

STEPS, BATCH_SIZE, LEARNING_RATE = 250, 512, 5e-3
FIRST_SCALE = 1 / 0.07  # of CLIP
TEXTS_PER_BATCH = 64
SMALLEST_VARIANCE = 1e-12  # a feature that never varies tells nothing


@dataclass(frozen=True)
class Retrieval:
    """How well images retrieve their captions among all distinct ones.

    Attributes:
        recall_at_1: the share of images whose own caption has rank 1.
        recall_at_5: the share of images whose own caption has a rank up to 5.
        median_rank: of the images; of two middle ranks the lower one.
        num_captions: the number of ranked captions. Chance has a median rank of half of it.
    """

    recall_at_1: float
    recall_at_5: float
    median_rank: float
    num_captions: int

    @classmethod
    def of_ranks(cls, ranks: torch.Tensor, num_captions: int) -> "Retrieval":
        """Summarize ranks `(n,)` int64 of `rank_captions`."""
        first, fifth = ((ranks <= k).double().mean().item() for k in (1, 5))
        return cls(first, fifth, float(ranks.median()), num_captions)


@dataclass(frozen=True)
class CaptionedVectors:
    """Feature vectors of images that have captions.

    Attributes:
        vectors: N vectors.
        caption_ids: `(N, K)` int64 of `CaptionTexts.number`; each image has at least one caption.
    """

    vectors: Selection
    caption_ids: torch.Tensor


@torch.no_grad()
def embed_captions(
    text_encoder: Any,
    tokenizer: Any,
    texts: Sequence[str],
    on_texts: Callable[[int], object] = lambda count: None,
) -> torch.Tensor:
    """Embed each caption as the mean of its tokens' embeddings, scaled to length 1.

    Sentence encoders such as MiniLM are trained with this pooling (Reimers and Gurevych 2019,
    section 3).

    Args:
        text_encoder: a model of transformers in float32.
        tokenizer: that of the encoder; longer captions are cut to its `model_max_length`.
        texts: N captions.
        on_texts: called with the number of captions after each batch.

    Returns:
        `(N, D)` float32 on the CPU.
    """
    embeddings = []
    for start in range(0, len(texts), TEXTS_PER_BATCH):
        batch = list(texts[start : start + TEXTS_PER_BATCH])
        tokens = tokenizer(batch, padding=True, truncation=True, return_tensors="pt")
        tokens, mask = tokens.to(text_encoder.device), tokens.attention_mask
        hidden = text_encoder(tokens.input_ids, attention_mask=mask.to(text_encoder.device))[0]
        weights = mask.to(hidden)[..., None]
        means = (hidden * weights).sum(1) / weights.sum(1)
        embeddings.append(normalize(means.float(), dim=1).cpu())
        on_texts(len(batch))
    return torch.cat(embeddings)


def distinct_captions(caption_ids: torch.Tensor) -> torch.Tensor:
    """Return the numbers `(M,)` int64 of the distinct captions of images, ascending.

    Args:
        caption_ids: `(N, K)` int64 of `CaptionTexts.number`.
    """
    numbers = caption_ids.unique()
    return numbers[numbers != NO_CAPTION]


def center_captions(embeddings: torch.Tensor, caption_ids: torch.Tensor) -> torch.Tensor:
    """Subtract the mean of some captions, which tells none apart, and scale to length 1 again.

    Args:
        embeddings: `(M, D)` float, by the captions' numbers.
        caption_ids: `(N, K)` int64, of the training images; their distinct captions have this mean.
    """
    return normalize(embeddings - embeddings[distinct_captions(caption_ids)].mean(0), dim=1)


def _mean_and_deviation(vectors: Selection) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and deviation of vectors, `(d,)` float32 each."""
    sums = [(x.sum(0), x.square().sum(0)) for x in (finite(block).double() for block in vectors)]
    mean, square = (torch.stack(x).sum(0) / len(vectors) for x in zip(*sums, strict=True))
    variance = (square - mean.square()).clamp(min=SMALLEST_VARIANCE)
    return mean.float(), variance.sqrt().float()


def train_judge(
    images: CaptionedVectors,
    embeddings: torch.Tensor,
    seed: int,
    on_images: Callable[[int], object] = lambda count: None,
) -> nn.Linear:
    """Train the judge: which of a batch's distinct captions is an image's own?

    Args:
        images: real training images. Of several captions of an image, each step draws one.
        embeddings: `(M, D)` float of `center_captions`, by the captions' numbers.
        seed: of the weights and the draws.
        on_images: called with the number of images after each step.

    Returns:
        A layer from feature vectors `(B, d)` to `(B, D)`; the cosine to a caption's embedding says
        how well it fits.
    """
    torch.manual_seed(seed)
    mean, deviation = _mean_and_deviation(images.vectors)
    judge = nn.Linear(len(mean), embeddings.shape[1])
    log_scale = nn.Parameter(torch.tensor(FIRST_SCALE).log())
    optimizer = torch.optim.AdamW([*judge.parameters(), log_scale])
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=LEARNING_RATE, total_steps=STEPS, pct_start=0.25
    )
    shards, name = images.vectors.shards, images.vectors.name
    for _ in range(STEPS):
        places = torch.randint(len(images.vectors), (BATCH_SIZE,))
        vectors = (shards.read(name, images.vectors.rows[places]) - mean) / deviation
        chosen = choose_captions(images.caption_ids[places], torch.rand(BATCH_SIZE))
        captions, own = chosen.unique(return_inverse=True)
        cosines = normalize(judge(vectors), dim=1) @ embeddings[captions].T
        loss = cross_entropy(log_scale.exp() * cosines, own)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        on_images(BATCH_SIZE)
    with torch.no_grad():  # take vectors as they are
        judge.weight.div_(deviation)
        judge.bias.sub_(judge.weight @ mean)
    return judge.eval().requires_grad_(False)


def rank_captions(scores: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    """Return the rank `(n,)` int64 of each image's own caption, from 1.

    An image has the rank of the best of its captions. A caption with an equal score comes before
    it, so that a judge without opinion does not look right.

    Args:
        scores: `(n, M)` float, how well each caption fits each image.
        own: `(n, M)` bool, which captions are an image's own; at least one of each.
    """
    best = scores.masked_fill(~own, -torch.inf).amax(1, keepdim=True)
    return 1 + ((scores >= best) & ~own).sum(1)


@torch.no_grad()
def rank_own(
    judge: nn.Module,
    vectors: torch.Tensor,
    caption_ids: torch.Tensor,
    embeddings: torch.Tensor,
    captions: torch.Tensor,
) -> torch.Tensor:
    """Return the rank `(n,)` int64 of each image's own caption, see `rank_captions`.

    Args:
        judge: from `train_judge`.
        vectors: `(n, d)` float32, features of the images.
        caption_ids: `(n, K)` int64, their captions, which are among `captions`.
        embeddings: as of `train_judge`.
        captions: `(M,)` int64, numbers of the captions to rank, each once.
    """
    own = torch.zeros(len(vectors), len(captions), dtype=torch.bool)
    for ids in caption_ids.T:
        own |= ids[:, None] == captions
    return rank_captions(normalize(judge(vectors), dim=1) @ embeddings[captions].T, own)


@torch.no_grad()
def measure_retrieval(
    judge: nn.Module, images: CaptionedVectors, embeddings: torch.Tensor, captions: torch.Tensor
) -> Retrieval:
    """Rank captions for each image.

    Args:
        judge: from `train_judge`.
        images: the captions of each are among `captions`.
        embeddings: as of `train_judge`.
        captions: `(M,)` int64, numbers of the captions to rank, each once.
    """
    ranks, start = [], 0
    for block in images.vectors:
        ids = images.caption_ids[start : start + len(block)]
        ranks.append(rank_own(judge, finite(block), ids, embeddings, captions))
        start += len(block)
    return Retrieval.of_ranks(torch.cat(ranks), len(captions))
