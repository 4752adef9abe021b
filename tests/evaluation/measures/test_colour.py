import numpy as np
import pytest
import torch
from PIL import Image
from torchmetrics.functional.regression import r2_score

from hf_latent.evaluation.measures.colour import TO_LUMA_AND_CHROMA, ColourFit


@pytest.fixture
def colours() -> torch.Tensor:
    return torch.rand(6, 3, 5, 7, generator=torch.Generator().manual_seed(0))


def compute(*pairs: tuple[torch.Tensor, torch.Tensor]) -> dict[str, float]:
    fit = ColourFit()
    for pair in pairs:
        fit.update(*pair)
    return fit.compute()


def test_luma_and_chroma_are_those_of_jpeg(colours):
    array = (colours[0] * 255).round().byte().permute(1, 2, 0).numpy()
    expected = np.asarray(Image.fromarray(array).convert("YCbCr"), dtype=float)
    ours = array @ TO_LUMA_AND_CHROMA.T.numpy() + [0, 128, 128]
    assert np.abs(ours - expected).max() <= 1  # Pillow rounds its factors


def test_r2_equals_that_of_torchmetrics_also_in_batches(colours):
    noisy = colours + 0.1 * torch.randn(colours.shape, generator=torch.Generator().manual_seed(1))
    both = [
        torch.einsum("yc,bchw->bhwy", TO_LUMA_AND_CHROMA.float(), x).flatten(0, 2)
        for x in (noisy, colours)
    ]
    figures = compute((colours[:2], noisy[:2]), (colours[2:], noisy[2:]))
    assert figures["luma_r2"] == pytest.approx(r2_score(both[0][:, 0], both[1][:, 0]).item())
    chroma = r2_score(both[0][:, 1:], both[1][:, 1:], multioutput="variance_weighted")
    assert figures["chroma_r2"] == pytest.approx(chroma.item())


def test_grey_reconstructions_keep_luma_and_no_chroma(colours):
    luma = torch.einsum("c,bchw->bhw", TO_LUMA_AND_CHROMA[0].float(), colours)
    figures = compute((colours, luma[:, None].expand_as(colours)))
    assert figures["luma_r2"] == pytest.approx(1, abs=1e-6)
    assert figures["chroma_r2"] == pytest.approx(0, abs=0.02)  # the mean colour is nearly grey
    assert compute((colours, colours)) == {"luma_r2": 1, "chroma_r2": 1}


def test_what_does_not_vary_is_not_measured(colours):
    grey = colours[:, :1].expand(-1, 3, -1, -1)
    assert compute((grey, grey)).keys() == {"luma_r2"}
    assert compute((torch.full_like(grey, 0.3), grey)) == {}
    assert compute() == {}
