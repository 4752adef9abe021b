import pytest
import torch
from PIL import Image
from torch import nn
from torchmetrics.functional.multimodal import clip_score
from torchmetrics.multimodal.clip_score import CLIPScore
from transformers import CLIPModel, CLIPProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from hf_latent.errors import UserError
from hf_latent.evaluation.measures.clip_score import load_clip, mean_score
from tests.models.test_text_encoder import make_clip, make_tokenizer

TEXTS = ["a red heart", "cat", "a blue cat"]


def save_clip(folder) -> str:
    """Save a tiny random CLIP model, and return its folder."""
    torch.manual_seed(0)
    make_clip().save_pretrained(folder)
    size = {"size": {"shortest_edge": 8}, "crop_size": {"height": 8, "width": 8}}
    CLIPProcessor(CLIPImageProcessorPil(**size), make_tokenizer()).save_pretrained(folder)
    return str(folder)


class Tensors(nn.Module):
    """A CLIP model that returns tensors, as torchmetrics expects."""

    def __init__(self, model: CLIPModel):
        super().__init__()
        self.model, self.config = model, model.config

    def get_image_features(self, *inputs):
        return self.model.get_image_features(*inputs).pooler_output

    def get_text_features(self, *inputs):
        return self.model.get_text_features(*inputs).pooler_output


@pytest.fixture
def folder(tmp_path) -> str:
    return save_clip(tmp_path / "clip")


@pytest.fixture
def images() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (3, 3, 12, 16), dtype=torch.uint8, generator=generator)


def test_scores_are_those_of_torchmetrics(folder, images):
    clip = load_clip(folder)
    assert not clip.model.training and clip.model.dtype == torch.float32
    scores = clip.scores(images, TEXTS)

    def load():
        model = CLIPModel.from_pretrained(folder, use_safetensors=True)
        return Tensors(model), CLIPProcessor.from_pretrained(folder)

    with torch.no_grad():
        metric = CLIPScore(load)
        for i, text in enumerate(TEXTS):
            expected = clip_score(images[i], text, load)
            assert scores[i].item() == pytest.approx(expected.item(), abs=1e-3)
            metric.update(images[i], text)
    assert mean_score(scores) == pytest.approx(metric.compute().item(), abs=1e-3)
    assert scores.std() > 1 and len(scores) == 3


def test_a_negative_mean_is_0():
    assert mean_score(torch.tensor([5.0, -9.0])) == 0
    assert mean_score(torch.tensor([9.0, -5.0])) == 2


def test_long_captions_keep_their_last_token(folder, images):
    clip = load_clip(folder)
    long = " ".join(["a red cat"] * 9)
    cut = "a red cat a red cat a red cat a"  # with the first and the last token 12
    torch.testing.assert_close(
        clip.scores(images[:1], [long]), clip.scores(images[:1], [cut]), rtol=0, atol=1e-4
    )


def test_grey_images_and_rgba_on_white_are_seen_as_rgb(folder):
    clip = load_clip(folder)
    grey = torch.randint(256, (1, 1, 8, 8), dtype=torch.uint8)
    rgba = torch.randint(256, (1, 4, 8, 8), dtype=torch.uint8)
    pixels = Image.fromarray(rgba[0].permute(1, 2, 0).numpy())
    white = Image.new("RGBA", (8, 8), "white")
    shown = torch.tensor(list(Image.alpha_composite(white, pixels).convert("RGB").tobytes()))
    white_rgb = shown.view(8, 8, 3).permute(2, 0, 1)[None].byte()
    for given, seen, near in ((grey, grey.expand(-1, 3, -1, -1), 1e-4), (rgba, white_rgb, 0.3)):
        torch.testing.assert_close(
            clip.scores(given, ["cat"]), clip.scores(seen, ["cat"]), rtol=0, atol=near
        )


def test_what_is_no_clip_model_is_one_line(folder, tmp_path):
    with pytest.raises(UserError, match=r"no CLIP model found at .*nowhere"):
        load_clip(str(tmp_path / "nowhere"))
    model = CLIPModel.from_pretrained(folder)
    tensors = {k: v for k, v in model.state_dict().items() if "visual_projection" not in k}
    model.save_pretrained(tmp_path / "part", state_dict=tensors)
    with pytest.raises(UserError, match=r"lacks the weights visual_projection.weight") as error:
        load_clip(str(tmp_path / "part"))
    assert "\n" not in str(error.value)
