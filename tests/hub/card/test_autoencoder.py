"""The card of an autoencoder, from the files of its folder."""

import huggingface_hub
import pytest
from diffusers import AutoencoderTiny

from hf_latent.hub.card.render import card_pictures, render_model_card
from hf_latent.models.frozen import hash_weights
from hf_latent.output import write_json
from hf_latent.pipeline.decode import IMAGE_VALUES
from tests.hub.saved_models import TRAINING, blocks, results, section, unlisted

FIGURES = {
    "held_out_images": 512,
    "held_out_psnr_db": 27.1234,
    "held_out_ssim": 0.91234,
    "held_out_grey_psnr_db": 26.5,
    "held_out_alpha_psnr_db": 30.25,
    "held_out_unpadded_psnr_db": 25.5,
    "held_out_kl_nats_per_latent_value": 2.5,
    "held_out_perceptual_distance": 0.25,
    "perceptual_network": "lpips",
    "residual_mean": [0.001, -0.002, 0.0, 0.1],
    "residual_std": [1.0, 0.99, 1.01, 1.0],
    "horizontal_flip": True,
}


@pytest.fixture
def folder(vae, tmp_path):
    vae.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def write_training(folder, vae, **changes):
    own = {key: value for key, value in TRAINING.items() if not key.startswith("autoencoder")}
    known = own | FIGURES | {"vae_weights_sha256": hash_weights(vae)}
    write_json(folder / "training.json", known | changes)


def test_a_card_shows_the_figures_of_the_training(folder, vae):
    write_training(folder, vae)
    card = render_model_card(folder)
    figures = section(card, "Figures")
    assert "Measured on 512 images that it never saw, reconstructed" in figures
    for row in (
        "| PSNR on white | 27.12 dB |",
        "| PSNR on mid-grey | 26.50 dB |",
        "| PSNR of alpha | 30.25 dB |",
        "| SSIM on white | 0.9123 |",
        "| PSNR, without the padding | 25.50 dB |",
        "| perceptual distance (lpips) | 0.2500 |",
        "| KL before the fold | 2.500 nats a latent value |",
        "| latent mean, per channel | +0.001, -0.002, +0.000, +0.100 |",
        "| latent deviation, per channel | 1.000, 0.990, 1.010, 1.000 |",
    ):
        assert row in figures.splitlines(), row
    assert "half of them mirrored at random. 10,000 other images" in section(card, "Data")
    facts = section(card, "What it does")
    assert "| image | 1 x 16 x 16 (channels, height, width): 256 values |" in facts
    assert "| latent | 4 x 4 x 4: 64 values, 4 times fewer |" in facts
    assert "| weights | 19,093 parameters, " in facts
    data = huggingface_hub.ModelCard(card).data.to_dict()
    assert (data["pipeline_tag"], data["tags"][0]) == ("image-to-image", "autoencoder")
    assert [(x["type"], x["value"], x["name"]) for x in results(card)] == [
        ("psnr", 27.123, "PSNR (dB), on white, 512 held-out images"),
        ("psnr", 26.5, "PSNR (dB), on mid-grey, 512 held-out images"),
        ("psnr", 30.25, "PSNR (dB), of alpha, 512 held-out images"),
        ("ssim", 0.91234, "SSIM, on white, 512 held-out images"),
        ("psnr", 25.5, "PSNR (dB), without the padding, 512 held-out images"),
        ("perceptual_distance", 0.25, "perceptual distance (lpips), 512 held-out images"),
        ("kl", 2.5, "KL before the fold (nats a latent value), 512 held-out images"),
        *(
            ("latent_mean", value, f"latent mean, channel {i}")
            for i, value in enumerate(FIGURES["residual_mean"])
        ),
        *(
            ("latent_deviation", value, f"latent deviation, channel {i}")
            for i, value in enumerate(FIGURES["residual_std"])
        ),
    ]
    assert unlisted(card, "Figures") == []
    assert "It was trained on the images above only" in section(card, "Limits")
    limits = section(card, "Limits")
    assert "- Images have 1 channel, and sides that are multiples of 4." in limits
    assert "trained at 16x16 pixels only" in limits
    assert (
        "Not measured: how well it keeps each spatial frequency" in limits
        and "Not known" not in limits
    )


def test_nothing_is_claimed_of_the_images_that_a_fine_tuning_started_from(folder, vae):
    write_training(folder, vae, pretrained_vae="a|b/vae")
    card = render_model_card(folder)
    start = "fine-tuned from a\\|b/vae, whose training images are not known"
    assert "never" not in card and "images above only" not in card
    assert "pixels, fine-tuned on fashion_mnist_full" in card
    assert "Measured on 512 images held out from its fine-tuning, " in section(card, "Figures")
    data = section(card, "Data")
    assert f"10,000 other images were held out from the fine-tuning. It was {start}." in data
    assert f"- It was {start}: the held-out images may be among them." in section(card, "Limits")


@pytest.mark.parametrize(
    ("fingerprint", "claimed", "limit"),
    [
        ("0528c054765cc27e", True, None),
        ("f" * 16, False, "differ from those held out from the training: it may have been"),
        (None, False, "- Not known: whether it was trained on the images held out in the"),
    ],
)
def test_images_are_unseen_only_if_the_training_held_them_out(
    folder, vae, fingerprint, claimed, limit
):
    write_training(folder, vae)
    tested = {"test_images": 9, "test_psnr_db": 20.5, "validation_fingerprint": fingerprint}
    metrics = {"vae_weights_sha256": hash_weights(vae), **tested}
    write_json(folder / "metrics.json", metrics)
    card = render_model_card(folder)
    figures, limits = section(card, "Figures"), section(card, "Limits")
    assert ("Measured on 9 images that it never saw, " in figures) == claimed
    assert ("Measured on 9 images held out in the evaluation, " in figures) != claimed
    assert results(card)[0]["name"] == (
        f"PSNR (dB), 9 {'held-out images' if claimed else 'images held out in the evaluation'}"
    )
    assert limit in limits if limit else "evaluation" not in limits


def test_a_recipe_says_that_its_paths_are_names_only(folder, vae):
    write_training(folder, vae)
    (folder / "config.yaml").write_text("data: images\n")
    assert "It holds only the names of folders and files" in section(
        render_model_card(folder), "Training"
    )


def test_the_card_shows_the_size_of_the_training_images(folder, vae):
    write_training(folder, vae, image_shape=[1, 32, 64])
    facts = section(render_model_card(folder), "What it does")
    assert "| image | 1 x 32 x 64 (" in facts and "| latent | 4 x 8 x 16: " in facts


def test_values_that_are_not_those_of_a_picture_are_on_the_card(folder, vae):
    assert "pixel values" not in render_model_card(folder)
    values = {"range": [[10.0, 20.0], [-1000.0, 65535.0]], "dtype": "uint16", "shown": [0, 1, 1]}
    vae.register_to_config(**{IMAGE_VALUES: values})
    vae.save_pretrained(folder)
    row = "| pixel values in the files | 10 to 20; -1000 to 65535 (uint16); they become -1 to 1 |"
    assert row in section(render_model_card(folder), "What it does").splitlines()


def test_the_scale_is_described_only_if_it_is_folded(folder, vae):
    assert "unit variance" not in render_model_card(folder)
    vae.register_to_config(_folded_latents_std=[1.0] * 4)
    vae.save_pretrained(folder)
    assert "zero mean and unit variance" in render_model_card(folder)


def test_a_model_without_reports_has_a_card_that_invents_nothing(folder, vae):
    card = render_model_card(folder)
    for absent in ("## Figures", "## Data", "## Training", "model-index", "datasets:", "None"):
        assert absent not in card, absent
    assert "- Not measured: how much of an image it keeps, and how well it keeps" in card
    assert "- Not known: what it was trained on, and how." in card
    write_training(folder, vae, vae_weights_sha256="0" * 64)
    assert render_model_card(folder) == card
    assert card_pictures(card) == []


def test_an_autoencoder_tiny_has_no_posterior(tmp_path):
    vae = AutoencoderTiny(encoder_block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4)
    vae.save_pretrained(tmp_path)
    card = render_model_card(tmp_path)
    assert "3 x 256 x 256" in card  # its configuration has no size: 32 latent values a side
    code = "".join(blocks(card, "python"))
    assert "AutoencoderTiny.from_pretrained" in code
    assert "latents = vae.encode(images).latents  #" in code
