from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator

from hf_latent.errors import UserError
from hf_latent.training.adversary import Adversary, check_image_size
from hf_latent.training.discriminator import PatchDiscriminator
from hf_latent.training.losses import generator_hinge_loss, reconstruction_loss
from hf_latent.training.run.checkpoints import TrainingState
from hf_latent.training.start.autoencoder import TrainableAutoencoder
from tests.conftest import make_autoencoder

START = 5


@pytest.fixture
def start(autoencoder_config):
    """Return a function that makes an autoencoder, its adversary, images and noise."""

    def start_training(channels: int = 3, **changes) -> SimpleNamespace:
        settings = {
            "discriminator_weight": 0.7,
            "discriminator_start": START,
            "max_train_steps": START + 3,
            "discriminator_base_channels": 8,
            "discriminator_num_layers": 2,
        }
        config = autoencoder_config(**settings | changes)
        vae = make_autoencoder(channels=channels).train()
        accelerator = Accelerator(
            gradient_accumulation_steps=config.gradient_accumulation_steps, cpu=True
        )
        state = TrainingState({"vae": vae}, {}, {}, {})
        adversary = Adversary(config, channels, vae, state, accelerator)
        generator = torch.Generator().manual_seed(3)
        return SimpleNamespace(
            vae=vae,
            adversary=adversary,
            state=state,
            accelerator=accelerator,
            model=TrainableAutoencoder(vae),
            images=torch.rand(4, channels, 16, 16, generator=generator) * 2 - 1,
            noise=torch.randn(4, 4, 4, 4, generator=generator),
        )

    return start_training


def micro_step(training, step: int, rows: slice = slice(None)) -> torch.Tensor:
    """Do one micro-step as in the training; return the reconstructions."""
    images, adversary = training.images[rows], training.adversary
    with training.accelerator.accumulate(training.model, *adversary.wrapped):
        reconstructions, *_ = training.model(images, training.noise[rows])
        fidelity = reconstruction_loss(reconstructions, images)
        training.accelerator.backward(
            fidelity + adversary.adversarial_loss(reconstructions, fidelity, step)
        )
        if adversary.is_active(step):
            training.accelerator.backward(adversary.discriminator_loss(images, reconstructions))
    return reconstructions


def losses_by_autograd(training) -> tuple[torch.Tensor, torch.Tensor]:
    reconstructions, *_ = training.model(training.images, training.noise)
    fidelity = reconstruction_loss(reconstructions, training.images)
    return fidelity, generator_hinge_loss(training.adversary.discriminator(reconstructions))


def ratio_by_autograd(training) -> float:
    last = training.vae.decoder.conv_out.weight
    fidelity, adversarial = (
        torch.autograd.grad(loss, last, retain_graph=True)[0].norm()
        for loss in losses_by_autograd(training)
    )
    return float(fidelity / (adversarial + 1e-4))


def gradients(model) -> list[torch.Tensor]:
    return [parameter.grad.clone() for parameter in model.parameters()]


def test_the_adversarial_gradient_is_the_weight_times_that_of_the_generators_loss(start):
    training = start()
    training.adversary.weight = 3.5
    _, adversarial = losses_by_autograd(training)
    expected = torch.autograd.grad(adversarial, list(training.vae.parameters()))
    reconstructions, *_ = training.model(training.images, training.noise)
    fidelity = reconstruction_loss(reconstructions, training.images)
    training.adversary.adversarial_loss(reconstructions, fidelity, START).backward()
    assert max(gradient.abs().max() for gradient in expected) > 1e-4
    for (name, parameter), gradient in zip(training.vae.named_parameters(), expected, strict=True):
        torch.testing.assert_close(
            parameter.grad, 3.5 * gradient, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_the_discriminator_gets_no_gradient_from_the_adversarial_loss(start):
    training = start()
    training.adversary.weight = 3.5
    reconstructions, *_ = training.model(training.images, training.noise)
    fidelity = reconstruction_loss(reconstructions, training.images)
    adversarial = training.adversary.adversarial_loss(reconstructions, fidelity, START)
    training.accelerator.backward(fidelity + adversarial)
    assert all(
        parameter.grad is None for parameter in training.adversary.discriminator.parameters()
    )
    assert all(parameter.grad.abs().max() > 0 for parameter in training.vae.decoder.parameters())


def test_the_autoencoder_gets_no_gradient_from_the_discriminators_loss(start):
    training = start()
    training.adversary.weight = 3.5
    reconstructions, *_ = training.model(training.images, training.noise)
    fidelity = reconstruction_loss(reconstructions, training.images)
    training.accelerator.backward(
        fidelity + training.adversary.adversarial_loss(reconstructions, fidelity, START)
    )
    before = gradients(training.vae)
    # The graph still exists: a gradient could flow.
    reconstructions, *_ = training.model(training.images, training.noise)
    training.accelerator.backward(
        training.adversary.discriminator_loss(training.images, reconstructions)
    )
    for found, expected in zip(gradients(training.vae), before, strict=True):
        assert torch.equal(found, expected)
    # The gradients of the last bias cancel: one from images, one from reconstructions.
    weights = [p for p in training.adversary.discriminator.parameters() if p.ndim == 4]
    assert all(weight.grad.abs().max() > 0 for weight in weights)


def test_the_discriminators_loss_is_the_hinge_loss_of_images_and_reconstructions(start):
    training = start()
    reconstructions, *_ = training.model(training.images, training.noise)
    real, fake = (training.adversary.discriminator(x) for x in (training.images, reconstructions))
    expected = 0.5 * ((1 - real).clamp(min=0).mean() + (1 + fake).clamp(min=0).mean())
    found = training.adversary.discriminator_loss(training.images, reconstructions)
    torch.testing.assert_close(found, expected)
    figures = training.adversary.figures()
    assert figures["discriminator_real_logit"] == pytest.approx(real.mean().item(), abs=1e-5)
    assert figures["discriminator_fake_logit"] == pytest.approx(fake.mean().item(), abs=1e-5)


def test_the_weight_is_the_ratio_of_two_separate_gradient_norms(start):
    training = start()
    micro_step(training, START)
    training.adversary.update_weight(START)
    expected = 0.7 * ratio_by_autograd(training)
    assert expected > 1e-2
    assert training.adversary.weight.item() == pytest.approx(expected, rel=1e-4)
    # The measurement starts from 0: the same batch gives the same weight again.
    micro_step(training, START + 1)
    training.adversary.update_weight(START + 1)
    assert training.adversary.weight.item() == pytest.approx(expected, rel=1e-4)


def test_a_batch_in_two_halves_has_the_same_weight_and_gradients(start):
    found = []
    for parts, cuts in ((1, [slice(None)]), (2, [slice(0, 2), slice(2, 4)])):
        one = start(gradient_accumulation_steps=parts)
        one.adversary.weight = 2.0
        for rows in cuts:
            micro_step(one, START, rows)
        one.adversary.update_weight(START)
        found.append((one.adversary.weight, one.vae, one.adversary.discriminator))
    (weight, *models), (weight_in_halves, *models_in_halves) = found
    assert weight_in_halves.item() == pytest.approx(weight.item(), rel=1e-5)
    for model, in_halves in zip(models, models_in_halves, strict=True):
        for expected, gradient in zip(gradients(model), gradients(in_halves), strict=True):
            torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)


def test_the_step_before_the_start_measures_the_first_weight(start):
    training = start()
    adversary, last = training.adversary, training.vae.decoder.conv_out.weight
    for step in range(START + 1):
        weight = adversary.weight
        reconstructions, *_ = training.model(training.images, training.noise)
        fidelity = reconstruction_loss(reconstructions, training.images)
        adversarial = adversary.adversarial_loss(reconstructions, fidelity, step)
        norm = 0.0
        if adversarial.requires_grad:
            norm = torch.autograd.grad(adversarial, last, retain_graph=True)[0].norm().item()
        adversary.update_weight(step)
        assert adversary.is_active(step) == (step == START)
        assert (norm > 0) == (step == START)
        assert (weight > 0) == (step == START)
    assert weight.item() == pytest.approx(0.7 * ratio_by_autograd(training), rel=1e-4)
    # Also with a weight from a checkpoint.
    assert adversary.adversarial_loss(reconstructions, fidelity, START - 1) == 0


def test_a_step_that_is_not_finite_keeps_the_weight(start, capsys):
    training = start()
    training.adversary.weight = 2.0
    training.images[0, 0, 0, 0] = torch.nan
    micro_step(training, START)
    training.adversary.update_weight(START)
    assert training.adversary.weight == 2.0
    training.images.nan_to_num_(0)
    micro_step(training, START + 1)
    training.adversary.update_weight(START + 1)
    assert training.adversary.weight.item() == pytest.approx(
        0.7 * ratio_by_autograd(training), rel=1e-4
    )
    training.adversary.update_weight(START + 2)
    assert capsys.readouterr().err == (  # one step later
        f"warning: step {START + 1}: the gradients that weigh the adversarial loss are not finite; "
        "its weight stays as it was\n"
    )


def test_the_colour_of_transparent_pixels_has_no_effect(start):
    training = start(channels=4)
    adversary = training.adversary
    assert adversary.discriminator.config.in_channels == 7
    adversary.weight = 3.5
    colour = torch.tensor([True, True, True, False]).view(1, 4, 1, 1)
    left = (torch.arange(16) < 8).view(1, 1, 1, 16)

    def with_hidden(images: torch.Tensor, hidden: float, shown: float = 0.0) -> torch.Tensor:
        """Make the left half transparent, with a hidden colour."""
        images = images.where(~left | colour, -1.0).where(~left | ~colour, hidden)
        return images.where(left | ~colour, images + shown)

    def losses(hidden: float, shown: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
        images = with_hidden(training.images, hidden, shown)
        reconstructions = with_hidden(training.model(training.images, training.noise)[0], -hidden)
        fidelity = reconstruction_loss(reconstructions, images)
        adversarial = adversary.adversarial_loss(reconstructions, fidelity, START)
        (gradient,) = torch.autograd.grad(adversarial, adversary.last_layer, retain_graph=True)
        return adversary.discriminator_loss(images, reconstructions), gradient

    loss, gradient = losses(-1.0)
    for hidden in (0.0, 0.9):
        other_loss, other_gradient = losses(hidden)
        assert torch.equal(other_loss, loss)
        assert torch.equal(other_gradient, gradient)
    assert gradient[3].abs().max() > 0, "alpha has an effect"
    assert gradient[:3].abs().max() > 0, "visible colour has an effect"
    assert not torch.equal(losses(-1.0, shown=0.5)[0], loss)


def test_a_weight_of_0_makes_no_discriminator(start):
    training = start(discriminator_weight=0.0, discriminator_start=0)
    assert list(training.state.models) == ["vae"]
    assert training.state.optimizers == training.state.others == {}
    reconstructions = micro_step(training, 0)
    assert not training.adversary.is_active(0)
    assert training.adversary.adversarial_loss(reconstructions, reconstructions.mean(), 0) == 0
    training.adversary.update_weight(0)
    assert training.adversary.figures() == {}
    fidelity = reconstruction_loss(
        training.model(training.images, training.noise)[0], training.images
    )
    expected = torch.autograd.grad(fidelity, list(training.vae.parameters()))
    for found, gradient in zip(gradients(training.vae), expected, strict=True):
        torch.testing.assert_close(found, gradient, rtol=1e-5, atol=1e-7)


def test_the_adversary_joins_the_training_state_and_keeps_its_weight(start):
    first, second = start(), start()
    assert first.state.models["discriminator"] is first.adversary.discriminator
    assert first.state.others["adversary"] is first.adversary
    (group,) = first.state.optimizers["discriminator"].param_groups
    assert {id(p) for p in group["params"]} == {
        id(p) for p in first.adversary.discriminator.parameters()
    }
    micro_step(first, START)
    first.adversary.update_weight(START)
    assert first.adversary.weight > 0
    second.adversary.load_state(first.adversary.state())
    assert second.adversary.weight == first.adversary.weight


def test_the_same_seed_makes_the_same_discriminator(start):
    first, second, third = (start(seed=seed).adversary.discriminator for seed in (1, 1, 2))
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name
    assert not torch.equal(first.layers[0].weight, third.layers[0].weight)


@pytest.mark.parametrize("num_layers", [1, 2, 3, 4])
def test_images_too_small_for_one_patch_are_refused(autoencoder_config, num_layers):
    config = autoencoder_config(discriminator_weight=0.5, discriminator_num_layers=num_layers)
    discriminator = PatchDiscriminator(1, base_channels=8, num_layers=num_layers)
    for size in range(4, 64, 2):
        try:
            check_image_size(config.discriminator_num_layers, 64, size)
        except UserError as error:
            assert "--discriminator_num_layers" in str(error)
            with pytest.raises(RuntimeError):
                discriminator(torch.zeros(1, 1, 64, size))
        else:
            assert discriminator(torch.zeros(1, 1, 64, size)).shape[3] >= 1
