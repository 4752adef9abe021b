"""Step 3 of 4: noise to latents, one scheduler step after the other."""

import inspect
from collections.abc import Callable, Collection, Sequence

import torch
from diffusers import SchedulerMixin, UNet2DModel

# Of the configurations of a denoiser and of its guide, what must be the same.
GUIDE_SHARES = (
    *("in_channels", "out_channels", "sample_size"),
    *("class_embed_type", "num_class_embeds"),
)


def check_latents(unet: UNet2DModel, latents: torch.Tensor) -> None:
    """Refuse latents that the denoiser cannot take.

    Args:
        unet: the denoiser.
        latents: `(B, c, h, w)`.

    Raises:
        ValueError: if the channels do not fit, or h or w is no multiple of 2^(levels-1).
    """
    if latents.ndim != 4:
        raise ValueError(f"latents must have the shape (B, c, h, w), not {tuple(latents.shape)}")
    multiple = 2 ** (len(unet.config.block_out_channels) - 1)
    channels, height, width = latents.shape[1:]
    if channels != unet.config.in_channels:
        raise ValueError(
            f"the latents have {channels} channels and the denoiser takes {unet.config.in_channels}"
        )
    if height % multiple or width % multiple:
        raise ValueError(
            f"latents of {height}x{width} do not fit the denoiser: height and width must be "
            f"multiples of {multiple}, so the image's multiples of the autoencoder's downsampling "
            f"factor times {multiple}"
        )


def check_guide(unet: UNet2DModel, guide_unet: UNet2DModel) -> None:
    """Refuse a guide that cannot stand beside the denoiser.

    Whether both were trained on the same latents, noise levels and objective cannot be seen from
    their weights: a guide of others makes images without sense.

    Args:
        unet: the denoiser.
        guide_unet: the weaker denoiser; it may be narrower, or have fewer levels.

    Raises:
        ValueError: if channels, size, classes or number format differ, or the guide has more
            levels, so that it could not take all latents that the denoiser takes.
    """
    shown = []
    for model in (guide_unet, unet):
        known = {name: model.config.get(name) for name in GUIDE_SHARES}
        size = known["sample_size"]
        known["sample_size"] = [size, size] if isinstance(size, int) else list(size or ())
        shown.append(known | {"dtype": model.dtype})
    for name, own in shown[1].items():
        if shown[0][name] != own:
            raise ValueError(
                f"guide_unet has {name} {shown[0][name]}, and the denoiser {own}: use a guide of "
                "the same latents and classes, in the same number format"
            )
    levels = [len(model.config.block_out_channels) for model in (guide_unet, unet)]
    if levels[0] > levels[1]:
        raise ValueError(
            f"guide_unet has {levels[0]} levels, and the denoiser {levels[1]}: use a guide with no "
            "more levels"
        )


def predict(
    unet: UNet2DModel,
    model_input: torch.Tensor,
    timestep: torch.Tensor,
    class_labels: torch.Tensor | None = None,
    guidance: float | None = None,
    guide_unet: UNet2DModel | None = None,
) -> torch.Tensor:
    """Evaluate the denoiser once, with guidance where it is asked for.

    Without a guide it is classifier-free guidance, `null + guidance (conditional - null)` (Ho and
    Salimans 2022, equation 6, with guidance = 1 + w); both branches go through the network in one
    batch. With a guide it is autoguidance, `guide + guidance (denoiser - guide)`, both networks
    with the same labels (Karras et al. 2024, "Guiding a Diffusion Model with a Bad Version of
    Itself"; there of denoised latents, and the same for what any objective predicts: the one is
    affine in the other). There is no second branch where guidance is None or 1.

    Args:
        unet: the denoiser. Its last class embedding is the null label.
        model_input: `(B, c, h, w)` float.
        timestep: a tensor, 0-d or `(B,)` (a Python float would be cut to an integer).
        class_labels: `(B,)` int64, or None for a denoiser without classes.
        guidance: the guidance scale.
        guide_unet: a weaker denoiser of the same latents, classes and objective, see `check_guide`;
            None: classifier-free guidance.

    Returns:
        `(B, c, h, w)`, the prediction on the objective's own terms.
    """
    timestep = timestep.to(model_input.device)
    if guide_unet is not None and guidance is not None and guidance != 1:
        strong, weak = (
            network(model_input, timestep, class_labels=class_labels).sample
            for network in (unet, guide_unet)
        )
        return weak + guidance * (strong - weak)
    if class_labels is None or guidance is None or guidance == 1:
        return unet(model_input, timestep, class_labels=class_labels).sample
    null_labels = torch.full_like(class_labels, unet.config.num_class_embeds - 1)
    if timestep.ndim:
        timestep = torch.cat([timestep, timestep])
    conditional, null = unet(
        torch.cat([model_input, model_input]),
        timestep,
        class_labels=torch.cat([class_labels, null_labels]),
    ).sample.chunk(2)
    return null + guidance * (conditional - null)


@torch.no_grad()
def denoise_latents(
    unet: UNet2DModel,
    scheduler: SchedulerMixin,
    latents: torch.Tensor,
    timesteps: Collection[torch.Tensor] | torch.Tensor,
    class_labels: torch.Tensor | None = None,
    guidance: float | Sequence[float] | None = None,
    generator: torch.Generator | list[torch.Generator] | None = None,
    after_step: Callable[[int, torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
    guide_unet: UNet2DModel | None = None,
) -> torch.Tensor:
    """Remove the noise from latents, step by step.

    Args:
        unet: the denoiser.
        scheduler: a stock scheduler whose `set_timesteps` has been called.
        latents: `(B, c, h, w)` float, at the noise level of the first timestep.
        timesteps: the scheduler's timesteps, or the last of them (image to image).
        class_labels: `(B,)` int64, or None for a denoiser without classes.
        guidance: the guidance scale, or one a timestep; None or 1: off.
        generator: draws the noise of stochastic schedulers.
        after_step: `after_step(i, t, latents) -> latents`, called after every step; its answer is
            what the next step starts from.
        guide_unet: a weaker denoiser, whose guidance needs no labels, see `predict`.

    Returns:
        `(B, c, h, w)` float, noise-free latents.

    Raises:
        ValueError: if the latents do not fit the denoiser, there are more or fewer labels than
            latents, guidance is asked of a denoiser without classes or guide, its scales are not as
            many as the timesteps, or the guide does not fit (`check_guide`).
    """
    check_latents(unet, latents)
    if class_labels is not None and len(class_labels) != len(latents):
        raise ValueError(f"{len(class_labels)} class labels do not fit {len(latents)} latents")
    scales = guidance if isinstance(guidance, Sequence) else [guidance] * len(timesteps)
    if len(scales) != len(timesteps):
        raise ValueError(f"{len(scales)} guidance scales do not fit {len(timesteps)} timesteps")
    if guide_unet is not None:
        check_guide(unet, guide_unet)
    elif class_labels is None and set(scales) - {None, 1}:
        raise ValueError(
            "guidance needs class labels and a denoiser that was trained with them, or a guide_unet"
        )
    step_arguments = {}
    if "generator" in inspect.signature(scheduler.step).parameters:
        step_arguments["generator"] = generator
    for i, t in enumerate(timesteps):
        model_input = latents
        if hasattr(scheduler, "scale_model_input"):
            model_input = scheduler.scale_model_input(latents, t)
        model_output = predict(unet, model_input, t, class_labels, scales[i], guide_unet)
        latents = scheduler.step(model_output, t, latents, **step_arguments).prev_sample
        if after_step is not None:
            latents = after_step(i, t, latents)
    return latents
