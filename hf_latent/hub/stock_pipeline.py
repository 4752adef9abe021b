"""A model as a stock pipeline of diffusers.

It becomes a `StableDiffusionPipeline` with prompts, a `DiTPipeline` with classes, and an
`LDMPipeline` with neither. None of them supports Euler steps of a flow or latent statistics. The
weights take over what they do not do.
"""

import copy
from collections import Counter
from typing import TYPE_CHECKING, TypeAlias

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiTPipeline,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    LDMPipeline,
    SchedulerMixin,
    UNet2DModel,
    UniPCMultistepScheduler,
)
from torch import nn

from hf_latent.errors import UserError, cause_of
from hf_latent.hub.stable_diffusion import to_stable_diffusion
from hf_latent.models.fold import LatentStatistics, fold_latent_scale, prepare_for_training
from hf_latent.models.load import Autoencoder
from hf_latent.pipeline import LatentDiffusionPipeline
from hf_latent.pipeline.autoencoders import find_kind, latent_channels
from hf_latent.pipeline.conditions import Denoiser, has_prompts
from hf_latent.pipeline.denoise import choose_sampling
from hf_latent.pipeline.samplers import check_removes_noise, create_sampler

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

StockPipeline: TypeAlias = "DiTPipeline | LDMPipeline | StableDiffusionPipeline"
STABLE_DIFFUSION = "StableDiffusionPipeline"

NULL_LABEL = 1000  # DiTPipeline's, which is made for ImageNet
# Schedulers that all three pipelines use as they are: they begin with noise of deviation 1.
KEPT_SCHEDULERS = (DDIMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler)
# Settings of a flow's schedulers that change its sigmas; off by default.
OTHER_FLOWS = (
    "use_dynamic_shifting",
    "shift_terminal",
    "invert_sigmas",
    "stochastic_sampling",
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
)
# Rounding errors lower whole timesteps slightly, and truncation would then make them one smaller.
# This factor raises them by less than 0.0001.
ROUNDING = 1 + 1e-7


def to_stock_pipeline(pipeline: LatentDiffusionPipeline) -> StockPipeline:
    """Create a stock pipeline that draws a model's images.

    It guides classes and prompts at all noise levels, only above 1, and by no guide. With this
    guidance its images, in [0, 1], are within 1e-4 of the pipeline's own from the same noise, but
    not for all flows: the stock pipelines truncate timesteps to whole numbers, and single pixels
    differ by a few hundredths. With `euler` a flow without shift is not truncated at a number of
    steps that divides the scheduler's `num_train_timesteps` (1,000). The sampler `heun` of a flow
    becomes `euler`.

    Args:
        pipeline: is not changed.

    Returns:
        A pipeline that plain diffusers loads, once it is saved, without remote code.

    Raises:
        UserError: if the stock pipeline cannot draw this model's images.
    """
    unet, (height, width) = copy.deepcopy(pipeline.unet), pipeline.latent_size
    if height != width and not has_prompts(pipeline.unet):
        raise UserError(
            f"the denoiser's latents are {height}x{width}, and {stock_class_name(pipeline)} "
            "draws squares only: share the model itself"
        )
    unet.register_to_config(sample_size=height if height == width else (height, width))
    scheduler = pipeline.scheduler
    if not keeps_scheduler(pipeline):
        scheduler, factor = convert_flow_scheduler(scheduler)
        _scale_output(unet, factor)
    _check_steps(pipeline, scheduler)
    vae = _fold_foreign_scale(pipeline.vae)
    if has_prompts(pipeline.unet):
        return to_stable_diffusion(pipeline, vae, unet, scheduler)
    if pipeline.num_classes is None:
        return LDMPipeline(vqvae=vae, unet=unet, scheduler=scheduler)
    id2label = _check_names(pipeline)
    _widen_classes(unet, pipeline.num_classes)
    created = DiTPipeline(transformer=unet, vae=vae, scheduler=scheduler, id2label=id2label)
    created.register_to_config(id2label=id2label)
    return created


def stock_class_name(pipeline: LatentDiffusionPipeline) -> str:
    """Return the name of the class of a model's stock pipeline."""
    if has_prompts(pipeline.unet):
        return STABLE_DIFFUSION
    return "LDMPipeline" if pipeline.num_classes is None else "DiTPipeline"


def keeps_scheduler(pipeline: LatentDiffusionPipeline) -> bool:
    """Return whether the stock pipeline uses the model's own scheduler; if not, it is a flow's.

    Raises:
        UserError: if it can neither use nor replace the scheduler.
    """
    scheduler = pipeline.scheduler
    draws_noise = str(scheduler.config.get("algorithm_type")).startswith("sde")
    if isinstance(scheduler, KEPT_SCHEDULERS) and not draws_noise:
        return True
    flows = [FlowMatchEulerDiscreteScheduler]
    if not pipeline.config.get("distilled"):
        flows.append(FlowMatchHeunDiscreteScheduler)
    if not isinstance(scheduler, tuple(flows)):
        raise UserError(
            f"this model's scheduler is {type(scheduler).__name__}{' with noise' * draws_noise}, "
            f"which {stock_class_name(pipeline)} does not support: save the model with another "
            "one (pipeline.use_sampler), or share the model itself"
        )
    return False


def _check_steps(pipeline: LatentDiffusionPipeline, scheduler: SchedulerMixin) -> None:
    """Raise UserError if the scheduler of a stock pipeline cannot make the model's own steps."""
    steps, _ = choose_sampling(pipeline, pipeline.num_classes is not None)
    try:
        check_removes_noise(pipeline.trained_scheduler, pipeline.scheduler, steps)
        stock = type(scheduler).from_config(scheduler.config)
        stock.set_timesteps(steps)
        if len(stock.timesteps.unique()) < len(stock.timesteps):
            raise ValueError("two steps begin at the same whole timestep")
    # The schedulers raise many exception types for what they cannot do.
    except Exception as error:
        raise UserError(
            f"{type(scheduler).__name__} cannot make {steps} steps in a stock pipeline "
            f"({cause_of(error)}): save the model with another sampler or number of steps"
        ) from error


def _check_names(pipeline: LatentDiffusionPipeline) -> dict[int, str] | None:
    """Return the names of the classes; UserError if `DiTPipeline` cannot have these classes."""
    if (pipeline.num_classes or 0) > NULL_LABEL:
        raise UserError(
            f"the model has {pipeline.num_classes:,} classes, and DiTPipeline at most "
            f"{NULL_LABEL:,}: share the model itself"
        )
    names = {int(label): str(name) for label, name in pipeline.id2label.items()}
    # DiTPipeline splits names at commas, since those of ImageNet are lists of synonyms.
    split = [part.strip() for name in names.values() for part in name.split(",")]
    if twice := [part for part, count in Counter(split).items() if count > 1]:
        raise UserError(
            f"DiTPipeline would find two classes of the name {twice[0]!r}: save the model with "
            "other names (pipeline.register_to_config(id2label=...))"
        )
    return names or None


def _widen_classes(unet: UNet2DModel, num_classes: int) -> None:
    """Give a denoiser the labels of `DiTPipeline`, in place: all that are no class draw none."""
    embeddings = unet.class_embedding.weight.detach()
    table = embeddings[num_classes].repeat(NULL_LABEL + 1, 1)
    table[:num_classes] = embeddings[:num_classes]
    unet.class_embedding = nn.Embedding.from_pretrained(table, freeze=False)
    unet.register_to_config(num_class_embeds=NULL_LABEL + 1)


def convert_flow_scheduler(
    scheduler: SchedulerMixin,
) -> tuple[DPMSolverMultistepScheduler, float]:
    """Convert a flow's scheduler to a first-order one that stock pipelines can use.

    The first-order update of DPM-Solver++ (Lu et al. 2022),
    x_t = (sigma_t / sigma_s) x_s + (alpha_t - alpha_s sigma_t / sigma_s) x_0,
    is Euler's method if alpha = 1 - sigma and x_0 = x_s - sigma_s v. But with N timesteps, the
    scheduler's sigmas begin at 1 - 1/N, and it truncates its timesteps, sigma N, to whole numbers.
    With N = T + 1, for a flow of T timesteps, its timesteps are the flow's (almost, with a shift).
    Its sigmas are the flow's times one factor. If the denoiser's output is divided by that factor,
    the steps are the same. For u from 1 to 0 in equal steps, u' = u T/N and the shift s,
    s' u' / (1 + (s' - 1) u') = factor * s u / (1 + (s - 1) u)
    with s' = 1 + (s - 1) N/T and factor = (T/N + s - 1) / s.

    Args:
        scheduler: of a flow, with any constant shift. One that is not Euler's becomes Euler's.

    Returns:
        The scheduler, and 1 / factor, which must multiply the denoiser's output.

    Raises:
        UserError: if anything but a shift changes the sigmas.
    """
    if other := [name for name in OTHER_FLOWS if scheduler.config.get(name)]:
        raise UserError(
            f"this model's scheduler uses {other[0]}, which stock pipelines do not support: save "
            "the model with a plain FlowMatchEulerDiscreteScheduler"
        )
    if not isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        scheduler = create_sampler(scheduler, "euler")
    own, shift = scheduler.config.num_train_timesteps, scheduler.config.shift
    first = own / (own + 1)
    converted = DPMSolverMultistepScheduler(
        num_train_timesteps=own + 1,
        solver_order=1,
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        flow_shift=(1 + (shift - 1) / first) * ROUNDING,
    )
    return converted, shift / (first + shift - 1)


def _scale_output(unet: Denoiser, factor: float) -> None:
    """Scale the weights of a denoiser's last layer, and so its output, in place.

    Raises:
        UserError: if the denoiser adds something after that layer.
    """
    if skips := [name for name in unet.config.up_block_types if "Skip" in name]:
        raise UserError(
            f"the denoiser has a {skips[0]}, so its output cannot be scaled, which a stock "
            "pipeline needs for the sampler euler: choose unipc, or share the model itself"
        )
    with torch.no_grad():
        unet.conv_out.weight *= factor
        unet.conv_out.bias *= factor


def _fold_foreign_scale(vae: Autoencoder) -> Autoencoder:
    """Fold a latent scale into the weights, unless it is `scaling_factor` alone.

    Stock pipelines ignore `shift_factor`, `latents_mean` and `latents_std`.

    Returns:
        The same autoencoder if it has none of the three, else a copy without them.

    Raises:
        UserError: if it is no AutoencoderKL, and has one of the three or a scale of its own.
    """
    kind, zeros = find_kind(vae), torch.zeros(latent_channels(vae), 1, 1, dtype=torch.float64)
    ignored = [vae.config.get(x) for x in ("shift_factor", "latents_mean", "latents_std")]
    ignored.append("scaling_factor" in vae.config and vae.config.scaling_factor is None)
    if kind.is_plain and not any(ignored):
        return vae
    if not isinstance(vae, AutoencoderKL):
        raise UserError(
            f"the autoencoder is an {type(vae).__name__} with a shift_factor, latents_mean, "
            "latents_std or a scale of its own, which stock pipelines ignore: share the model "
            "itself"
        )
    mean, std = ((zeros + x).flatten() for x in kind.scale(vae, zeros))
    return fold_latent_scale(prepare_for_training(vae), LatentStatistics(mean, std))
