"""Images to the posteriors that a denoiser trains on, batch after batch."""

from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from copy import deepcopy

import torch
from diffusers import AutoencoderKL, AutoencoderTiny

from hf_latent.pipeline.encode import check_images, normalize_latents


@torch.no_grad()
def encode_batch(
    vae: AutoencoderKL | AutoencoderTiny, images: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Encode images to the mean and deviation of their posteriors, on the denoiser's scale.

    Args:
        vae: a frozen autoencoder.
        images: `(B, C, H, W)` float in [-1, 1].

    Returns:
        Mean and deviation, `(B, c, h, w)` float32 each; the deviation of an AutoencoderTiny is 0.
    """
    check_images(vae, images)
    encoded = vae.encode(images.to(vae.dtype))
    if hasattr(encoded, "latents"):
        mean, std = encoded.latents, torch.zeros_like(encoded.latents)
    else:
        mean, std = encoded.latent_dist.mean, encoded.latent_dist.std
    scale = normalize_latents(vae, torch.ones_like(mean[:1]))
    scale = scale - normalize_latents(vae, torch.zeros_like(mean[:1]))
    return normalize_latents(vae, mean).float(), (std * scale).float()


def encode_batches(
    vae: AutoencoderKL | AutoencoderTiny,
    batches: Iterable[torch.Tensor],
    mirror: bool,
    dtype: torch.dtype,
) -> Generator[tuple[torch.Tensor, torch.Tensor], None, None]:
    """Encode batch after batch.

    On a CPU each batch is one thread's, of as many as torch would use for one batch: while the
    next are read none stands still, and the bytes do not depend on the number of threads.

    Args:
        vae: frozen.
        batches: images `(B, C, H, W)`.
        mirror: encode every image's mirror image too.
        dtype: of what is returned.

    Yields:
        Mean and deviation, `(B, views, c, h, w)` each, on the CPU.
    """

    # Convolutions are faster with the channels last. A copy: the caller's stays as it is.
    last = torch.channels_last
    encoder = deepcopy(vae).to(memory_format=last)

    def encode(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        views = [images, images.flip(3)] if mirror else [images]
        views = [x.to(vae.device, memory_format=last) for x in views]
        means, stds = zip(*[encode_batch(encoder, x) for x in views], strict=True)
        return torch.stack(means, 1).to("cpu", dtype), torch.stack(stds, 1).to("cpu", dtype)

    if vae.device.type != "cpu":
        yield from map(encode, batches)
        return
    threads = torch.get_num_threads()
    waiting: deque[Future[tuple[torch.Tensor, torch.Tensor]]] = deque()
    torch.set_num_threads(1)  # for this thread too, which reads and writes beside them
    try:
        with ThreadPoolExecutor(threads, "encode", torch.set_num_threads, (1,)) as pool:
            for images in batches:
                waiting.append(pool.submit(encode, images))
                if len(waiting) > 2 * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
    finally:
        torch.set_num_threads(threads)  # what threads that are made later begin with
