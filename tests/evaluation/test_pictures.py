import numpy as np
import pytest
import torch

from hf_latent.evaluation.pictures import (
    LABEL_WIDTH,
    MOST_LABEL_WIDTH,
    cut_label,
    image_grid,
    interleave,
    labelled_rows,
    text_width,
)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_image_grid_enlarges_small_images_in_rows(channels):
    images = torch.zeros(3, channels, 32, 32)
    images[1] = 1
    picture = np.asarray(image_grid(images, columns=2))
    assert picture.shape == (128, 128, 3)
    transparent = channels == 4
    assert (picture[:64, :64] == (255 if transparent else 0)).all()
    assert (picture[:64, 64:] == 255).all()
    assert (picture[64:, 64:] == 255).all()  # the short row ends in white


def test_large_images_keep_their_pixels():
    images = torch.rand(2, 3, 80, 96)
    picture = np.asarray(image_grid(images, columns=2))
    assert picture.shape == (80, 192, 3)
    expected = (images[1].permute(1, 2, 0) * 255).round().byte().numpy()
    np.testing.assert_array_equal(picture[:, 96:], expected)


def test_interleave_takes_images_in_turn():
    a, b = torch.zeros(2, 1, 1, 1), torch.ones(2, 1, 1, 1)
    assert interleave(a, b).flatten().tolist() == [0, 1, 0, 1]


def test_labelled_rows_have_one_row_a_label():
    images = torch.tensor([0.0, 1.0, 0.2, 0.8, 0.4]).view(5, 1, 1, 1).expand(5, 1, 64, 64)
    picture = np.asarray(labelled_rows(images, [7, 3], {7: "cat"}))
    assert picture.shape == (128, LABEL_WIDTH + 3 * 64, 3)
    centers = picture[32::64, LABEL_WIDTH + 32 :: 64, 0]
    np.testing.assert_array_equal(centers, [[0, 51, 102], [255, 204, 255]])
    assert (picture[:64, :LABEL_WIDTH] < 128).any()  # the name stands beside its row


def test_long_labels_are_cut_to_one_line_that_fits():
    assert cut_label("a red\n heart") == "a red heart"
    for text in ("a wide prompt " * 40, "W" * 5000):
        label = cut_label(text)
        assert label[-1] == "…" and text.startswith(label[:-1])
        most = MOST_LABEL_WIDTH - text_width("W")
        assert most - 16 < text_width(label) <= MOST_LABEL_WIDTH - 16
        picture = image_grid(torch.zeros(2, 1, 64, 64), 1, [text, "cat"])
        assert LABEL_WIDTH + 64 < picture.width <= MOST_LABEL_WIDTH + 64
        assert np.asarray(picture)[:, -64:].max() == 0, "the images are not written over"
