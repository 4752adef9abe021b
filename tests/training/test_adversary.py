from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator

from hf_latent.errors import UserError
from hf_latent.training.adversary import Adversary, check_image_size
from hf_latent.training.discriminator import PatchDiscriminator
from hf_latent.training.losses import generator_hinge_loss, reconstruction_loss
from hf_latent.training.run.checkpoints import TrainingState
from hf_latent.training.start_autoencoder import TrainableAutoencoder
from tests.conftest import make_autoencoder

START = 5


@pytest.fixture
def game(autoencoder_config):
    """An autoencoder and its adversary: images, noise, and what the training has around them."""

    def start(channels: int = 3, **changes) -> SimpleNamespace:
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

    return start


def play(game, step: int, rows: slice = slice(None)) -> torch.Tensor:
    """Do one micro-step as the training does; return the reconstructions."""
    images, adversary = game.images[rows], game.adversary
    with game.accelerator.accumulate(game.model, *adversary.wrapped):
        reconstructions, _, _ = game.model(images, game.noise[rows])
        fidelity = reconstruction_loss(reconstructions, images)
        game.accelerator.backward(
            fidelity + adversary.adversarial_loss(reconstructions, fidelity, step)
        )
        if adversary.is_active(step):
            game.accelerator.backward(adversary.discriminator_loss(images, reconstructions))
    return reconstructions


def losses_by_autograd(game) -> tuple[torch.Tensor, torch.Tensor]:
    reconstructions, _, _ = game.model(game.images, game.noise)
    fidelity = reconstruction_loss(reconstructions, game.images)
    return fidelity, generator_hinge_loss(game.adversary.discriminator(reconstructions))


def ratio_by_autograd(game) -> float:
    last = game.vae.decoder.conv_out.weight
    fidelity, adversarial = (
        torch.autograd.grad(loss, last, retain_graph=True)[0].norm()
        for loss in losses_by_autograd(game)
    )
    return float(fidelity / (adversarial + 1e-4))


def gradients(model) -> list[torch.Tensor]:
    return [parameter.grad.clone() for parameter in model.parameters()]


def test_the_pull_is_the_weight_times_the_generators_loss(game):
    game = game()
    game.adversary.weight = 3.5
    _, adversarial = losses_by_autograd(game)
    expected = torch.autograd.grad(adversarial, list(game.vae.parameters()))
    reconstructions, _, _ = game.model(game.images, game.noise)
    fidelity = reconstruction_loss(reconstructions, game.images)
    game.adversary.adversarial_loss(reconstructions, fidelity, START).backward()
    assert max(gradient.abs().max() for gradient in expected) > 1e-4
    for (name, parameter), gradient in zip(game.vae.named_parameters(), expected, strict=True):
        torch.testing.assert_close(
            parameter.grad, 3.5 * gradient, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_no_gradient_of_the_autoencoders_step_reaches_the_discriminator(game):
    game = game()
    game.adversary.weight = 3.5
    reconstructions, _, _ = game.model(game.images, game.noise)
    fidelity = reconstruction_loss(reconstructions, game.images)
    pull = game.adversary.adversarial_loss(reconstructions, fidelity, START)
    game.accelerator.backward(fidelity + pull)
    assert all(parameter.grad is None for parameter in game.adversary.discriminator.parameters())
    assert all(parameter.grad.abs().max() > 0 for parameter in game.vae.decoder.parameters())


def test_no_gradient_of_the_discriminators_step_reaches_the_autoencoder(game):
    game = game()
    game.adversary.weight = 3.5
    reconstructions, _, _ = game.model(game.images, game.noise)
    fidelity = reconstruction_loss(reconstructions, game.images)
    game.accelerator.backward(
        fidelity + game.adversary.adversarial_loss(reconstructions, fidelity, START)
    )
    before = gradients(game.vae)
    # Its graph is still there: a gradient would find its way.
    reconstructions, _, _ = game.model(game.images, game.noise)
    game.accelerator.backward(game.adversary.discriminator_loss(game.images, reconstructions))
    for found, expected in zip(gradients(game.vae), before, strict=True):
        assert torch.equal(found, expected)
    # But for the last bias, which real and fake pull to opposite sides.
    weights = [p for p in game.adversary.discriminator.parameters() if p.ndim == 4]
    assert all(weight.grad.abs().max() > 0 for weight in weights)


def test_the_discriminators_loss_is_the_hinge_of_both(game):
    game = game()
    reconstructions, _, _ = game.model(game.images, game.noise)
    real, fake = (game.adversary.discriminator(x) for x in (game.images, reconstructions))
    expected = 0.5 * ((1 - real).clamp(min=0).mean() + (1 + fake).clamp(min=0).mean())
    found = game.adversary.discriminator_loss(game.images, reconstructions)
    torch.testing.assert_close(found, expected)
    figures = game.adversary.figures()
    assert figures["discriminator_real_logit"] == pytest.approx(real.mean().item(), abs=1e-5)
    assert figures["discriminator_fake_logit"] == pytest.approx(fake.mean().item(), abs=1e-5)


def test_the_weight_is_the_ratio_of_two_gradients_taken_apart(game):
    game = game()
    play(game, START)
    game.adversary.update_weight(START)
    expected = 0.7 * ratio_by_autograd(game)
    assert expected > 1e-2
    assert game.adversary.weight == pytest.approx(expected, rel=1e-4)
    # What was measured is forgotten: the same batch again gives the same weight.
    play(game, START + 1)
    game.adversary.update_weight(START + 1)
    assert game.adversary.weight == pytest.approx(expected, rel=1e-4)


def test_a_batch_in_two_halves_weighs_and_pulls_the_same(game):
    found = []
    for parts, cuts in ((1, [slice(None)]), (2, [slice(0, 2), slice(2, 4)])):
        one = game(gradient_accumulation_steps=parts)
        one.adversary.weight = 2.0
        for rows in cuts:
            play(one, START, rows)
        one.adversary.update_weight(START)
        found.append((one.adversary.weight, one.vae, one.adversary.discriminator))
    (weight, *models), (weight_in_halves, *models_in_halves) = found
    assert weight_in_halves == pytest.approx(weight, rel=1e-5)
    for model, in_halves in zip(models, models_in_halves, strict=True):
        for expected, gradient in zip(gradients(model), gradients(in_halves), strict=True):
            torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)


def test_nothing_is_pulled_before_the_start_and_the_step_before_measures(game):
    game = game()
    adversary, last = game.adversary, game.vae.decoder.conv_out.weight
    for step in range(START + 1):
        weight = adversary.weight
        reconstructions, _, _ = game.model(game.images, game.noise)
        fidelity = reconstruction_loss(reconstructions, game.images)
        pull = adversary.adversarial_loss(reconstructions, fidelity, step)
        pulled = 0.0
        if pull.requires_grad:
            pulled = torch.autograd.grad(pull, last, retain_graph=True)[0].norm().item()
        adversary.update_weight(step)
        assert adversary.is_active(step) == (step == START)
        assert (pulled > 0) == (step == START)
        assert (weight > 0) == (step == START)
    assert weight == pytest.approx(0.7 * ratio_by_autograd(game), rel=1e-4)
    # Nor where a checkpoint's weight is there already.
    assert adversary.adversarial_loss(reconstructions, fidelity, START - 1) == 0


def test_a_step_that_is_not_finite_leaves_the_weight(game, capsys):
    game = game()
    game.adversary.weight = 2.0
    game.images[0, 0, 0, 0] = torch.nan
    play(game, START)
    game.adversary.update_weight(START)
    assert game.adversary.weight == 2.0
    assert capsys.readouterr().out == (
        f"step {START + 1}: the gradients that weigh the adversarial loss are not finite; "
        "its weight stays 2\n"
    )
    game.images.nan_to_num_(0)
    play(game, START)
    game.adversary.update_weight(START)
    assert game.adversary.weight == pytest.approx(0.7 * ratio_by_autograd(game), rel=1e-4)
    assert capsys.readouterr().out == ""


def test_the_colour_of_transparent_pixels_is_not_played_for(game):
    game = game(channels=4)
    adversary = game.adversary
    assert adversary.discriminator.config.in_channels == 7
    adversary.weight = 3.5
    colour = torch.tensor([True, True, True, False]).view(1, 4, 1, 1)
    left = (torch.arange(16) < 8).view(1, 1, 1, 16)

    def with_hidden(images: torch.Tensor, hidden: float, shown: float = 0.0) -> torch.Tensor:
        """Make the left half transparent, over a hidden colour."""
        images = images.where(~left | colour, -1.0).where(~left | ~colour, hidden)
        return images.where(left | ~colour, images + shown)

    def played(hidden: float, shown: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
        images = with_hidden(game.images, hidden, shown)
        reconstructions = with_hidden(game.model(game.images, game.noise)[0], -hidden)
        fidelity = reconstruction_loss(reconstructions, images)
        pull = adversary.adversarial_loss(reconstructions, fidelity, START)
        (gradient,) = torch.autograd.grad(pull, adversary.last_layer, retain_graph=True)
        return adversary.discriminator_loss(images, reconstructions), gradient

    loss, gradient = played(-1.0)
    for hidden in (0.0, 0.9):
        other_loss, other_gradient = played(hidden)
        assert torch.equal(other_loss, loss)
        assert torch.equal(other_gradient, gradient)
    assert gradient[3].abs().max() > 0, "alpha is played for"
    assert gradient[:3].abs().max() > 0, "so is the colour that is seen"
    assert not torch.equal(played(-1.0, shown=0.5)[0], loss)


def test_a_weight_of_0_makes_no_discriminator(game):
    game = game(discriminator_weight=0.0, discriminator_start=0)
    assert list(game.state.models) == ["vae"]
    assert game.state.optimizers == game.state.others == {}
    reconstructions = play(game, 0)
    assert not game.adversary.is_active(0)
    assert game.adversary.adversarial_loss(reconstructions, reconstructions.mean(), 0) == 0
    game.adversary.update_weight(0)
    assert game.adversary.figures() == {}
    fidelity = reconstruction_loss(game.model(game.images, game.noise)[0], game.images)
    expected = torch.autograd.grad(fidelity, list(game.vae.parameters()))
    for found, gradient in zip(gradients(game.vae), expected, strict=True):
        torch.testing.assert_close(found, gradient, rtol=1e-5, atol=1e-7)


def test_it_joins_the_training_and_its_state_goes_through_a_checkpoint(game):
    first, second = game(), game()
    assert first.state.models["discriminator"] is first.adversary.discriminator
    assert first.state.others["adversary"] is first.adversary
    (group,) = first.state.optimizers["discriminator"].param_groups
    assert {id(p) for p in group["params"]} == {
        id(p) for p in first.adversary.discriminator.parameters()
    }
    play(first, START)
    first.adversary.update_weight(START)
    assert first.adversary.weight > 0
    second.adversary.load_state(first.adversary.state())
    assert second.adversary.weight == first.adversary.weight


def test_the_same_seed_makes_the_same_discriminator(game):
    first, second, third = (game(seed=seed).adversary.discriminator for seed in (1, 1, 2))
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name
    assert not torch.equal(first.layers[0].weight, third.layers[0].weight)


@pytest.mark.parametrize("num_layers", [1, 2, 3, 4])
def test_images_without_room_for_one_patch_are_refused(autoencoder_config, num_layers):
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
