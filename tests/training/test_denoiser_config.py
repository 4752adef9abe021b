import pytest

from hf_latent.command import dump_config, parse_config
from hf_latent.errors import UserError
from hf_latent.training.denoiser_config import DenoiserConfig

V = {"objective": "v_prediction"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"snr_gamma": 5.0}, "^--snr_gamma does not go with --objective flow"),
        (
            {**V, "contrastive_weight": 0.1},
            "^--contrastive_weight does not .*: remove it, or.* flow$",
        ),
        ({**V, "snr_gamma": 0.0}, r"^--snr_gamma must be a number above 0, not 0\.0"),
        ({**V, "snr_gamma": -5.0}, r"^--snr_gamma must be a number above 0, not -5\.0"),
        ({"zero_terminal_snr": True}, "^--zero_terminal_snr does not go with --objective flow"),
        (
            {"zero_terminal_snr": True, "objective": "epsilon"},
            "^--zero_terminal_snr does not go with --objective epsilon",
        ),
        (
            {**V, "timestep_sampling": "logit_normal"},
            "^--timestep_sampling logit_normal does not go with --objective v_prediction",
        ),
        (
            {"timestep_sampling": "uniform", "timestep_logit_mean": 0.5},
            "^--timestep_logit_mean has no effect on uniform timesteps",
        ),
        (
            {"timestep_sampling": "uniform", "timestep_logit_std": 2.0},
            "^--timestep_logit_std has no effect on uniform timesteps",
        ),
        ({"guidance_scale": -1.0}, "^--guidance_scale must be a number at least 0"),
        ({"guidance_interval": "0.8,0.2"}, "^--guidance_interval 0.8,0.2 must be two noise levels"),
        (
            {"objective": "epsilon", "timestep_logit_mean": 0.5},
            "^--timestep_logit_mean has no effect on uniform timesteps",
        ),
    ],
)
def test_incompatible_settings_are_refused_in_one_line(denoiser_config, changes, message):
    with pytest.raises(UserError, match=message) as raised:
        denoiser_config(**changes)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"timestep_sampling": "logit_normal", "timestep_logit_mean": 0.5},
        {"timestep_sampling": "uniform"},
        {**V, "timestep_sampling": "uniform"},
        {**V, "snr_gamma": 5.0, "zero_terminal_snr": True},
        {"objective": "sample", "snr_gamma": 5.0, "zero_terminal_snr": True},
        {"objective": "epsilon", "snr_gamma": 5.0},
        {"guidance_scale": 1.5, "guidance_interval": "0,0.8"},
        {"block_out_channels": [96, 96], "attention": [True, True]},
        {"pretrained_unet": "ada/model", "compile": True, "gradient_checkpointing": True},
    ],
)
def test_compatible_settings_are_read_back_from_a_file(denoiser_config, tmp_path, changes):
    config = denoiser_config(**changes)
    (tmp_path / "config.yaml").write_text(dump_config(config))
    assert parse_config(DenoiserConfig, ["--config", str(tmp_path / "config.yaml")]) == config


def test_flags_of_the_command_line(tmp_path):
    config = parse_config(
        DenoiserConfig,
        f"--vae x --output_dir {tmp_path} --objective sample --snr_gamma 5 --zero_terminal_snr "
        "--timestep_sampling uniform --compile".split(),
    )
    assert (config.snr_gamma, config.zero_terminal_snr, config.compile) == (5.0, True, True)
    assert config.timestep_sampling == "uniform"
