"""Describe problems of a training, as its log shows them, and how to mend them."""

import logging
from collections.abc import Mapping, Sequence

WON_LOGIT = 2.0
LOST_PSNR_DB = 1.0
LARGE_LATENT_STD = 20.0
LEARNT_CHROMA_R2 = 0.5
IMPROVING_DB = 0.2  # per 1,000 steps
RISEN_LOSS = 0.02  # above the lowest; chosen, not measured
# What each validation of an autoencoder logs. Earlier versions logged no alive channels.
OF_AUTOENCODERS = {"psnr_db", "latent_std_largest", "dead_channels", "alive_channels"}

Figures = Mapping[str, float]


def diagnose(lines: Sequence[Figures]) -> list[tuple[int, str]]:
    """Return one line for each problem with its remedy, or one line that says there is none.

    Each line has the level of `logging` that it is worth: a problem is a warning, and what only
    more training mends is not.

    Args:
        lines: a run's log, as `read_lines` returns it, up to the validation that is described.

    Returns:
        The lines; none before the first validation, and none about an autoencoder of an earlier
        version, which logged fewer figures.
    """
    validations = [line for line in lines if "validation_loss" in line]
    if not validations:
        return []
    now, *previous = validations[:-3:-1]
    if "psnr_db" not in now:
        return [diagnose_denoiser(validations)]
    if not all(line.keys() >= OF_AUTOENCODERS for line in (now, *previous)):
        return []
    return diagnose_autoencoder(now, previous[0] if previous else None)


def diagnose_autoencoder(now: Figures, previous: Figures | None) -> list[tuple[int, str]]:
    """Return the lines about an autoencoder; see `diagnose`.

    Args:
        now: the log's line of a validation.
        previous: that of the validation before, if there was one.
    """
    lines = []
    psnr_db, latent_std = now["psnr_db"], now["latent_std_largest"]
    channels = now["dead_channels"] + now["alive_channels"]
    # A dead channel may come alive, so it is reported at the second validation.
    dead = min(now["dead_channels"], previous["dead_channels"] if previous else 0)
    if dead == channels:
        lines.append(
            "the posterior collapsed: the latents say nothing about the images; "
            "divide --kl_weight by 10 and start again"
        )
    elif dead:
        lines.append(
            f"dead: {dead} of {channels} latent channels carry nothing; lower --kl_weight or "
            "--latent_channels"
        )
    if latent_std > LARGE_LATENT_STD:
        lines.append(
            f"the latents grow without bound (deviation {latent_std:.1f}): raise --kl_weight"
        )
    real = now.get("discriminator_real_logit", 0.0)
    fake = now.get("discriminator_fake_logit", 0.0)
    if real > WON_LOGIT and fake < -WON_LOGIT:
        lines.append(
            f"the discriminator won (mean logit {real:.1f} for images, {fake:.1f} for "
            "reconstructions), so the adversarial loss is only noise: raise --discriminator_start "
            "or lower --discriminator_weight"
        )
    if previous is not None and psnr_db < previous["psnr_db"] - LOST_PSNR_DB:
        fell = f"held-out PSNR fell from {previous['psnr_db']:.1f} to {psnr_db:.1f} dB"
        lines.append(
            f"{fell}, more than sharper texture costs: lower --discriminator_weight"
            if "discriminator_real_logit" in now
            else f"{fell}: lower --learning_rate"
        )
    found = [(logging.WARNING, line) for line in lines]
    if now["dead_channels"] and not dead:
        count = f"{now['dead_channels']} of {channels} channels"
        line = f"{count} carry nothing yet; if that stays, lower --kl_weight"
        found.append((logging.INFO, line))
    found += [(logging.INFO, line) for line in _unfinished(now, previous)]
    fine = f"no fault found: {psnr_db:.1f} dB, all {channels} channels alive"
    return found or [(logging.INFO, fine)]


def _unfinished(now: Figures, previous: Figures | None) -> list[str]:
    """Return a line for each sign that the training is too short so far."""
    psnr_db, lines = now["psnr_db"], []
    chroma_r2 = now.get("chroma_r2")
    if chroma_r2 is not None and chroma_r2 < LEARNT_CHROMA_R2:
        lines.append(
            f"colours are not learned yet: R2 of chroma {chroma_r2:.2f}, of luma "
            f"{now.get('luma_r2', 0):.2f}; train on"
        )
    bicubic_psnr_db = now.get("bicubic_psnr_db")
    if bicubic_psnr_db is not None and psnr_db < bicubic_psnr_db:
        lines.append(
            f"under-trained, not over-compressed: {psnr_db:.1f} dB, bicubic resampling to as "
            f"many values {bicubic_psnr_db:.1f} dB; train on"
        )
    if previous is not None and now["step"] > previous["step"]:
        steps = now["step"] - previous["step"]
        gain = 1000 * (psnr_db - previous["psnr_db"]) / steps
        if gain >= IMPROVING_DB:
            lines.append(
                f"still improving by {gain:.1f} dB per 1,000 steps, now {psnr_db:.1f} dB: train on"
            )
    return lines


def diagnose_denoiser(validations: Sequence[Figures]) -> tuple[int, str]:
    """Return the line about a denoiser; see `diagnose`.

    Args:
        validations: the log's lines of all validations so far. Each has the same images and noise.
    """
    lowest = min(validations, key=lambda line: line["validation_loss"])
    now, low = validations[-1]["validation_loss"], lowest["validation_loss"]
    held_out = f"held-out loss {now:.4f}, the lowest so far"
    if now > low:
        held_out = f"held-out loss {now:.4f}, lowest {low:.4f} after step {lowest['step']:,}"
    if now > (1 + RISEN_LOSS) * low:
        return logging.WARNING, (
            f"the held-out loss has risen ({held_out}): if it goes on, the denoiser memorises its "
            "images; stop earlier, use more images, or mirror them (--horizontal_flip true)"
        )
    return logging.INFO, f"no fault found: {held_out}; look at the samples"
