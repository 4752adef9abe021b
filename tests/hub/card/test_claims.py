"""What a pipeline's card claims of training images, held-out images and measured images."""

import huggingface_hub
import pytest

from hf_latent.hub.card.render import render_model_card
from tests.hub.saved_models import results, section, unlisted, write_reports

OTHERS = "The images held out in the evaluation differ from those held out from the training"
CHANCE = "Held-out images\nwere never trained on: they show how often this happens by chance."


@pytest.fixture
def card_of(pipeline, tmp_path):
    """Return the card of a saved pipeline with changed reports."""
    pipeline.save_pretrained(tmp_path / "model")

    def render(training=(), metrics=()):
        write_reports(tmp_path / "model", pipeline, training, metrics)
        if metrics is None:
            (tmp_path / "model" / "metrics.json").unlink(missing_ok=True)
        if training is None:
            (tmp_path / "model" / "training.json").unlink(missing_ok=True)
        return render_model_card(tmp_path / "model")

    return render


def test_one_fingerprint_everywhere_needs_no_limit(card_of):
    card = card_of()
    limits = section(card, "Limits")
    assert "- Its denoiser was trained on images of fashion_mnist_full only." in limits
    assert "- Its autoencoder was trained on images of fashion_mnist_full only." in limits
    assert "evaluation" not in card.replace("evaluations", "")
    assert CHANCE in card and "So the model copies no more than chance explains." in card


def test_images_that_only_the_evaluation_held_out_are_not_called_unseen(card_of):
    card = card_of(metrics={"validation_fingerprint": "f" * 16})
    limits = section(card, "Limits")
    assert f"- {OTHERS}: it may have been trained on them." in limits
    assert (
        "- The images held out in the evaluation differ from those held out from its "
        "autoencoder's training."
    ) in limits
    assert "What the autoencoder keeps of 10,000 images held out in the evaluation:" in card
    copies = section(card, "Does it copy?")
    assert "| among images held out in the evaluation |" in copies
    assert "may have been trained on: they do not show how often this happens by" in copies
    assert "There are no more copies than among the images held out in the evaluation." in copies
    assert CHANCE not in card and "chance explains" not in card
    names = [x["name"] for x in results(card)]
    assert "PSNR (dB), 10,000 images held out in the evaluation" in names
    assert not any("held-out" in name for name in names)


@pytest.mark.parametrize("report", ["training", "metrics"])
def test_without_a_fingerprint_nothing_is_claimed_of_held_out_images(card_of, report):
    card = card_of(**{report: {"validation_fingerprint": None}})
    assert "- Not known: whether it was trained on the images held out in the" in card
    assert CHANCE not in card
    if report == "training":
        card = card_of(training=None)
        assert "- Not known: whether it was trained on the images held out in the" in card
        assert "Its autoencoder" not in card and "images of fashion_mnist_full only" not in card


def test_what_was_not_measured_with_held_out_images_needs_no_limit(card_of):
    assert "held out in the evaluation" not in card_of(metrics=None)
    absent = {f"memorisation_{space}_copies": None for space in ("latents", "features")}
    absent |= {"validation_fingerprint": "f" * 16}
    assert OTHERS in card_of(metrics=absent)
    assert OTHERS not in card_of(metrics=absent | {"reconstruction_psnr_db": None})


def test_claims_about_the_autoencoder_need_its_report(card_of):
    limits = section(card_of({"autoencoder_pretrained_vae": "ada/vae"}), "Limits")
    assert (
        "- Its autoencoder was fine-tuned from ada/vae, whose training images are not known: "
        "the held-out images may be among them."
    ) in limits
    assert "Its autoencoder was trained" not in limits
    card = card_of(
        {"autoencoder_pretrained_vae": "ada/vae", "autoencoder_held_out_split_images": 9}
    )
    assert "fashion_mnist_full. 9 other images were held out from the fine-tuning. It was" in card
    card = card_of({"autoencoder_train_images": None})
    assert "- Not known here: the training images of its autoencoder; see the card of" in card
    card = card_of({"autoencoder_train_images": None, "autoencoder": None})
    assert "- Not known here: the training images of its autoencoder.\n" in card
    card = card_of({"autoencoder_validation_fingerprint": None})
    assert "- Not known: whether its autoencoder was trained on the images held out in the" in card
    assert OTHERS not in card


def test_the_card_of_a_fine_tuned_denoiser_claims_less(card_of):
    card = card_of({"pretrained_unet": "ada/unet", "held_out_split_images": 9})
    limits = section(card, "Limits")
    assert (
        "- Its denoiser was fine-tuned from ada/unet, whose training images are not known: "
        "the held-out images may be among them."
    ) in limits
    assert "Its denoiser was trained on images of" not in card
    assert "9 other images were held out from the fine-tuning. It was fine-tuned from" in card
    assert "never trained on" not in section(card, "Data")


@pytest.mark.parametrize("changes", [{}, {"num_images": 1234567, "fd_subset_images": None}])
def test_every_figure_of_the_tables_is_in_the_metadata(card_of, changes):
    seen_as = {"grey_psnr_db": 21.5, "grey_ssim": 0.71, "alpha_psnr_db": 22.5}
    changes |= {f"reconstruction_{key}": value for key, value in seen_as.items()}
    changes |= {"memorisation_latents_copies": 1_234_567}
    card = card_of(metrics=changes)
    assert "| PSNR of alpha | 22.50 dB |" in card and "| 1,234,567 of " in card
    for title in ("Figures", "Does it copy?"):
        assert unlisted(card, title) == []
    names = [x["name"] for x in results(card)]
    assert len(set(names)) == len(names)


def test_the_model_that_is_the_limit_is_named(card_of):
    floors = {"floor_recall": 0.8, "floor_label_agreement": 0.94, "limit": "denoiser"}
    card = card_of(metrics=floors)
    assert "| recall | 0.536 | 0.800 | 0.847 |" in card
    assert "| label agreement | 0.949 | 0.940 | 0.907 |" in card
    assert "\nThe denoiser is the limit: " in card
    assert "is the limit" not in card_of() + card_of(metrics={"limit": "neither"})


def test_no_column_is_empty(card_of):
    assert "| 10,000 images | generated | real |" in card_of(metrics={"floor_fd": None})


def test_a_different_number_of_real_images_is_shown(card_of):
    assert "| label agreement | 0.949 |  | 0.907 |" in card_of()
    card = card_of(metrics={"held_out_images": 2000})
    assert "| label agreement | 0.949 |  | 0.907 (of 2,000) |" in card
    card = card_of(metrics={"label_agreement_judge_real_images": 300})
    assert "| label agreement | 0.949 |  | 0.907 (of 300) |" in card


def test_captions_are_retrieved_beside_those_of_real_images(card_of):
    figures = {"recall_at_1": 0.4125, "recall_at_5": 0.6, "median_rank": 3.0, "num_captions": 1188}
    measured = {f"retrieval_{key}": value for key, value in figures.items()}
    measured |= {"real_retrieval_recall_at_1": 0.5756, "real_retrieval_median_rank": 1.0}
    measured |= {"clip_score": 25.125, "real_clip_score": 26.5, "clip_model": "some/clip"}
    card = card_of(metrics=measured)
    own = "of its own caption among 1,188"
    for row in (
        f"| recall at 1 {own} | 0.412 |  | 0.576 |",
        f"| recall at 5 {own} | 0.600 |  |  |",
        f"| median rank {own} | 3 |  | 1 |",
        "| CLIP score | 25.12 |  | 26.50 |",
    ):
        assert row in card.splitlines(), row
    assert "Recall and rank say how early a judge, trained on real images" in card
    assert "an image and its caption in some/clip." in card
    assert unlisted(card, "Figures") == []
    found = {x["type"]: (x["name"], x["value"]) for x in results(card)}
    how = "guidance 2, 20 steps, 10,000 images"
    features = "efficientnet-lite0 features"
    assert found["recall_at_1"] == (f"recall at 1 {own}, {features}, {how}", 0.4125)
    assert found["median_rank"] == (f"median rank {own}, {features}, {how}", 3.0)
    assert found["clip_score"] == (f"CLIP score (some/clip), {how}", 25.125)
    without = card_of()
    assert "caption" not in without and "CLIP" not in without


def test_arguments_and_recipe_are_not_called_complete(card_of):
    card = card_of()
    assert "\nMain arguments: `class_labels`, " in card and "All arguments" not in card
    assert "It holds only the names of folders and files" in section(card, "Training")


def test_a_folder_named_like_a_built_in_set_is_no_data_set_of_the_hub(card_of):
    card = card_of({"data": "./fashion_mnist"}, {"data": "./fashion_mnist"})
    data = huggingface_hub.ModelCard(card).data.to_dict()
    assert "datasets" not in data and "zalando" not in card
    assert data["model-index"][0]["results"][0]["dataset"]["type"] == "./fashion_mnist"
