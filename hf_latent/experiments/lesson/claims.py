"""The claims of the lesson, each about one measured figure."""

import math
from typing import Any, NamedTuple


class Claim(NamedTuple):
    """A claim that a measurement confirms or contradicts.

    Attributes:
        chapter: the name of its chapter.
        statement: what is claimed, limit included.
        figure: the name of the figure in report.json that decides.
        least: the smallest value that confirms it.
        most: the largest value that confirms it.
    """

    chapter: str
    statement: str
    figure: str
    least: float = -math.inf
    most: float = math.inf

    def check(self, figures: dict[str, Any]) -> dict[str, Any]:
        """Return the claim, the measured value and whether it holds, for report.json."""
        value = figures[self.figure]
        return {
            "chapter": self.chapter,
            "statement": self.statement,
            "figure": self.figure,
            "value": value,
            "holds": self.least <= value <= self.most,
        }


CLAIMS = (
    Claim(
        "values",
        "A photograph of 512x512 pixels has at least 40 times fewer latent values than pixel "
        "values.",
        "photograph_compression_ratio",
        least=40,
    ),
    Claim(
        "kept",
        "The decoded image keeps at least 0.9 of the variance of the edges.",
        "edge_agreement",
        least=0.9,
    ),
    Claim(
        "kept",
        "It keeps at least 0.95 of the variance of the layout.",
        "layout_agreement",
        least=0.95,
    ),
    Claim(
        "kept",
        "At most half of the noise that was added to pixels comes back.",
        "noise_survival",
        most=0.5,
    ),
    Claim(
        "cost",
        "A denoising step for the largest images is at least 10 times faster on latents.",
        "step_ratio",
        least=10,
    ),
    Claim(
        "cost",
        "A training step for them needs at least 10 times less memory for activations on latents.",
        "activations_ratio",
        least=10,
    ),
    Claim(
        "cost",
        "The gain in time grows with the image: it is at least 1.5 times as large for the largest "
        "images as for the smallest.",
        "step_ratio_growth",
        least=1.5,
    ),
    Claim(
        "noise",
        "Each latent channel has a mean within 0.1 of 0 ...",
        "latent_mean_largest",
        most=0.1,
    ),
    Claim(
        "noise",
        "... and a standard deviation within 0.1 of 1.",
        "latent_std_error_largest",
        most=0.1,
    ),
    Claim(
        "noise",
        "Half latents and half noise have the variance 0.5, within 0.05.",
        "half_noise_variance",
        least=0.45,
        most=0.55,
    ),
    Claim(
        "noise",
        "Neighbouring pixels of decoded latent noise are correlated, by at least 0.3 ...",
        "decoded_noise_correlation",
        least=0.3,
    ),
    Claim(
        "noise",
        "... and those of pixel noise are not: by at most 0.05.",
        "pixel_noise_correlation",
        most=0.05,
    ),
    Claim(
        "quality",
        "The smallest latents lose at least 5 dB of PSNR against the largest.",
        "over_compression_db",
        least=5,
    ),
    Claim(
        "quality",
        "They keep at most 0.8 of the variance of the edges.",
        "over_compressed_edge_agreement",
        most=0.8,
    ),
    Claim(
        "quality",
        "The lesson's own autoencoder, which trained longer, is at least 1 dB better than the best "
        "of these.",
        "longer_training_db",
        least=1,
    ),
    Claim(
        "frozen",
        "The training of the denoiser leaves the autoencoder's weights as they were, bit by bit.",
        "vae_is_unchanged",
        least=1,
    ),
    Claim(
        "generation",
        "A classifier of real images finds the asked class in at least half of the generated "
        "images.",
        "label_agreement",
        least=0.5,
    ),
)
