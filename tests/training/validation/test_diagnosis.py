import pytest

from hf_latent.evaluation.measures.reconstruction import ReconstructionFigures
from hf_latent.training.validation.autoencoder import HeldOutFigures
from hf_latent.training.validation.diagnosis import diagnose

PLAYING = {"discriminator_real_logit": 0.3, "discriminator_fake_logit": -0.2}


def figures(
    psnr_db: float = 25.0, dead: tuple[int, ...] = (), largest_std: float = 3.0
) -> HeldOutFigures:
    return HeldOutFigures(
        loss=0.1,
        kl_nats_per_latent_value=1.0,
        perceptual_distance=None,
        latent_mean=[0.0, 0.0, 0.0],
        latent_std=[1.0, largest_std, 2.0],
        dead_channels=list(dead),
        reconstruction=ReconstructionFigures(psnr_db, ssim=0.9, images=10),
    )


def game(real: float, fake: float) -> dict[str, float]:
    return {"discriminator_real_logit": real, "discriminator_fake_logit": fake}


NORMAL = ["this is normal: 25.0 dB, all 3 channels alive"]
DEAD = (
    "dead: channel {} of 3 (counted from 0) carries nothing; "
    "lower --kl_weight, or take fewer --latent_channels"
)
ASLEEP = "{} of 3 channels carry nothing yet; if that stays, lower --kl_weight"
COLLAPSED = (
    "the posterior collapsed: the latent says nothing about the image; "
    "lower --kl_weight tenfold and start anew"
)
GROWING = "the latents grow without bound (deviation 20.1): raise --kl_weight"
WON = (
    "the discriminator won (its answers: 2.1 to images, -2.1 to reconstructions): its pull is "
    "noise now; raise --discriminator_start or lower --discriminator_weight"
)
FELL = "held-out PSNR fell from 25.0 to 23.9 dB: lower --learning_rate"
FELL_IN_A_GAME = (
    "held-out PSNR fell from 25.0 to 23.9 dB: a little is the price of sharper texture, this much "
    "is not; lower --discriminator_weight"
)


@pytest.mark.parametrize(
    ("now", "before", "playing", "expected"),
    [
        (figures(), None, None, NORMAL),
        (figures(), None, {}, NORMAL),
        (figures(), figures(), PLAYING, NORMAL),
        (figures(), figures(dead=(0, 1, 2)), {}, NORMAL),
        (figures(dead=(1,)), None, {}, [ASLEEP.format(1)]),
        (figures(dead=(0, 1, 2)), None, {}, [ASLEEP.format(3)]),
        (figures(dead=(0,)), figures(dead=(1,)), {}, [ASLEEP.format(1)]),
        (figures(dead=(1, 2)), figures(dead=(0, 1)), {}, [DEAD.format("1")]),
        (figures(dead=(0, 2)), figures(dead=(2, 0)), {}, [DEAD.format("0, 2")]),
        (figures(dead=(0, 1, 2)), figures(dead=(1, 0)), {}, [DEAD.format("0, 1")]),
        (figures(dead=(0, 1, 2)), figures(dead=(2, 1, 0)), {}, [COLLAPSED]),
        (figures(largest_std=20.0), None, {}, NORMAL),
        (figures(largest_std=20.1), None, {}, [GROWING]),
        (figures(), None, game(2.1, -2.1), [WON]),
        (figures(), None, game(2.1, -1.9), NORMAL),
        (figures(), None, game(1.9, -2.1), NORMAL),
        (figures(), None, game(-2.1, 2.1), NORMAL),
        (figures(23.9), None, {}, ["this is normal: 23.9 dB, all 3 channels alive"]),
        (figures(24.1), figures(), {}, ["this is normal: 24.1 dB, all 3 channels alive"]),
        (figures(24.1), figures(), PLAYING, ["this is normal: 24.1 dB, all 3 channels alive"]),
        (figures(23.9), figures(), {}, [FELL]),
        (figures(23.9), figures(), PLAYING, [FELL_IN_A_GAME]),
        (
            figures(23.9, (1,), 20.1),
            figures(dead=(1,)),
            game(2.1, -2.1),
            [DEAD.format("1"), GROWING, WON, FELL_IN_A_GAME],
        ),
    ],
)
def test_each_line_is_said_in_its_case_and_no_other(now, before, playing, expected):
    assert diagnose(now, before, playing) == expected
