import math

import numpy as np
import pytest
import torch
from PIL import Image

from hf_latent.models.presets import create_scheduler
from hf_latent.pipeline.conditions import drop_conditions
from hf_latent.pipeline.image_to_image import (
    keep_unmasked,
    paste_kept,
    read_mask,
    shrink_mask,
    skipped_steps,
    slerp,
)


def test_whole_conditions_of_an_image_are_dropped():
    given = {"class_labels": torch.arange(3), "encoder_hidden_states": torch.ones(3, 2, 4)}
    null = {"class_labels": torch.full((3,), 9), "encoder_hidden_states": torch.zeros(3, 2, 4)}
    kept = drop_conditions(given, null, torch.tensor([0.9, 0.1, 0.9]), 0.2)
    assert kept["class_labels"].tolist() == [0, 9, 2]
    for image, value in enumerate((1, 0, 1)):
        torch.testing.assert_close(
            kept["encoder_hidden_states"][image], torch.full((2, 4), float(value))
        )


def test_of_two_conditions_each_is_dropped_alone_too():
    count = 10_000
    given = {"class_labels": torch.zeros(count), "encoder_hidden_states": torch.zeros(count, 2, 4)}
    null = {name: torch.ones_like(x) for name, x in given.items()}
    uniform = torch.linspace(0, 1, count)
    kept = drop_conditions(given, null, uniform, 0.2)
    label, prompt = kept["class_labels"].bool(), kept["encoder_hidden_states"][:, 0, 0].bool()
    shares = [(label == x) & (prompt == y) for x in (True, False) for y in (True, False)]
    # Of the 0.8 that keep one, 0.2 lose one.
    for share, expected in zip(shares, (0.2, 0.08, 0.08, 0.64), strict=True):
        assert share.double().mean().item() == pytest.approx(expected, abs=1e-3)
    del null["encoder_hidden_states"]
    alone = drop_conditions(given, null, uniform, 0.2)["class_labels"]
    assert torch.equal(alone.bool(), uniform < 0.2)


@pytest.mark.parametrize(
    ("strength", "skipped"),
    [(1, 0), (0.999, 1), (0.8, 2), (0.55, 5), (0.7, 3), (0.1, 9), (0.01, 9), (0, 10)],
)
def test_skipped_steps(strength, skipped):
    assert skipped_steps(create_scheduler("flow"), 10, strength) == skipped


@pytest.mark.parametrize("strength", [-0.1, 1.1, math.nan])
def test_strength_outside_0_to_1_is_refused(strength):
    with pytest.raises(ValueError, match="strength must be from 0 to 1, not"):
        skipped_steps(create_scheduler("flow"), 10, strength)


def test_a_latent_is_free_if_any_of_its_pixels_is():
    pixels = np.zeros((8, 12), np.uint8)
    pixels[3, 4] = 255  # the last row of the first, and the first column of the second
    pixels[4:, 8:] = 255
    expected = torch.tensor([[False, True, False], [False, False, True]])
    values = torch.from_numpy(pixels) / 255
    for given in (Image.fromarray(pixels), values, values[None], values[None, None], values > 0):
        mask = read_mask(given, 8, 12)
        assert torch.equal(mask, (values > 0).float()[None, None])
        assert torch.equal(shrink_mask(mask, 4), expected[None, None])
    several = read_mask([Image.fromarray(pixels), Image.fromarray(255 - pixels)], 8, 12)
    assert torch.equal(several[:, 0], torch.stack([values, 1 - values]))


def test_mask_values_up_to_a_half_are_kept():
    assert read_mask(torch.tensor([[0.4, 0.6]]), 1, 2).tolist() == [[[[0, 1]]]]


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.zeros(8, 9), "a mask of 8x9 does not fit an image of 8x8"),
        (Image.new("L", (9, 8)), "a mask of 8x9 does not fit an image of 8x8"),
        ([Image.new("L", (8, 8)), Image.new("L", (9, 8))], "different sizes"),
        (torch.zeros(3, 8, 8), r"shape \(3, 8, 8\) must be"),
        (torch.zeros(8), r"shape \(8,\) must be"),
        (np.zeros((8, 8)), "a mask must be a PIL image"),
        (torch.full((8, 8), 255.0), "mask values must be from 0"),
        (torch.full((8, 8), -1.0), "mask values must be from 0"),
    ],
)
def test_masks_that_do_not_fit_are_refused(mask, message):
    with pytest.raises(ValueError, match=message):
        read_mask(mask, 8, 8)


def test_originals_are_pasted_but_for_a_band_around_the_mask():
    mask = torch.zeros(1, 1, 3, 16)
    mask[..., 12:] = 1
    images, originals = torch.ones(2, 1, 3, 16), torch.zeros(1, 1, 3, 16)
    found = paste_kept(images, originals, mask, 4)
    ramp = torch.tensor([0.0] * 8 + [1 / 5, 2 / 5, 3 / 5, 4 / 5] + [1.0] * 4)
    torch.testing.assert_close(found, ramp.expand(2, 1, 3, 16))
    assert torch.equal(found[..., :8], originals[..., :8].expand(2, -1, -1, -1))
    hard = paste_kept(images, originals, mask, 1)
    assert torch.equal(hard, mask.expand(2, -1, -1, -1))


def test_kept_latents_are_noised_to_the_next_steps_level():
    scheduler = create_scheduler("flow")
    latents, kept, noise = torch.randn(3, 2, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[[[True, False], [False, True]]]])
    found = keep_unmasked(scheduler, latents, kept, noise, mask, torch.tensor(250.0))
    free = mask.expand(latents.shape)
    assert torch.equal(found[free], latents[free])
    torch.testing.assert_close(found[~free], (0.75 * kept + 0.25 * noise)[~free])
    last = keep_unmasked(scheduler, latents, kept, noise, mask, None)
    assert torch.equal(last[~free], kept[~free])


def test_slerp_follows_the_circle():
    first, second = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 2.0])
    for weight in (0.0, 0.25, 0.5, 1.0):
        angle = weight * math.pi / 2
        expected = torch.tensor([2 * math.cos(angle), 2 * math.sin(angle)])
        torch.testing.assert_close(slerp(first, second, weight), expected, rtol=0, atol=1e-6)


def test_slerp_keeps_the_deviation_of_noise():
    first, second = torch.randn(2, 1, 4, 64, 64, generator=torch.Generator().manual_seed(0))
    assert slerp(first, second, 0.5).std().item() == pytest.approx(1, abs=0.02)
    assert torch.lerp(first, second, 0.5).std().item() < 0.75


def test_slerp_between_equal_tensors_is_that_tensor():
    tensor = torch.randn(1, 4, 4, 4)
    torch.testing.assert_close(slerp(tensor, tensor.clone(), 0.3), tensor)
    torch.testing.assert_close(slerp(tensor, 3 * tensor, 0.5), 2 * tensor)
