import json
import math

import pytest
import torch
from diffusers import DDIMScheduler, UniPCMultistepScheduler
from safetensors.torch import load_file

from hf_latent.data.latents.cache import LatentBatch
from hf_latent.errors import UserError
from hf_latent.hub.card.facts import read_model_facts
from hf_latent.models.frozen import hash_weights
from hf_latent.models.load import load_autoencoder
from hf_latent.models.presets import create_scheduler
from hf_latent.pipeline import LatentDiffusionPipeline
from hf_latent.pipeline.encode import LatentPosteriors
from hf_latent.training import denoiser, denoiser_loop
from hf_latent.training.denoiser import draw_batch, train_denoiser
from hf_latent.training.run.batches import ProcessRows, ShardedDraws
from tests.conftest import make_autoencoder, make_guide
from tests.training.conftest import short_denoiser


@pytest.fixture(autouse=True)
def saved_autoencoder(tmp_path):
    make_autoencoder(sample_size=32).save_pretrained(tmp_path / "autoencoder" / "model")


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The summary of a training with default settings; tests must not change its folder."""
    folder = tmp_path_factory.mktemp("plain")
    make_autoencoder(sample_size=32).save_pretrained(folder / "autoencoder" / "model")
    return train_denoiser(short_denoiser(folder))


def test_a_run_leaves_a_pipeline_that_generates(plain):
    summary, run = plain, plain.model_dir.parent
    names = sorted(p.name for p in run.iterdir())
    assert names == ["config.yaml", "latents", "logs", "model", "report.html", "samples"]
    assert (run / "samples" / "step-000002.png").is_file()
    assert all(math.isfinite(loss) for loss in summary.validation_losses.values())
    pipeline = LatentDiffusionPipeline.from_pretrained(summary.model_dir)
    assert isinstance(pipeline.scheduler, UniPCMultistepScheduler)
    assert pipeline.config.num_inference_steps == denoiser.FLOW_INFERENCE_STEPS
    assert pipeline.num_classes == 10
    assert pipeline.id2label[9] == "Ankle boot"
    images = pipeline(class_labels=["Bag", 0], num_inference_steps=2).images
    assert [image.size for image in images] == [(32, 32)] * 2


def test_the_autoencoder_stays_frozen(plain, tmp_path):
    before = hash_weights(load_autoencoder(str(tmp_path / "autoencoder" / "model")))
    summary = plain
    assert summary.vae_hash_before == summary.vae_hash_after == before
    assert hash_weights(LatentDiffusionPipeline.from_pretrained(summary.model_dir).vae) == before


def test_a_change_of_the_frozen_autoencoder_is_an_error(denoiser_config, monkeypatch):
    loss = denoiser_loop.denoising_loss
    loaded = []
    monkeypatch.setattr(
        denoiser,
        "load_autoencoder",
        lambda name: loaded.append(load_autoencoder(name)) or loaded[0],
    )

    def meddle(*arguments):
        loaded[0].decoder.conv_out.bias.data += 1e-3
        return loss(*arguments)

    monkeypatch.setattr(denoiser_loop, "denoising_loss", meddle)
    with pytest.raises(RuntimeError, match="frozen autoencoder changed"):
        train_denoiser(denoiser_config())


def test_training_lowers_the_held_out_loss(denoiser_config):
    summary = train_denoiser(
        denoiser_config(max_train_steps=40, validation_steps=4, learning_rate=3e-3, ema_decay=0.8)
    )
    losses = list(summary.validation_losses.values())
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("objective", ["epsilon", "v_prediction", "sample"])
def test_other_objectives_are_saved_in_the_scheduler(denoiser_config, objective):
    summary = train_denoiser(denoiser_config(objective=objective, max_train_steps=1))
    pipeline = LatentDiffusionPipeline.from_pretrained(summary.model_dir)
    assert isinstance(pipeline.scheduler, DDIMScheduler)
    assert pipeline.scheduler.config.prediction_type == objective


@pytest.mark.parametrize(
    "changes",
    [
        {"contrastive_weight": 0.05},
        {"objective": "epsilon", "snr_gamma": 5.0},
        {"objective": "v_prediction", "snr_gamma": 5.0, "zero_terminal_snr": True},
        {"objective": "sample", "zero_terminal_snr": True},
        {"timestep_sampling": "uniform"},
        {"timestep_logit_mean": 0.5},
        {"gradient_checkpointing": True},
    ],
)
def test_options_reach_the_training_and_the_saved_pipeline(denoiser_config, changes):
    summary = train_denoiser(denoiser_config(**changes, max_train_steps=2))
    assert math.isfinite(summary.train_loss)
    pipeline = LatentDiffusionPipeline.from_pretrained(summary.model_dir)
    rescaled = pipeline.scheduler.config.get("rescale_betas_zero_snr", False)
    assert rescaled == changes.get("zero_terminal_snr", False)
    images = pipeline(class_labels=[0], num_inference_steps=2, output_type="pt").images
    assert torch.isfinite(torch.as_tensor(images)).all()
    training = json.loads((summary.model_dir / "training.json").read_text())
    assert {name: training[name] for name in changes} == changes


def test_guidance_is_used_for_the_samples_and_saved_with_the_model(denoiser_config, tmp_path):
    own = {"guidance_scale": 3.0, "guidance_interval": "0,0.8"}
    pictures = []
    for name, changes in (("plain", {}), ("guided", own)):
        run = tmp_path / name
        summary = train_denoiser(denoiser_config(output_dir=str(run), max_train_steps=1, **changes))
        pictures.append((run / "samples" / "step-000001.png").read_bytes())
        found = LatentDiffusionPipeline.from_pretrained(summary.model_dir).config.guidance
        assert found == (own | {"guidance_interval": [0, 0.8]} if changes else None)
    assert pictures[0] != pictures[1]


def test_a_guide_guides_the_samples_and_is_saved_with_the_model(denoiser_config, tmp_path):
    guide = make_guide(make_autoencoder(), 10)
    guide.register_to_config(sample_size=8)
    guide.save_pretrained(tmp_path / "guide")
    own = {"guidance_scale": 3.0, "save_dtype": "float16"}
    places = {"guide": str(tmp_path / "guide"), "output_dir": str(tmp_path / "guided")}
    summary, alone = (train_denoiser(denoiser_config(**own | x)) for x in (places, {}))
    saved = LatentDiffusionPipeline.from_pretrained(summary.model_dir)
    assert hash_weights(saved.guide_unet) == hash_weights(guide.half().float())
    picture = "samples/step-000002.png"
    drawn = [(x.model_dir.parent / picture).read_bytes() for x in (summary, alone)]
    assert drawn[0] != drawn[1]
    training = json.loads((summary.model_dir / "training.json").read_text())
    assert training["guide"] == "guide", "no path of this machine"
    assert "guide_unet" in read_model_facts(summary.model_dir).weights


def test_a_denoiser_without_classes_is_guided_by_a_guide(denoiser_config, tmp_path):
    guide = make_guide(make_autoencoder(), None)
    guide.register_to_config(sample_size=8)
    guide.save_pretrained(tmp_path / "guide")
    own = {"conditional": False, "guidance_scale": 3.0, "max_train_steps": 1}
    summary = train_denoiser(denoiser_config(**own, guide=str(tmp_path / "guide")))
    saved = LatentDiffusionPipeline.from_pretrained(summary.model_dir)
    assert saved.config.guidance == {"guidance_scale": 3.0}
    assert hash_weights(saved.guide_unet) == hash_weights(guide)
    with pytest.raises(UserError, match="--conditional, or a --guide: remove it"):
        train_denoiser(denoiser_config(**own, output_dir=str(tmp_path / "alone")))


def test_a_guide_of_other_classes_is_one_line(denoiser_config, tmp_path):
    guide = make_guide(make_autoencoder(), 3)
    guide.register_to_config(sample_size=8)
    guide.save_pretrained(tmp_path / "guide")
    with pytest.raises(UserError, match=r"^--guide .* is not for this model: .* num_class_embeds"):
        train_denoiser(denoiser_config(guide=str(tmp_path / "guide")))


def test_a_model_saved_in_half_precision_has_the_rounded_weights(denoiser_config, plain):
    whole = plain.model_dir
    half = train_denoiser(denoiser_config(save_dtype="float16")).model_dir
    name = "diffusion_pytorch_model.safetensors"
    expected, saved = (load_file(folder / "unet" / name) for folder in (whole, half))
    assert {tensor.dtype for tensor in saved.values()} == {torch.float16}
    for key, tensor in expected.items():
        assert torch.equal(saved[key], tensor.half()), key
    assert (half / "vae" / name).read_bytes() == (whole / "vae" / name).read_bytes()
    loaded = LatentDiffusionPipeline.from_pretrained(half)
    assert loaded.unet.dtype == torch.float32
    training = json.loads((half / "training.json").read_text())
    assert training["unet_weights_sha256"] == hash_weights(loaded.unet)
    assert read_model_facts(half).training, "the report is about the weights that were saved"


def test_unconditional(denoiser_config):
    summary = train_denoiser(denoiser_config(conditional=False, max_train_steps=1))
    pipeline = LatentDiffusionPipeline.from_pretrained(summary.model_dir)
    assert pipeline.num_classes is None
    assert pipeline.id2label == {}


def test_rows_of_a_batch_do_not_depend_on_the_number_of_processes(denoiser_config):
    config = denoiser_config(label_dropout=0.5)
    posteriors = LatentPosteriors(torch.randn(8, 4, 8, 8), torch.rand(8, 4, 8, 8))
    batch = LatentBatch(posteriors, {"class_labels": torch.arange(8) % 10})
    scheduler = create_scheduler("flow")

    def draw(rows):
        null = {"class_labels": torch.full((rows.batch_size,), 10)}
        draws = ShardedDraws(config.seed, "denoiser", rows, torch.device("cpu"))
        share = batch.rows(rows.first, rows.first + rows.batch_size)
        return draw_batch(config, scheduler, share, null, draws, (5, 0))

    whole, conditions = draw(ProcessRows(8))
    labels = conditions["class_labels"]
    for processes in (2, 4):
        shares = [draw(ProcessRows(8 // processes, rank, processes)) for rank in range(processes)]
        for name in ("noisy_latents", "timesteps", "target", "weights"):
            joined = torch.cat([getattr(noised, name) for noised, _ in shares])
            assert torch.equal(joined, getattr(whole, name)), name
        assert torch.equal(torch.cat([share["class_labels"] for _, share in shares]), labels)
    assert set(labels.tolist()) - set(range(8)) == {10}
    assert set(labels.tolist()) & set(range(8))


def test_every_step_and_micro_step_draws_a_new_sample(denoiser_config):
    config, scheduler = denoiser_config(), create_scheduler("flow")
    posteriors = LatentPosteriors(torch.full((8, 4, 8, 8), 3.0), torch.full((8, 4, 8, 8), 0.5))
    batch = LatentBatch(posteriors, {"class_labels": torch.zeros(8, dtype=torch.int64)})

    draws = ShardedDraws(config.seed, "denoiser", ProcessRows(8), torch.device("cpu"))

    def latents(place) -> torch.Tensor:
        noised, conditions = draw_batch(config, scheduler, batch, {}, draws, place)
        assert conditions == {}, "an unconditional denoiser"
        sigmas = (noised.timesteps / 1000).view(-1, 1, 1, 1)
        return noised.noisy_latents - sigmas * noised.target

    drawn = {place: latents(place) for place in ((0, 0), (0, 1), (1, 0))}
    torch.testing.assert_close(latents((0, 1)), drawn[0, 1])
    for place, found in drawn.items():
        assert abs(found.mean() - 3) < 0.05
        assert abs(found.std() - 0.5) < 0.05
        for other in drawn.keys() - {place}:
            noise, other_noise = (x - 3 for x in (found, drawn[other]))
            assert abs((noise * other_noise).mean()) < 0.02, "the two samples are correlated"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vae": "/nowhere/model"}, "no autoencoder found at /nowhere/model"),
        ({"resolution": 36}, "of 8 to be denoised"),
        ({"channels": 3}, "3 channels and the autoencoder takes 1"),
        ({"crop": "random"}, "--crop random"),
    ],
)
def test_rejected_settings_leave_no_folder(denoiser_config, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        train_denoiser(denoiser_config(**changes))
    assert not (tmp_path / "denoiser").exists()
