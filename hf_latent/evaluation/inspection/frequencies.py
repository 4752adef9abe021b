"""Images by spatial frequency: how much of each band is there, and how much of it is an error."""

import math

import torch


def dct_matrix(size: int) -> torch.Tensor:
    """Return the orthonormal DCT-II (Ahmed et al. 1974) as a matrix.

    Unlike the Fourier transform it sees no jump where an image's opposite edges differ. Since it is
    orthonormal, squared coefficients add up to squared pixels.

    Args:
        size: n.

    Returns:
        `(n, n)` float64; row k has the frequency k / 2n, in cycles a pixel.
    """
    k, x = torch.meshgrid(*[torch.arange(size, dtype=torch.float64)] * 2, indexing="ij")
    matrix = torch.cos(math.pi * (x + 0.5) * k / size) * math.sqrt(2 / size)
    matrix[0] /= math.sqrt(2)
    return matrix


def band_edges(height: int, width: int) -> list[float]:
    """Return the upper edges of octave bands, in cycles a pixel, from low to high.

    The last band, from 1/4 on, reaches into the corners of the spectrum (0.71). The lowest begins
    after the mean, which belongs to no band, and ends at two of the lowest frequencies there are.

    Args:
        height: in pixels.
        width: in pixels.
    """
    octaves = int(math.log2(min(height, width)))
    return [*(2.0**-octave for octave in range(octaves, 1, -1)), math.sqrt(0.5)]


class BandPower:
    """Mean power of images in each band, added up in float64.

    Args:
        height: of the images, in pixels.
        width: of the images, in pixels.
    """

    def __init__(self, height: int, width: int):
        """Start with nothing."""
        self.edges = band_edges(height, width)
        self._rows, self._columns = dct_matrix(height), dct_matrix(width)
        frequency = (
            (torch.arange(height, dtype=torch.float64) / (2 * height))[:, None].square()
            + (torch.arange(width, dtype=torch.float64) / (2 * width))[None].square()
        ).sqrt()
        self._band = torch.bucketize(frequency, torch.tensor(self.edges, dtype=torch.float64))
        self._band = self._band.clamp(max=len(self.edges) - 1)
        self._band[0, 0] = -1
        self._sums: torch.Tensor | None = None
        self._images = 0

    def update(self, images: torch.Tensor) -> None:
        """Add images, or errors, `(B, C, H, W)` float."""
        spectrum = self._rows @ images.cpu().double() @ self._columns.T
        power = spectrum.square().sum(0)
        self._sums = power if self._sums is None else self._sums + power
        self._images += len(images)

    def by_channel(self) -> torch.Tensor:
        """Return the power of each channel and band, `(C, bands)` float64.

        It is in squared units a pixel: over all bands, plus that of the mean, the mean square.
        """
        if self._sums is None:
            raise ValueError("no images yet")
        mean = self._sums / (self._images * self._band.numel())
        bands = [mean[:, self._band == band].sum(1) for band in range(len(self.edges))]
        return torch.stack(bands, dim=1)

    def compute(self) -> torch.Tensor:
        """Return the mean power of each band over the channels, `(bands,)` float64."""
        return self.by_channel().mean(0)
