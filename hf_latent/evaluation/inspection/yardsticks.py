"""What the same bytes or values would buy without the autoencoder: JPEG, WebP and resampling.

The comparison favours the yardsticks: the size of a file of one flat colour (headers and tables,
most of a small JPEG) is not counted, and each image has the best quality that fits. But an image
that was a JPEG is compressed almost without loss on its own grid of 8x8 pixels. So all are compared
without the first rows and columns, which moves the grid.
"""

import io
import math
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from hf_latent.data.images.dataset import ImageDataset
from hf_latent.evaluation.inspection.structure import Agreement, sobel_edges
from hf_latent.evaluation.measures.reconstruction import measure_reconstructions, reconstruct
from hf_latent.evaluation.pictures import to_picture
from hf_latent.models.load import Autoencoder
from hf_latent.pipeline.decode import shown_channels

QUALITIES = range(1, 101)
GRID_SHIFT = 3  # rows and columns


def _encode(array: np.ndarray, file_format: str, quality: int, **options: Any) -> bytes:
    grey = array.shape[2] == 1 and file_format == "JPEG"
    image = Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)
    buffer = io.BytesIO()
    (image if grey else image.convert("RGB")).save(buffer, file_format, quality=quality, **options)
    return buffer.getvalue()


@cache
def overhead_bytes(
    file_format: str, shape: tuple[int, int, int], quality: int, **options: Any
) -> int:
    """Return the size of a file of one mid-grey colour, for images of `shape` `(H, W, C)`."""
    return len(_encode(np.full(shape, 128, np.uint8), file_format, quality, **options))


def compress_within(
    array: np.ndarray, file_format: str, budget_bytes: float
) -> tuple[np.ndarray, int]:
    """Compress an image at the highest quality that fits, and decompress it.

    A colour JPEG is tried with colours at half and at full resolution; the smaller error wins.

    Args:
        array: `(H, W, C)` uint8, C = 1 or 3.
        file_format: JPEG or WEBP.
        budget_bytes: the largest size, without `overhead_bytes`.

    Returns:
        The decompressed image of the same shape, and its bytes without the overhead. They exceed
        the budget if even the lowest quality does not fit.
    """
    options: list[dict[str, Any]] = [{}]
    if file_format == "JPEG" and array.shape[2] == 3:
        options = [{"subsampling": 2}, {"subsampling": 0}]
    results = [_compress_within(array, file_format, budget_bytes, x) for x in options]

    def excess_and_error(result: tuple[np.ndarray, int]) -> tuple[float, float]:
        decoded, size = result
        return max(0.0, size - budget_bytes), float(np.square(decoded - array.astype(float)).mean())

    return min(results, key=excess_and_error)


def _compress_within(
    array: np.ndarray, file_format: str, budget_bytes: float, options: dict[str, Any]
) -> tuple[np.ndarray, int]:
    def size(quality: int) -> int:
        encoded = len(_encode(array, file_format, quality, **options))
        return encoded - overhead_bytes(file_format, array.shape, quality, **options)

    low, high = QUALITIES[0], QUALITIES[-1]  # sizes grow with quality: binary search
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if size(middle) <= budget_bytes else (low, middle - 1)
    encoded = _encode(array, file_format, low, **options)
    image = Image.open(io.BytesIO(encoded), formats=[file_format])
    decoded = np.asarray(image.convert("L" if array.shape[2] == 1 else "RGB"))
    return decoded.reshape(array.shape), size(low)


def resample(images: torch.Tensor, values: int) -> torch.Tensor:
    """Shrink images in [0, 1] to about `values` values each, and enlarge them again (bicubic).

    Images that have no more values are returned unchanged.
    """
    channels, height, width = images.shape[1:]
    scale = math.sqrt(values / (channels * height * width))
    if scale >= 1:
        return images
    small = (max(1, round(height * scale)), max(1, round(width * scale)))
    shrunk = F.interpolate(images, small, mode="bicubic", antialias=True)
    return F.interpolate(shrunk, (height, width), mode="bicubic").clamp(0, 1)


class Yardstick(NamedTuple):
    """What one alternative makes of images `(B, C, H, W)` float in [0, 1].

    `bytes_per_image` is None if values are limited, not bytes. `fits_share` is the share of images
    that stay within the budget.
    """

    name: str
    images: torch.Tensor
    bytes_per_image: float | None
    fits_share: float


def measure_yardsticks(
    images: torch.Tensor, latent_values: int, budget_bytes: float
) -> list[Yardstick]:
    """Compress images as JPEG and WebP within the budget, and resample them to the latent's values.

    Args:
        images: `(B, C, H, W)` float in [0, 1], C = 1 or 3.
        latent_values: the number of values of one latent.
        budget_bytes: for each image.
    """
    arrays = (images * 255).round().byte().permute(0, 2, 3, 1).numpy()
    found = []
    for name in ("JPEG", "WebP"):
        results = [compress_within(array, name.upper(), budget_bytes) for array in arrays]
        decoded = torch.from_numpy(np.stack([array for array, _ in results])).permute(0, 3, 1, 2)
        sizes = [size for _, size in results]
        fits = sum(size <= budget_bytes for size in sizes) / len(sizes)
        found.append(Yardstick(name, decoded / 255, sum(sizes) / len(sizes), fits))
    return [*found, Yardstick("bicubic", resample(images, latent_values), None, 1.0)]


def compare_yardsticks(
    vae: Autoencoder,
    dataset: ImageDataset,
    latent_values: int,
    budget_bytes: float,
    batch_size: int,
) -> list[dict[str, Any]]:
    """Return rows of figures of the autoencoder and the yardsticks, on pictures of the images.

    Bytes and values are those of whole images, by area; of measured images, by channels too.
    """
    shown = shown_channels(vae)
    sums: dict[str, dict[str, float]] = {}
    edges: dict[str, Agreement] = {}
    for rows in torch.arange(len(dataset)).split(batch_size):
        images = dataset.read(rows)
        originals, reconstructions = (
            to_picture(x.clamp(-1, 1) / 2 + 0.5, shown)[:, :, GRID_SHIFT:, GRID_SHIFT:]
            for x in (images, reconstruct(vae, images))
        )
        share = originals[0, 0].numel() / images[0, 0].numel()
        if shown is not None:
            share *= len(shown) / images.shape[1]
        for x in (
            Yardstick("autoencoder", reconstructions, share * budget_bytes, 1.0),
            *measure_yardsticks(originals, round(share * latent_values), share * budget_bytes),
        ):
            kept = measure_reconstructions([(originals, x.images)])
            figures = {"psnr_db": kept.psnr_db, "ssim": kept.ssim, "fits_share": x.fits_share}
            if x.bytes_per_image is not None:
                figures["bytes_per_image"] = x.bytes_per_image / share
            total = sums.setdefault(x.name, dict.fromkeys(figures, 0.0))
            for name, value in figures.items():
                total[name] += value * len(rows) / len(dataset)
            agreement = edges.setdefault(x.name, Agreement())
            agreement.update(sobel_edges(originals), sobel_edges(x.images))
    return [
        {"name": name, **total, "edge_agreement": edges[name].compute()}
        for name, total in sums.items()
    ]
