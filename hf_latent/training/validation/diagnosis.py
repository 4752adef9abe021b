"""What a person should know about a running training of an autoencoder, in plain words."""

from hf_latent.training.validation.autoencoder import HeldOutFigures

WON_LOGIT = 2.0
LOST_PSNR_DB = 1.0
LARGE_LATENT_STD = 20.0


def diagnose(
    figures: HeldOutFigures,
    before: HeldOutFigures | None = None,
    game: dict[str, float] | None = None,
) -> list[str]:
    """Say what is off, or that nothing is.

    Args:
        figures: of held-out images, now.
        before: the same at the last validation; None at the first.
        game: the discriminator's figures (`Adversary.figures`); empty if it does not play yet.

    Returns:
        One line for each thing that is off, what to do included; one line otherwise.
    """
    lines = []
    channels = len(figures.latent_std)
    # A channel may wake up yet: it is called dead the second time.
    dead = sorted(set(figures.dead_channels) & set(before.dead_channels if before else ()))
    if len(dead) == channels:
        lines.append(
            "the posterior collapsed: the latent says nothing about the image; "
            "lower --kl_weight tenfold and start anew"
        )
    elif dead:
        named = ", ".join(map(str, dead))
        lines.append(
            f"dead: channel {named} of {channels} (counted from 0) carries nothing; "
            "lower --kl_weight, or take fewer --latent_channels"
        )
    if max(figures.latent_std) > LARGE_LATENT_STD:
        lines.append(
            f"the latents grow without bound (deviation {max(figures.latent_std):.1f}): "
            "raise --kl_weight"
        )
    game = game or {}
    real = game.get("discriminator_real_logit", 0.0)
    fake = game.get("discriminator_fake_logit", 0.0)
    if real > WON_LOGIT and fake < -WON_LOGIT:
        lines.append(
            f"the discriminator won (its answers: {real:.1f} to images, {fake:.1f} to "
            "reconstructions): its pull is noise now; raise --discriminator_start or lower "
            "--discriminator_weight"
        )
    now = figures.reconstruction.psnr_db
    if before is not None and now < before.reconstruction.psnr_db - LOST_PSNR_DB:
        if not game:
            lines.append(
                f"held-out PSNR fell from {before.reconstruction.psnr_db:.1f} to {now:.1f} dB: "
                "lower --learning_rate"
            )
        else:
            lines.append(
                f"held-out PSNR fell from {before.reconstruction.psnr_db:.1f} to {now:.1f} dB: a "
                "little is the price of sharper texture, this much is not; lower "
                "--discriminator_weight"
            )
    asleep = len(figures.dead_channels)
    if asleep and not dead:
        lines.append(
            f"{asleep} of {channels} channels carry nothing yet; if that stays, lower --kl_weight"
        )
    return lines or [f"this is normal: {now:.1f} dB, all {channels} channels alive"]
