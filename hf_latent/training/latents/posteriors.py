"""Encode batches of images into posteriors, on a CPU in several threads."""

from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from copy import deepcopy
from functools import partial

import torch

from hf_latent.data.device import to_device
from hf_latent.models.load import Autoencoder
from hf_latent.models.slicing import slice_if_needed
from hf_latent.pipeline.encode import encode_posteriors
from hf_latent.training.run.late import LateValues


def encode_batches(
    vae: Autoencoder,
    batches: Iterable[torch.Tensor],
    mirror: bool,
    dtype: torch.dtype,
) -> Generator[torch.Tensor, None, None]:
    """Encode batch after batch.

    On a CPU each thread encodes whole batches, with as many threads as torch uses. So no thread
    waits while images are read, and the bytes do not depend on the number of threads. Another
    device encodes a batch while the host reads the next one and writes the one before.

    Args:
        vae: frozen; it is copied, not changed.
        batches: images `(B, C, H, W)`.
        mirror: encode every image's mirror image too.
        dtype: type of the yielded tensors.

    Yields:
        Mean and deviation, `(2, B, views, c, h, w)`, on the CPU.
    """

    # channels_last makes convolutions faster on a CPU. On a GPU, GroupNorm would copy it back.
    on_cpu = vae.device.type == "cpu"
    layout = torch.channels_last if on_cpu else torch.contiguous_format
    encoder = deepcopy(vae).to(memory_format=layout)

    def encode(images: torch.Tensor) -> torch.Tensor:
        images = to_device(images, vae.device)
        views = [images, images.flip(3)] if mirror else [images]
        views = [x.to(memory_format=layout) for x in views]
        posteriors = [
            slice_if_needed(encoder, partial(encode_posteriors, encoder, x)) for x in views
        ]
        mean, std = (torch.stack([getattr(x, y) for x in posteriors], 1) for y in ("mean", "std"))
        return torch.stack([mean, std]).to(dtype)

    if not on_cpu:
        late = LateValues(vae.device)
        for images in batches:
            before = late.exchange(encode(images))
            if before is not None:
                yield before
        last_batch = late.take()
        if last_batch is not None:
            yield last_batch
        return
    threads = torch.get_num_threads()
    waiting: deque[Future[torch.Tensor]] = deque()
    torch.set_num_threads(1)  # also this thread, which reads and writes meanwhile
    try:
        with ThreadPoolExecutor(threads, "encode", torch.set_num_threads, (1,)) as pool:
            for images in batches:
                waiting.append(pool.submit(encode, images))
                if len(waiting) > 2 * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
    finally:
        torch.set_num_threads(threads)  # also the default of later threads
