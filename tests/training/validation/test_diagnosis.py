import logging

import pytest

from hf_latent.evaluation.measures.reconstruction import ReconstructionFigures
from hf_latent.training.validation.autoencoder import HeldOutFigures
from hf_latent.training.validation.diagnosis import diagnose

UNDECIDED = {"discriminator_real_logit": 0.3, "discriminator_fake_logit": -0.2}


def figures(
    psnr_db: float = 25.0,
    dead: tuple[int, ...] = (),
    largest_std: float = 3.0,
    bicubic_psnr_db: float | None = 20.0,
    chroma_r2: float | None = 0.9,
) -> dict[str, float]:
    """Return the figures that a validation logs."""
    found = HeldOutFigures(
        loss=0.1,
        kl_nats_per_latent_value=1.0,
        perceptual_distance=None,
        latent_mean=[0.0, 0.0, 0.0],
        latent_std=[1.0, largest_std, 2.0],
        dead_channels=list(dead),
        bicubic_psnr_db=bicubic_psnr_db,
        reconstruction=ReconstructionFigures(
            psnr_db, ssim=0.9, images=10, luma_r2=0.91, chroma_r2=chroma_r2
        ),
    )
    return {"validation_loss": found.loss, **found.scalars()}


def described(
    now: dict[str, float],
    previous: dict[str, float] | None,
    steps: int = 500,
    adversarial: dict[str, float] | None = None,
) -> list[tuple[int, str]]:
    """Diagnose a log whose last two validations are given, with lines of training around them."""
    first = {"step": 1000, "validation_loss": 9.0, **figures(1.0, dead=(0, 1, 2))}
    lines = [{"step": 900, "train_loss": 0.5}]
    lines += [] if previous is None else [first, {"step": 1000, **previous}]
    return diagnose([*lines, {"step": 1000 + steps, **now, **(adversarial or {})}])


def logits(real: float, fake: float) -> dict[str, float]:
    return {"discriminator_real_logit": real, "discriminator_fake_logit": fake}


NORMAL = ["no fault found: 25.0 dB, all 3 channels alive"]
DEAD = "dead: {} of 3 latent channels carry nothing; lower --kl_weight or --latent_channels"
NOT_YET_ALIVE = "{} of 3 channels carry nothing yet; if that stays, lower --kl_weight"
COLLAPSED = (
    "the posterior collapsed: the latents say nothing about the images; "
    "divide --kl_weight by 10 and start again"
)
GROWING = "the latents grow without bound (deviation 20.1): raise --kl_weight"
WON = (
    "the discriminator won (mean logit 2.1 for images, -2.1 for reconstructions), so the "
    "adversarial loss is only noise: raise --discriminator_start or lower --discriminator_weight"
)
FELL = "held-out PSNR fell from 25.0 to 23.9 dB: lower --learning_rate"
FELL_WITH_DISCRIMINATOR = (
    "held-out PSNR fell from 25.0 to 23.9 dB, more than sharper texture costs: "
    "lower --discriminator_weight"
)


@pytest.mark.parametrize(
    ("now", "previous", "adversarial", "expected"),
    [
        (figures(), None, {}, NORMAL),
        (figures(), figures(), UNDECIDED, NORMAL),
        (figures(), figures(dead=(0, 1, 2)), {}, NORMAL),
        (figures(dead=(1,)), None, {}, [NOT_YET_ALIVE.format(1)]),
        (figures(dead=(0, 1, 2)), None, {}, [NOT_YET_ALIVE.format(3)]),
        (figures(dead=(0,)), figures(), {}, [NOT_YET_ALIVE.format(1)]),
        (figures(dead=(1, 2)), figures(dead=(0,)), {}, [DEAD.format(1)]),
        (figures(dead=(0,)), figures(dead=(2, 0)), {}, [DEAD.format(1)]),
        (figures(dead=(0, 1, 2)), figures(dead=(1, 0)), {}, [DEAD.format(2)]),
        (figures(dead=(0, 1, 2)), figures(dead=(2, 1, 0)), {}, [COLLAPSED]),
        (figures(largest_std=20.0), None, {}, NORMAL),
        (figures(largest_std=20.1), None, {}, [GROWING]),
        (figures(), None, logits(2.1, -2.1), [WON]),
        (figures(), None, logits(2.1, -1.9), NORMAL),
        (figures(), None, logits(1.9, -2.1), NORMAL),
        (figures(), None, logits(-2.1, 2.1), NORMAL),
        (figures(23.9), None, {}, ["no fault found: 23.9 dB, all 3 channels alive"]),
        (figures(24.1), figures(), {}, ["no fault found: 24.1 dB, all 3 channels alive"]),
        (figures(24.1), figures(), UNDECIDED, ["no fault found: 24.1 dB, all 3 channels alive"]),
        (figures(23.9), figures(), {}, [FELL]),
        (figures(23.9), figures(), UNDECIDED, [FELL_WITH_DISCRIMINATOR]),
        (
            figures(23.9, (1,), 20.1),
            figures(dead=(1,)),
            logits(2.1, -2.1),
            [DEAD.format(1), GROWING, WON, FELL_WITH_DISCRIMINATOR],
        ),
    ],
)
def test_each_problem_has_its_line(now, previous, adversarial, expected):
    assert [line for _, line in described(now, previous, 500, adversarial)] == expected


def test_a_problem_is_a_warning_and_other_lines_are_not():
    assert described(figures(dead=(1,), largest_std=20.1), None) == [
        (logging.WARNING, GROWING),
        (logging.INFO, NOT_YET_ALIVE.format(1)),
    ]
    assert described(figures(), None) == [(logging.INFO, *NORMAL)]


GREY = "colours are not learned yet: R2 of chroma 0.03, of luma 0.91; train on"
BELOW_BICUBIC = (
    "under-trained, not over-compressed: 24.3 dB, bicubic resampling to as many values 25.0 dB; "
    "train on"
)
IMPROVING = "still improving by {} dB per 1,000 steps, now 25.0 dB: train on"


@pytest.mark.parametrize(
    ("now", "previous", "expected"),
    [
        (figures(chroma_r2=0.03), None, [GREY]),
        (figures(chroma_r2=0.5), None, NORMAL),
        (figures(chroma_r2=None), None, NORMAL),  # grey images
        (figures(24.3, bicubic_psnr_db=25.0), None, [BELOW_BICUBIC]),
        (figures(bicubic_psnr_db=None), None, NORMAL),  # latents as large as images
        (figures(24.3, bicubic_psnr_db=25.0, chroma_r2=0.03), None, [GREY, BELOW_BICUBIC]),
        (figures(), figures(24.8), [IMPROVING.format(0.4)]),
        (figures(), figures(24.91), NORMAL),
    ],
)
def test_a_short_training_is_not_called_normal(now, previous, expected):
    lines = [(logging.INFO, line) for line in expected]
    assert described(now, previous) == lines


def test_two_validations_of_one_step_have_no_slope():
    assert described(figures(), figures(24.0), 0) == [(logging.INFO, *NORMAL)]


LOWEST = "no fault found: held-out loss {:.4f}, the lowest so far; look at the samples"
HIGHER = "held-out loss {:.4f}, lowest 0.9000 after step 1,000"


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([], []),
        ([0.9], [(logging.INFO, LOWEST.format(0.9))]),
        ([0.9, 0.8], [(logging.INFO, LOWEST.format(0.8))]),
        (
            [0.9, 0.917],
            [(logging.INFO, f"no fault found: {HIGHER.format(0.917)}; look at the samples")],
        ),
        (
            [0.9, 1.0, 0.919],
            [
                (
                    logging.WARNING,
                    f"the held-out loss has risen ({HIGHER.format(0.919)}): if it goes on, "
                    "the denoiser memorises its images; stop earlier, use more images, or mirror "
                    "them (--horizontal_flip true)",
                )
            ],
        ),
    ],
)
def test_a_denoiser_whose_held_out_loss_rises_is_warned(losses, expected):
    lines = [{"step": 1000 * i, "validation_loss": x} for i, x in enumerate(losses, 1)]
    assert diagnose([{"step": 5, "train_loss": 0.1}, *lines]) == expected


def test_the_log_of_an_earlier_version_has_no_diagnosis():
    earlier = {name: x for name, x in figures().items() if name != "alive_channels"}
    assert described(earlier, None) == described(figures(), earlier) == []
