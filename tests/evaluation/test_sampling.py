import torch

from hf_latent.evaluation.sampling import sample_images


def test_images_do_not_depend_on_the_batches_and_labels_are_taken_in_turn(pipeline):
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
