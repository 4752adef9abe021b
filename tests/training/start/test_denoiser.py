import pytest
import torch
from diffusers import AutoencoderKL, UNet2DModel
from safetensors.torch import load_file
from torch._dynamo.utils import counters

from hf_latent.errors import UserError
from hf_latent.models.presets import DENOISERS, create_denoiser, create_scheduler
from hf_latent.pipeline import LatentDiffusionPipeline
from hf_latent.training.denoiser import train_denoiser
from hf_latent.training.start.denoiser import start_denoiser
from tests.conftest import make_autoencoder

SHAPE = (1, 32, 32)
CLASSES = 10
OTHER_NAMES = {label: f"other {label}" for label in range(CLASSES)}
# The first warm-up step has a learning rate of 0, so the weights do not change.
ONE_STEP_AT_RATE_0 = {"max_train_steps": 1, "lr_warmup_ratio": 0.5}


@pytest.fixture
def saved_vae(tmp_path) -> AutoencoderKL:
    vae = make_autoencoder(sample_size=32)
    vae.save_pretrained(tmp_path / "autoencoder" / "model")
    return vae


@pytest.fixture
def save_denoiser(saved_vae, tmp_path):
    """Save a denoiser with other weights than a new one, alone or in a pipeline."""

    def save(in_pipeline=False, objective="flow", num_classes=CLASSES, dtype=None, **changes):
        torch.manual_seed(99)
        unet = create_denoiser("tiny", saved_vae, SHAPE, num_classes, **changes).to(dtype)
        settings = {"id2label": OTHER_NAMES, "guidance": {"guidance_scale": 7.0}}
        saved = LatentDiffusionPipeline(saved_vae, unet, create_scheduler(objective), **settings)
        (saved if in_pipeline else unet).save_pretrained(tmp_path / "pretrained")
        return unet

    return save


@pytest.fixture
def warm_config(denoiser_config, tmp_path):
    return lambda **changes: denoiser_config(
        **{"pretrained_unet": str(tmp_path / "pretrained"), **changes}
    )


def assert_equal_weights(found: torch.nn.Module, expected: torch.nn.Module) -> None:
    weights = expected.state_dict()
    assert found.state_dict().keys() == weights.keys()
    for name, tensor in found.state_dict().items():
        assert torch.equal(tensor, weights[name].float()), name


def test_a_new_denoiser_depends_only_on_preset_and_seed(denoiser_config, saved_vae):
    torch.manual_seed(1)
    unet = start_denoiser(denoiser_config(seed=7), saved_vae, SHAPE, CLASSES)
    torch.manual_seed(7)
    assert_equal_weights(unet, create_denoiser("tiny", saved_vae, SHAPE, CLASSES))
    assert unet.training


def test_a_preset_with_its_architecture_changed(denoiser_config, saved_vae):
    own = {"block_out_channels": [32, 48, 64], "attention": [True, False, True]}
    unet = start_denoiser(denoiser_config(**own, seed=7), saved_vae, SHAPE, CLASSES)
    torch.manual_seed(7)
    expected = create_denoiser(
        *("tiny", saved_vae, SHAPE, CLASSES),
        block_out_channels=(32, 48, 64),
        attention=(True, False, True),
    )
    assert unet.config == expected.config
    assert_equal_weights(unet, expected)
    assert [type(block).__name__ for block in unet.down_blocks] == [
        "AttnDownBlock2D",
        "DownBlock2D",
        "AttnDownBlock2D",
    ]
    assert [type(block).__name__ for block in unet.up_blocks] == [
        "AttnUpBlock2D",
        "UpBlock2D",
        "AttnUpBlock2D",
    ]
    only_widths = start_denoiser(
        denoiser_config(block_out_channels=[32, 32]), saved_vae, SHAPE, CLASSES
    )
    preset = DENOISERS["tiny"]["attention"]
    found = [type(block).__name__ == "AttnDownBlock2D" for block in only_widths.down_blocks]
    assert tuple(found) == preset


@pytest.mark.parametrize("in_pipeline", [False, True])
def test_a_warm_start_begins_with_the_pretrained_weights(
    warm_config, save_denoiser, saved_vae, tmp_path, in_pipeline
):
    pretrained = save_denoiser(in_pipeline)
    unet = start_denoiser(warm_config(), saved_vae, SHAPE, CLASSES)
    assert_equal_weights(unet, pretrained)
    assert unet.training
    assert all(parameter.requires_grad for parameter in unet.parameters())
    assert unet.config._name_or_path == "", "no path of this machine is saved"

    config = warm_config(**ONE_STEP_AT_RATE_0, checkpointing_steps=1)
    saved = LatentDiffusionPipeline.from_pretrained(train_denoiser(config).model_dir)
    assert_equal_weights(saved.unet, pretrained)
    # Names and guidance are those of this training.
    assert len(saved.id2label) == CLASSES and saved.id2label[9] == "Ankle boot"
    assert saved.config.guidance is None
    average = load_file(
        tmp_path / "denoiser/checkpoint-1/unet_ema/diffusion_pytorch_model.safetensors"
    )
    for name, weight in pretrained.state_dict().items():
        assert torch.equal(average[name], weight), name


def test_a_warm_start_begins_with_the_pretrained_loss(denoiser_config, warm_config, tmp_path):
    make_autoencoder(sample_size=32).save_pretrained(tmp_path / "autoencoder" / "model")
    before = train_denoiser(
        denoiser_config(output_dir=str(tmp_path / "first"), max_train_steps=20, learning_rate=3e-3)
    )
    after = train_denoiser(warm_config(pretrained_unet=str(before.model_dir), **ONE_STEP_AT_RATE_0))
    assert after.validation_losses[1] == before.validation_losses[20]


def test_weights_in_half_precision_are_trained_in_float32(warm_config, save_denoiser, saved_vae):
    pretrained = save_denoiser(dtype=torch.float16)
    unet = start_denoiser(warm_config(), saved_vae, SHAPE, CLASSES)
    assert {parameter.dtype for parameter in unet.parameters()} == {torch.float32}
    assert_equal_weights(unet, pretrained)


def test_a_warm_start_ignores_the_preset_and_has_the_latents_size(
    warm_config, save_denoiser, saved_vae
):
    save_denoiser(block_out_channels=(8, 24))
    config = warm_config(preset="ldm-f8")
    unet = start_denoiser(config, saved_vae, (1, 48, 64), CLASSES)
    assert tuple(unet.config.block_out_channels) == (8, 24)
    assert tuple(unet.config.sample_size) == (12, 16)
    assert start_denoiser(config, saved_vae, (1, 48, 48), CLASSES).config.sample_size == 12


@pytest.mark.parametrize(
    ("saved", "changes", "message"),
    [
        ({"num_classes": 4}, {}, "has 5 class embeddings, and this run needs 11"),
        ({"num_classes": None}, {}, "has no class embeddings, and this run needs 11"),
        ({}, {"conditional": False}, "has 11 class embeddings, and this run needs none"),
        (
            {"num_classes": None, "class_embed_type": "timestep"},
            {"conditional": False},
            "has timestep class embeddings, and this run needs none",
        ),
        ({"in_pipeline": True, "objective": "epsilon"}, {}, "pass --objective epsilon"),
        (
            {"in_pipeline": True},
            {"objective": "sample"},
            "trained with --objective flow, and this run has sample",
        ),
        (
            {},
            {"resolution": 36},
            "--pretrained_unet .*: latents of 9x9 do not fit the denoiser: .* multiples of 2",
        ),
        ({}, {"pretrained_unet": "/nowhere/unet"}, "no denoiser found at /nowhere/unet"),
    ],
)
def test_a_denoiser_that_does_not_fit_is_refused_in_one_line(
    warm_config, save_denoiser, tmp_path, saved, changes, message
):
    save_denoiser(**saved)
    with pytest.raises(UserError, match=message) as raised:
        train_denoiser(warm_config(**changes))
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "denoiser").exists()


@pytest.mark.parametrize("changes", [{"guidance_scale": 2.0}, {"guidance_interval": "0,0.8"}])
def test_guidance_without_classes_is_refused(denoiser_config, saved_vae, changes):
    config = denoiser_config(**changes)
    assert start_denoiser(config, saved_vae, SHAPE, CLASSES).config.num_class_embeds == CLASSES + 1
    with pytest.raises(UserError, match=f"--{next(iter(changes))} needs images with classes"):
        start_denoiser(config, saved_vae, SHAPE, None)


def test_a_denoiser_of_other_latents_is_refused(warm_config, save_denoiser, tmp_path):
    save_denoiser()
    vae = make_autoencoder(sample_size=32, latent_channels=3)
    vae.save_pretrained(tmp_path / "autoencoder" / "model")
    message = "takes 4 channels and gives 4, and the latents of --vae .* have 3"
    with pytest.raises(UserError, match=message) as raised:
        train_denoiser(warm_config())
    assert "\n" not in str(raised.value)


def test_another_class_of_model_is_refused(warm_config, saved_vae, tmp_path):
    config = warm_config(pretrained_unet=str(tmp_path / "autoencoder" / "model"))
    with pytest.raises(UserError, match="is a AutoencoderKL, not a UNet2DModel"):
        start_denoiser(config, saved_vae, SHAPE, CLASSES)


def gradients(unet: UNet2DModel) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    latents = torch.randn(2, 4, 8, 8, generator=generator)
    unet(
        latents, torch.tensor([10, 900]), torch.tensor([0, CLASSES])
    ).sample.square().sum().backward()
    return {name: parameter.grad for name, parameter in unet.named_parameters()}


def test_gradient_checkpointing_gives_the_same_gradients(denoiser_config, saved_vae):
    plain = gradients(start_denoiser(denoiser_config(), saved_vae, SHAPE, CLASSES))
    config = denoiser_config(gradient_checkpointing=True)
    unet = start_denoiser(config, saved_vae, SHAPE, CLASSES)
    forwards = []
    unet.up_blocks[0].resnets[0].register_forward_pre_hook(lambda *x: forwards.append(x[0]))
    found = gradients(unet)
    assert len(forwards) == 2, "the backward pass computes it again"
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, plain[name], rtol=0, atol=1e-5, msg=name)


@pytest.mark.slow
def test_a_compiled_training_does_the_same_with_one_graph(
    denoiser_config, saved_vae, tmp_path, monkeypatch, compiled_eagerly
):
    # Of one level: torch._dynamo takes a second for each block.
    small = {"block_out_channels": (16,), "attention": (True,)}
    monkeypatch.setitem(DENOISERS, "tiny", DENOISERS["tiny"] | small)
    for name in ("plain", "compiled"):
        config = denoiser_config(
            output_dir=str(tmp_path / name),
            compile=name == "compiled",
            max_train_steps=3,
            checkpointing_steps=3,
        )
        summary = train_denoiser(config)
    assert compiled_eagerly == ["UNet2DModel"]
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]
    plain, found = (tmp_path / name / "checkpoint-3" for name in ("plain", "compiled"))
    files = sorted(path.relative_to(plain) for path in plain.rglob("*.safetensors"))
    assert files == sorted(path.relative_to(found) for path in found.rglob("*.safetensors"))
    for file in files:
        weights, expected = load_file(found / file), load_file(plain / file)
        assert weights.keys() == expected.keys()
        for name, weight in weights.items():
            torch.testing.assert_close(weight, expected[name], rtol=0, atol=1e-5, msg=name)
    assert UNet2DModel.from_pretrained(summary.model_dir / "unet")
