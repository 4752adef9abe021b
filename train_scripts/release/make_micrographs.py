"""Draw synthetic micrographs of cells, 6 channels of 16 bits, as one OME-TIFF file an image.

    python train_scripts/release/make_micrographs.py --output_dir data/micrographs

The channels differ in structure, brightness and noise, as those of a fluorescence microscope do.
The folders `one_nucleus` and `two_nuclei` are classes. An image depends on the seed, its class and
its number only.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile
from jsonargparse.typing import PositiveInt

from hf_latent.command import Seed, Settings, run_command
from hf_latent.output import check_output_dir, replaced_whole

CLASSES = {"one_nucleus": 1, "two_nuclei": 2}
# Each channel's photons of a pixel of full brightness.
PHOTONS = {
    "nuclei": 9000,
    "cytoplasm": 2500,
    "membrane": 1200,
    "mitochondria": 4000,
    "vesicles": 700,
    "transmitted light": 30000,
}
OFFSET, READ_NOISE = 100, 5  # of the camera, in counts


@dataclass(frozen=True, kw_only=True)
class MicrographsConfig(Settings):
    """Draw synthetic micrographs.

    Attributes:
        output_dir: The folder of the images.
        overwrite_output_dir: Accept a folder with files in it.
        num_images: Number of images, half of each class.
        size: Height and width in pixels.
        seed: Of all random draws.
    """

    output_dir: str
    overwrite_output_dir: bool = False
    num_images: PositiveInt = 2000
    size: PositiveInt = 32
    seed: Seed = 0


def smooth_noise(generator: np.random.Generator, size: int) -> np.ndarray:
    """Return noise `(size, size)` of mean 0 and deviation 1 whose amplitude falls as 1 / f."""
    rows, columns = np.meshgrid(np.fft.fftfreq(size), np.fft.rfftfreq(size), indexing="ij")
    frequency = np.hypot(rows, columns)
    frequency[0, 0] = np.inf
    white = np.fft.rfft2(generator.normal(size=(size, size)))
    noise = np.fft.irfft2(white / frequency, (size, size))
    return (noise - noise.mean()) / noise.std()


def draw_cell(generator: np.random.Generator, size: int, nuclei: int) -> np.ndarray:
    """Return the brightness of one cell, `(6, size, size)` float from 0 to about 1."""
    rows, columns = np.meshgrid(*2 * [np.arange(size) / size], indexing="ij")
    center = generator.uniform(0.44, 0.56, 2)
    angle = np.arctan2(rows - center[0], columns - center[1])
    turns = generator.uniform(0, 2 * np.pi, 3)
    radius = generator.uniform(0.30, 0.38) + 0.03 * np.cos(2 * angle + turns[0])
    radius += 0.015 * np.cos(3 * angle + turns[1])
    distance = np.hypot(rows - center[0], columns - center[1])

    def disc(position: np.ndarray, disc_radius: float) -> np.ndarray:
        away = np.hypot(rows - position[0], columns - position[1])
        return 1 / (1 + np.exp((away - disc_radius) * 2 * size))

    inside = 1 / (1 + np.exp((distance - radius) * 1.5 * size))
    axis = np.array([np.sin(turns[2]), np.cos(turns[2])])
    sides = (0.0,) if nuclei == 1 else (-0.14, 0.14)
    nucleus = sum(disc(center + side * axis, 0.14 / nuclei**0.5) for side in sides)
    cytoplasm = inside * (1 - nucleus)
    spots = np.zeros((size, size))
    for _ in range(generator.integers(4, 9)):
        spread = generator.normal(0, 0.15, 2)
        spots += disc(center + spread, 0.02) * inside
    light = 0.85 + 0.1 * (rows - columns) - 0.25 * np.exp(-(((distance - radius) * 14) ** 2))
    return np.stack(
        [
            nucleus * (0.8 + 0.1 * smooth_noise(generator, size)),
            cytoplasm * (0.6 + 0.1 * smooth_noise(generator, size)),
            np.exp(-(((distance - radius) * 1.2 * size / 2) ** 2)),
            cytoplasm * (0.4 + 0.3 * smooth_noise(generator, size)),
            spots,
            light - 0.15 * nucleus,
        ]
    ).clip(0, 1.5)


def photograph(generator: np.random.Generator, brightness: np.ndarray) -> np.ndarray:
    """Return the counts of a camera with photon noise and read noise, uint16 of the same shape."""
    photons = np.array([*PHOTONS.values()])[:, None, None]
    counts = generator.poisson(brightness * photons)
    counts = counts + generator.normal(OFFSET, READ_NOISE, brightness.shape)
    return counts.round().clip(0, 65535).astype(np.uint16)


def make_micrographs(config: MicrographsConfig) -> None:
    """Draw the images and save them."""
    folder = check_output_dir(config.output_dir, config.overwrite_output_dir)
    metadata = {"axes": "CYX", "Channel": {"Name": [*PHOTONS]}}
    for number in range(config.num_images):
        label = number % len(CLASSES)
        name, nuclei = [*CLASSES.items()][label]
        generator = np.random.default_rng((config.seed, label, number, 1))
        image = photograph(generator, draw_cell(generator, config.size, nuclei))
        path = Path(folder, name, f"{number:06d}.ome.tiff")
        path.parent.mkdir(parents=True, exist_ok=True)
        with replaced_whole(path) as temporary:
            tifffile.imwrite(
                temporary, image, ome=True, metadata=metadata, photometric="minisblack"
            )
    print(f"{folder}: {config.num_images} images")


if __name__ == "__main__":
    run_command(MicrographsConfig, make_micrographs)
