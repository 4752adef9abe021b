import pytest
import torch

from hf_latent.errors import UserError
from hf_latent.evaluation.images.sampling import count_evaluations, load_pipeline, sample_images
from hf_latent.pipeline.denoise import Guidance


def test_images_do_not_depend_on_batches_and_labels_are_used_in_turn(pipeline):
    arguments = {"num_images": 5, "seed": 3, "num_inference_steps": 2}
    together = sample_images(pipeline, [2, 0], batch_size=5, **arguments)
    apart = sample_images(pipeline, [2, 0], batch_size=2, **arguments)
    assert together.shape == (5, 1, 16, 16)
    torch.testing.assert_close(together, apart, rtol=0, atol=1e-4)
    one = pipeline(
        [0],
        generator=torch.Generator().manual_seed(3 + 3),
        num_inference_steps=2,
        output_type="pt",
    ).images
    torch.testing.assert_close(together[3:4], one, rtol=0, atol=1e-4)


def test_unconditional(unconditional):
    images = sample_images(unconditional, None, 3, 0, batch_size=2, num_inference_steps=1)
    assert images.shape == (3, 1, 16, 16)


def test_a_saved_model_gives_the_same_images(pipeline, tmp_path, capfd):
    pipeline.save_pretrained(tmp_path / "model")
    loaded = load_pipeline(str(tmp_path / "model"))
    assert loaded.id2label == {0: "cat", 1: "dog", 2: "owl"}
    capfd.readouterr()
    before, after = (
        sample_images(x, [0, 1, 2], 3, seed=0, batch_size=3, num_inference_steps=2)
        for x in (pipeline, loaded)
    )
    assert torch.equal(before, after)
    assert capfd.readouterr().err == ""  # no progress bars


def test_a_folder_without_a_model_is_one_line(vae, tmp_path):
    vae.save_pretrained(tmp_path / "autoencoder")
    (tmp_path / "empty").mkdir()
    for name in ("nowhere", "empty", "autoencoder"):
        with pytest.raises(UserError) as error:
            load_pipeline(str(tmp_path / name))
        assert f"no model found at {tmp_path / name}" in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("sampler", "scale", "interval", "evaluations"),
    [
        (None, 1.0, None, 4),
        (None, 2.0, None, 8),
        ("heun", 1.0, None, 7),
        ("heun", 2.0, None, 14),
        # Two of the sigmas 1, 0.75, 0.5, 0.25 are inside; Heun uses each twice except the first.
        (None, 2.0, (0.4, 0.8), 6),
        ("heun", 2.0, (0.4, 0.8), 11),
        (None, 1.0, (0.4, 0.8), 4),
    ],
)
def test_counted_evaluations_are_made(pipeline, sampler, scale, interval, evaluations):
    if sampler is not None:
        pipeline.use_sampler(sampler)
    assert count_evaluations(pipeline, 4, Guidance(scale, interval)) == evaluations
    made = []
    pipeline.unet.register_forward_pre_hook(lambda module, inputs: made.append(len(inputs[0])))
    sample_images(pipeline, [0], 1, 0, 1, scale, 4, interval)
    assert sum(made) == evaluations
