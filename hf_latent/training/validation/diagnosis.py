"""Describe problems of an autoencoder's training, and how to mend them."""

import logging

from hf_latent.training.validation.autoencoder import HeldOutFigures

WON_LOGIT = 2.0
LOST_PSNR_DB = 1.0
LARGE_LATENT_STD = 20.0
LEARNT_CHROMA_R2 = 0.5
IMPROVING_DB = 0.2  # per 1,000 steps


def diagnose(
    figures: HeldOutFigures,
    previous: HeldOutFigures | None,
    steps: int,
    adversarial: dict[str, float],
) -> list[tuple[int, str]]:
    """Return one line for each problem with its remedy, or one line that says there is none.

    Each line has the level of `logging` that it is worth: a problem is a warning, and what only
    more training mends is not.

    Args:
        figures: of the held-out images.
        previous: the figures of the previous validation, if any.
        steps: since the previous validation.
        adversarial: from `Adversary.figures`; empty before the discriminator is active.
    """
    lines = []
    channels = len(figures.latent_std)
    psnr_db, latent_std = figures.reconstruction.psnr_db, max(figures.latent_std)
    # A dead channel may come alive, so it is reported at the second validation.
    dead = sorted(set(figures.dead_channels) & set(previous.dead_channels if previous else ()))
    if len(dead) == channels:
        lines.append(
            "the posterior collapsed: the latents say nothing about the images; "
            "divide --kl_weight by 10 and start again"
        )
    elif dead:
        numbers = ", ".join(map(str, dead))
        lines.append(
            f"dead: channel {numbers} of {channels} (counted from 0) carries nothing; "
            "lower --kl_weight or --latent_channels"
        )
    if latent_std > LARGE_LATENT_STD:
        lines.append(
            f"the latents grow without bound (deviation {latent_std:.1f}): raise --kl_weight"
        )
    real = adversarial.get("discriminator_real_logit", 0.0)
    fake = adversarial.get("discriminator_fake_logit", 0.0)
    if real > WON_LOGIT and fake < -WON_LOGIT:
        lines.append(
            f"the discriminator won (mean logit {real:.1f} for images, {fake:.1f} for "
            "reconstructions), so the adversarial loss is only noise: raise --discriminator_start "
            "or lower --discriminator_weight"
        )
    if previous is not None and psnr_db < previous.reconstruction.psnr_db - LOST_PSNR_DB:
        fell = f"held-out PSNR fell from {previous.reconstruction.psnr_db:.1f} to {psnr_db:.1f} dB"
        lines.append(
            f"{fell}, more than sharper texture costs: lower --discriminator_weight"
            if adversarial
            else f"{fell}: lower --learning_rate"
        )
    found = [(logging.WARNING, line) for line in lines]
    if figures.dead_channels and not dead:
        count = f"{len(figures.dead_channels)} of {channels} channels"
        line = f"{count} carry nothing yet; if that stays, lower --kl_weight"
        found.append((logging.INFO, line))
    found += [(logging.INFO, line) for line in _unfinished(figures, previous, steps)]
    fine = f"no fault found: {psnr_db:.1f} dB, all {channels} channels alive"
    return found or [(logging.INFO, fine)]


def _unfinished(figures: HeldOutFigures, previous: HeldOutFigures | None, steps: int) -> list[str]:
    """Return a line for each sign that the training is too short so far."""
    kept, lines = figures.reconstruction, []
    if kept.chroma_r2 is not None and kept.chroma_r2 < LEARNT_CHROMA_R2:
        lines.append(
            f"colours are not learned yet: R2 of chroma {kept.chroma_r2:.2f}, of luma "
            f"{kept.luma_r2 or 0:.2f}; train on"
        )
    bicubic_psnr_db = figures.bicubic_psnr_db
    if bicubic_psnr_db is not None and kept.psnr_db < bicubic_psnr_db:
        lines.append(
            f"under-trained, not over-compressed: {kept.psnr_db:.1f} dB, bicubic resampling to as "
            f"many values {bicubic_psnr_db:.1f} dB; train on"
        )
    if previous is not None and steps:
        gain = 1000 * (kept.psnr_db - previous.reconstruction.psnr_db) / steps
        if gain >= IMPROVING_DB:
            lines.append(
                f"still improving by {gain:.1f} dB per 1,000 steps, now {kept.psnr_db:.1f} dB: "
                "train on"
            )
    return lines
