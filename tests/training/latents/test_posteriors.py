import torch

from hf_latent.models.frozen import freeze
from hf_latent.pipeline.encode import encode_posteriors
from hf_latent.training.latents.posteriors import encode_batches
from tests.conftest import make_autoencoder

IMAGES = torch.rand(11, 1, 16, 16, generator=torch.Generator().manual_seed(2)) * 2 - 1


def encode(threads: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        vae = freeze(make_autoencoder())
        found = list(encode_batches(vae, IMAGES.split(2), True, torch.float32))
        assert torch.get_num_threads() == threads, "as before"
        return found
    finally:
        torch.set_num_threads(before)


def test_batches_come_in_order_with_mirror_images():
    vae = freeze(make_autoencoder())
    found = encode(threads=2)
    assert [len(mean) for mean, _ in found] == [2, 2, 2, 2, 2, 1]
    for images, (mean, std) in zip(IMAGES.split(2), found, strict=True):
        for view, shown in enumerate((images, images.flip(3))):
            expected = encode_posteriors(vae, shown)
            torch.testing.assert_close(mean[:, view], expected.mean, rtol=0, atol=1e-6)
            torch.testing.assert_close(std[:, view], expected.std, rtol=0, atol=1e-6)


def test_the_bits_do_not_depend_on_the_number_of_threads():
    one, three = encode(threads=1), encode(threads=3)
    assert all(
        torch.equal(a, b)
        for x, y in zip(one, three, strict=True)
        for a, b in zip(x, y, strict=True)
    )


def test_an_error_in_a_thread_is_raised():
    vae = freeze(make_autoencoder())
    batches = encode_batches(vae, [IMAGES, IMAGES.repeat(1, 3, 1, 1)], False, torch.float32)
    threads = torch.get_num_threads()
    try:
        list(batches)
    except ValueError as error:
        assert "3 channels" in str(error)
    else:
        raise AssertionError("the autoencoder takes one channel")
    assert torch.get_num_threads() == threads


def test_the_callers_autoencoder_is_not_changed():
    vae = freeze(make_autoencoder())
    before = {name: (x.clone(), x.stride()) for name, x in vae.state_dict().items()}
    list(encode_batches(vae, IMAGES.split(4), False, torch.float32))
    for name, x in vae.state_dict().items():
        assert torch.equal(x, before[name][0]) and x.stride() == before[name][1], name
