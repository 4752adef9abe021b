"""One pass of images through an autoencoder, with everything that is measured on the way."""

from functools import partial
from typing import Any

import torch
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

from hf_latent.evaluation.inspection.frequencies import BandPower
from hf_latent.evaluation.inspection.latent_figures import LatentMoments, PosteriorRate
from hf_latent.evaluation.inspection.structure import (
    NOISE_STD,
    Agreement,
    NoiseSurvival,
    heavy_blur,
    sobel_edges,
)
from hf_latent.evaluation.measures.reconstruction import image_psnr, reconstruct
from hf_latent.evaluation.pictures import composite
from hf_latent.models.load import Autoencoder
from hf_latent.pipeline.autoencoders import find_kind, latent_channels
from hf_latent.pipeline.decode import decode_latents, shown_channels
from hf_latent.pipeline.encode import encode_posteriors

MS_SSIM_SMALLEST = 176  # a window of 11 pixels at the fifth scale


def on_white(images: torch.Tensor, is_measured: bool = False) -> torch.Tensor:
    """Map images `(B, C, H, W)` float in [-1, 1] to [0, 1], with RGBA composited on white."""
    return composite(images / 2 + 0.5, 1.0, is_measured)


class RoundTrip:
    """Encodes and decodes images, and sums what is kept, what is dropped, and the latents.

    Args:
        image_shape: `(C, H, W)`.
        seed: of the posterior samples and of the added noise.
    """

    def __init__(self, vae: Autoencoder, image_shape: tuple[int, int, int], seed: int):
        """Start without images."""
        self.vae = vae
        self._is_measured = shown_channels(vae) is not None
        self._on_white = partial(on_white, is_measured=self._is_measured)
        size = image_shape[1:]
        self._generator = torch.Generator().manual_seed(seed)
        self._signal, self._error = BandPower(*size), BandPower(*size)
        self._edges, self._layout, self._noise = Agreement(), Agreement(), NoiseSurvival()
        self.moments = LatentMoments(latent_channels(vae))
        self.rate = PosteriorRate(vae) if find_kind(vae).has_posterior else None
        self.psnr_db: list[torch.Tensor] = []
        self._ms_ssim: float | None = 0.0 if min(size) >= MS_SSIM_SMALLEST else None

    def _encode(self, images: torch.Tensor) -> torch.Tensor:
        """Return the latents `(B, c, h, w)` to decode, and add posteriors to the figures."""
        posteriors = encode_posteriors(self.vae, images.to(self.vae.device))
        if self.rate is not None:
            self.rate.update(posteriors)
        noise = torch.randn(posteriors.mean.shape, generator=self._generator)
        self.moments.update(posteriors.sample(noise.to(posteriors.mean)), posteriors.mean)
        return posteriors.mean

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Return the reconstructions of images `(B, C, H, W)` in [-1, 1], and measure both.

        The reconstructions are float32, on the CPU and not clamped.
        """
        decoded = decode_latents(self.vae, self._encode(images)).float().cpu()
        noise = torch.randn(images.shape, generator=self._generator) * 2 * NOISE_STD
        if images.shape[1] == 4 and not self._is_measured:
            noise[:, 3] = 0
        answer = reconstruct(self.vae, images + noise)
        original, reconstruction = map(self._on_white, (images, decoded.clamp(-1, 1)))
        self._noise.update(
            self._on_white(images + noise) - original,
            self._on_white(answer) - self._on_white(decoded),
        )
        self._signal.update(original)
        self._error.update(reconstruction - original)
        self._edges.update(sobel_edges(original), sobel_edges(reconstruction))
        self._layout.update(heavy_blur(original), heavy_blur(reconstruction))
        self.psnr_db.append(image_psnr(reconstruction, original))
        if self._ms_ssim is not None:
            similarity = multiscale_structural_similarity_index_measure(
                reconstruction, original, data_range=1.0
            )
            self._ms_ssim += similarity.item() * len(images)
        return decoded

    def figures(self) -> dict[str, Any]:
        """Return the flat figures; those that were not measured are absent."""
        signal, error = self._signal.compute(), self._error.compute()
        psnr = torch.cat(self.psnr_db)
        latents = self.moments.figures()
        dead, std = latents["dead_channels"], latents["latent_std"]
        figures: dict[str, Any] = {
            "psnr_db_worst": psnr.min().item(),
            "psnr_db_5_percent": psnr.quantile(0.05).item(),
            "psnr_db_median": psnr.median().item(),
            "band_edges_cycles_per_pixel": self._signal.edges,
            "band_signal_power": signal.tolist(),
            "band_error_power": error.tolist(),
            "band_kept": (1 - error / signal.clamp(min=1e-30)).tolist(),
            "edge_agreement": self._edges.compute(),
            "layout_agreement": self._layout.compute(),
            "noise_std": NOISE_STD,
            **self._noise.compute(),
            **latents,
            "latent_std_largest": max(std),
            "latent_mean_largest": max(map(abs, latents["latent_mean"])),
            "dead_channel_share": len(dead) / len(std),
        }
        if self._ms_ssim is not None:
            figures["ms_ssim"] = self._ms_ssim / len(psnr)
        if live := [x for channel, x in enumerate(std) if channel not in dead]:
            figures["live_latent_std_smallest"] = min(live)
        return figures
