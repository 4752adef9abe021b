"""Images to the posteriors that a denoiser trains on, batch after batch."""

from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from copy import deepcopy

import torch
from diffusers import AutoencoderKL, AutoencoderTiny

from hf_latent.pipeline.encode import encode_posteriors


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
        posteriors = [encode_posteriors(encoder, x) for x in views]
        mean, std = (torch.stack([getattr(x, y) for x in posteriors], 1) for y in ("mean", "std"))
        return mean.to("cpu", dtype), std.to("cpu", dtype)

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
