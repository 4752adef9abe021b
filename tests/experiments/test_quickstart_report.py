from hf_latent.experiments.quickstart_report import card_metrics
from hf_latent.hub.card.render import render_model_card
from hf_latent.output import write_json
from tests.hub.saved_models import section


def test_the_card_states_the_number_of_real_test_images(pipeline, tmp_path):
    report = {
        "train_images": 11_000,
        "validation_fingerprint": "f" * 16,
        "guidance_scale": 2.0,
        "num_inference_steps": 20,
        "denoiser_evaluations_per_image": 40,
        "label_agreement": 0.9,
        "label_agreement_images": 1000,
        "classifier_real_test_accuracy": 0.875,
        "test_images": 2000,
        "test_psnr_db": 31.0,
        "test_ssim": 0.95,
        "test_unpadded_psnr_db": 30.0,
        "test_unpadded_ssim": 0.94,
    }
    pipeline.save_pretrained(tmp_path / "model")
    metrics = card_metrics(report, pipeline, "fashion_mnist")
    write_json(tmp_path / "model" / "metrics.json", metrics)
    figures = section(render_model_card(tmp_path / "model"), "Figures").splitlines()
    assert "| 1,000 images | generated | real |" in figures
    assert "| label agreement | 0.900 | 0.875 (of 2,000) |" in figures
