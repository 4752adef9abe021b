import numpy as np
import pytest
import torch
from torch.nn import functional as F

from hf_latent.data import shards
from hf_latent.data.shards import write_shards
from hf_latent.errors import UserError
from hf_latent.evaluation.measures import retrieval
from hf_latent.evaluation.measures.retrieval import (
    CaptionedVectors,
    Retrieval,
    center_captions,
    distinct_captions,
    embed_captions,
    measure_retrieval,
    rank_captions,
    train_judge,
)
from hf_latent.pipeline.prompts import encode_prompts
from tests.models.test_text_encoder import make_bert, make_tokenizer

IMAGES, CAPTIONS, WIDTH, FEATURES = 60, 12, 5, 8


@pytest.fixture(autouse=True)
def a_short_training(monkeypatch):
    monkeypatch.setattr(retrieval, "STEPS", 80)
    monkeypatch.setattr(retrieval, "LEARNING_RATE", 0.1)
    monkeypatch.setattr(retrieval, "BATCH_SIZE", 32)
    monkeypatch.setattr(shards, "SHARD_ROWS", 16)


@pytest.fixture
def captioned(tmp_path):
    """Vectors in shards, with the captions of each."""

    def write(vectors: torch.Tensor, caption_ids: torch.Tensor) -> CaptionedVectors:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        written = write_shards(
            folder, len(vectors), lambda rows: {"x": vectors[rows.start : rows.stop]}, {}
        )
        return CaptionedVectors(written.select("x"), caption_ids)

    return write


def make_captions(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Embeddings, and vectors and captions of images that show the first of their captions."""
    generator = torch.Generator().manual_seed(0)
    embeddings = F.normalize(torch.randn(CAPTIONS + 1, WIDTH, generator=generator), dim=1)
    mixing = torch.randn(WIDTH, FEATURES, generator=generator)
    generator.manual_seed(seed)
    ids = torch.randint(1, CAPTIONS + 1, (IMAGES, 1), generator=generator)
    noise = torch.randn(IMAGES, FEATURES, generator=generator)
    scale = torch.linspace(0.1, 30, FEATURES)
    vectors = (embeddings[ids[:, 0]] @ mixing + 0.1 * noise) * scale + 7
    return embeddings, vectors, torch.cat([ids, torch.full_like(ids, -1)], dim=1)


def test_ranks_are_those_of_a_plain_loop():
    generator = np.random.default_rng(0)
    scores = generator.integers(0, 6, (40, 9))  # with many ties
    own = generator.random((40, 9)) < 0.25
    own[np.arange(40), generator.integers(0, 9, 40)] = True
    expected = []
    for row, is_own in zip(scores.tolist(), own.tolist(), strict=True):
        best = max(x for x, mine in zip(row, is_own, strict=True) if mine)
        expected.append(
            1 + sum(x >= best and not mine for x, mine in zip(row, is_own, strict=True))
        )
    found = rank_captions(torch.from_numpy(scores).float(), torch.from_numpy(own))
    assert found.tolist() == expected
    assert len(set(expected)) > 4


def test_ranks_become_recalls_and_a_median():
    found = Retrieval.of_ranks(torch.tensor([1, 9, 5, 1, 6, 2]), 20)
    assert found == Retrieval(pytest.approx(2 / 6), pytest.approx(4 / 6), 2, 20)


def test_a_caption_is_the_mean_of_its_tokens(monkeypatch):
    monkeypatch.setattr(retrieval, "TEXTS_PER_BATCH", 2)
    torch.manual_seed(0)
    encoder, tokenizer = make_bert().eval(), make_tokenizer()
    tokenizer.model_max_length, encoder.config.use_attention_mask = 5, True
    texts, done = ["a red heart and a cat", "cat", "a heart"], []
    found = embed_captions(encoder, tokenizer, texts, done.append)
    assert done == [2, 1]
    tokens = encode_prompts(encoder, tokenizer, texts)
    for row, embedding, length in zip(tokens, found, (5, 3, 4), strict=True):
        expected = row[:length].mean(0)
        torch.testing.assert_close(embedding, expected / expected.norm(), rtol=1e-4, atol=1e-5)


def test_captions_are_centred_on_those_of_the_images():
    embeddings = F.normalize(torch.randn(6, 4), dim=1)
    ids = torch.tensor([[2, -1], [2, 5], [3, -1]])
    assert distinct_captions(ids).tolist() == [2, 3, 5]
    mean = (embeddings[2] + embeddings[3] + embeddings[5]) / 3
    for found, before in zip(center_captions(embeddings, ids), embeddings, strict=True):
        torch.testing.assert_close(found, (before - mean) / (before - mean).norm())


def test_the_judge_learns_what_images_show_and_detects_wrong_captions(captioned):
    embeddings, vectors, ids = make_captions(1)
    judge = train_judge(captioned(vectors, ids), embeddings, seed=0)
    assert not any(x.requires_grad for x in judge.parameters())
    _, vectors, ids = make_captions(2)
    ranked = distinct_captions(ids)
    found = measure_retrieval(judge, captioned(vectors, ids), embeddings, ranked)
    assert found.recall_at_1 > 0.9 and found.median_rank == 1
    assert found.num_captions == len(ranked) == CAPTIONS
    wrong = torch.where(ids > 0, ids % CAPTIONS + 1, -1)
    found = measure_retrieval(judge, captioned(vectors, wrong), embeddings, ranked)
    assert found.recall_at_1 < 0.1


def test_every_image_counts_with_the_best_of_its_own_captions(captioned):
    embeddings, vectors, ids = make_captions(1)
    judge = train_judge(captioned(vectors, ids), embeddings, seed=0)
    ids[::2, 1] = ids[::2, 0]
    ids[::2, 0] = ids[::2, 0] % CAPTIONS + 1  # its first caption is wrong
    ranked = torch.tensor([*range(2, CAPTIONS + 1), 1])
    found = measure_retrieval(judge, captioned(vectors, ids), embeddings, ranked)
    ranks = []
    for vector, own in zip(vectors, ids.tolist(), strict=True):
        cosine = F.cosine_similarity(judge(vector), embeddings).tolist()
        best = max(cosine[i] for i in own if i > 0)
        ranks.append(1 + sum(cosine[i] >= best for i in ranked.tolist() if i not in own))
    assert found == Retrieval.of_ranks(torch.tensor(ranks), CAPTIONS)
    assert found.recall_at_1 > 0.9


def test_the_same_seed_gives_the_same_judge(captioned, monkeypatch):
    monkeypatch.setattr(retrieval, "STEPS", 5)
    embeddings, vectors, ids = make_captions(1)
    images, seen = captioned(vectors, ids), []
    one, two, other = (train_judge(images, embeddings, x, seen.append) for x in (5, 5, 6))
    assert torch.equal(one.weight, two.weight) and torch.equal(one.bias, two.bias)
    assert not torch.equal(one.weight, other.weight)
    assert seen == [32] * 15


def test_vectors_that_are_not_finite_are_one_line(captioned):
    embeddings, vectors, ids = make_captions(1)
    vectors[-1, 0] = torch.nan
    with pytest.raises(UserError, match="not finite"):
        train_judge(captioned(vectors, ids), embeddings, seed=0)
