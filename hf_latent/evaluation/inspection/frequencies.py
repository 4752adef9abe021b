"""The power of images and errors by spatial frequency."""

import math

import torch


def dct_matrix(size: int) -> torch.Tensor:
    """Return the orthonormal DCT-II (Ahmed et al. 1974), `(n, n)` float64.

    Row k has the frequency k / 2n, in cycles per pixel. Unlike the Fourier transform, the DCT sees
    no jump if an image's opposite edges differ. Squared coefficients add up to squared pixels.
    """
    k, x = torch.meshgrid(*[torch.arange(size, dtype=torch.float64)] * 2, indexing="ij")
    matrix = torch.cos(math.pi * (x + 0.5) * k / size) * math.sqrt(2 / size)
    matrix[0] /= math.sqrt(2)
    return matrix


def band_edges(height: int, width: int) -> list[float]:
    """Return the upper edges of octave bands, in cycles per pixel, ascending.

    The mean belongs to no band. The last band goes from 1/4 to the corners of the spectrum (0.71).
    """
    octaves = int(math.log2(min(height, width)))
    return [*(2.0**-octave for octave in range(octaves, 1, -1)), math.sqrt(0.5)]


class BandPower:
    """Mean power of images in each octave band, summed in float64."""

    def __init__(self, height: int, width: int):
        """Start without images; their size is in pixels."""
        self.edges = band_edges(height, width)
        self._rows, self._columns = dct_matrix(height), dct_matrix(width)
        frequency = (
            (torch.arange(height, dtype=torch.float64) / (2 * height))[:, None].square()
            + (torch.arange(width, dtype=torch.float64) / (2 * width))[None].square()
        ).sqrt()
        self._band = torch.bucketize(frequency, torch.tensor(self.edges, dtype=torch.float64))
        self._band = self._band.clamp(max=len(self.edges) - 1)
        self._band[0, 0] = -1
        self._sums = torch.zeros((), dtype=torch.float64)
        self._images = 0

    def update(self, images: torch.Tensor) -> None:
        """Add images, or errors, `(B, C, H, W)` float."""
        spectrum = self._rows @ images.cpu().double() @ self._columns.T
        self._sums = self._sums + spectrum.square().sum(0)
        self._images += len(images)

    def by_channel(self) -> torch.Tensor:
        """Return the power of each channel and band, `(C, bands)` float64.

        The unit is squared pixel values: all bands and the squared mean add up to the mean square.
        """
        mean = self._sums / (self._images * self._band.numel())
        bands = [mean[:, self._band == band].sum(1) for band in range(len(self.edges))]
        return torch.stack(bands, dim=1)

    def compute(self) -> torch.Tensor:
        """Return the power of each band, averaged over channels, `(bands,)` float64."""
        return self.by_channel().mean(0)
