"""A model as diffusers' stock `LDMPipeline`, which supports no classes, flows or latent statistics.

The weights take over what that pipeline does not do.
"""

import copy

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    LDMPipeline,
    SchedulerMixin,
    UNet2DModel,
)

from hf_latent.errors import UserError
from hf_latent.models.fold import LatentStatistics, fold_latent_scale, prepare_for_training
from hf_latent.models.load import Autoencoder
from hf_latent.pipeline import LatentDiffusionPipeline
from hf_latent.pipeline.add_noise import is_flow
from hf_latent.pipeline.autoencoders import find_kind, latent_channels
from hf_latent.pipeline.samplers import create_sampler

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


def to_ldm_pipeline(
    pipeline: LatentDiffusionPipeline, class_label: int | None = None
) -> LDMPipeline:
    """Create a stock pipeline that draws the images of one class, or of none, without guidance.

    From the same noise its images, in [0, 1], are within 1e-4 of the pipeline's own at
    `guidance_scale=1`. For a flow, this needs a flow without shift and a number of steps that
    divides the scheduler's `num_train_timesteps` (1,000). Otherwise `LDMPipeline` truncates
    timesteps to whole numbers, and single pixels differ by a few hundredths (for a small trained
    model, at 7, 15 and 30 steps, by up to 0.03, and by 0.001 on average).

    Another sampler of a flow becomes `euler`, but a distilled model's DPMSolverMultistepScheduler
    stays.

    Args:
        pipeline: with the scheduler of its training; it is not changed.
        class_label: of a model with classes; None: its null label.

    Returns:
        A pipeline that plain diffusers loads, once it is saved, without remote code.

    Raises:
        UserError: if `LDMPipeline` cannot draw this model's images.
    """
    unet, size = copy.deepcopy(pipeline.unet), pipeline.unet.config.sample_size
    if not isinstance(size, int):
        raise UserError(
            f"the denoiser's sample_size is {size}, and LDMPipeline draws squares only: share the "
            "model itself"
        )
    if pipeline.num_classes is not None:
        _fold_class(unet, pipeline.num_classes if class_label is None else class_label)
    scheduler = pipeline.scheduler
    if not keeps_scheduler(pipeline):
        scheduler, factor = convert_flow_scheduler(scheduler)
        _scale_output(unet, factor)
    return LDMPipeline(vqvae=_fold_foreign_scale(pipeline.vae), unet=unet, scheduler=scheduler)


def keeps_scheduler(pipeline: LatentDiffusionPipeline) -> bool:
    """Return whether `LDMPipeline` uses the model's own scheduler; if not, it is a flow's.

    Raises:
        UserError: if it can neither use nor replace the scheduler.
    """
    scheduler, distilled = pipeline.scheduler, pipeline.config.get("distilled")
    if isinstance(scheduler, DDIMScheduler):
        return True
    if distilled and isinstance(scheduler, DPMSolverMultistepScheduler):
        return True
    is_euler = isinstance(scheduler, FlowMatchEulerDiscreteScheduler)
    if not is_flow(scheduler) or (distilled and not is_euler):
        raise UserError(
            f"this model's scheduler is {type(scheduler).__name__}, which LDMPipeline does not "
            "support: share the model itself, or one that has a DDIMScheduler"
        )
    return False


def _fold_class(unet: UNet2DModel, class_label: int) -> None:
    """Fix the class of a denoiser, in place; it then takes no labels.

    The denoiser adds the class embedding to the timestep embedding. The last layer of the timestep
    embedding is linear, so its bias can hold the class embedding.
    """
    with torch.no_grad():
        unet.time_embedding.linear_2.bias += unet.class_embedding.weight[class_label]
    unet.class_embedding = None
    unet.register_to_config(num_class_embeds=None)


def convert_flow_scheduler(
    scheduler: SchedulerMixin,
) -> tuple[DPMSolverMultistepScheduler, float]:
    """Convert a flow's scheduler to a first-order one that `LDMPipeline` can use.

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
            f"this model's scheduler uses {other[0]}, which LDMPipeline does not support: save the "
            "model with a plain FlowMatchEulerDiscreteScheduler"
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


def _scale_output(unet: UNet2DModel, factor: float) -> None:
    """Scale the weights of a denoiser's last layer, and so its output, in place.

    Raises:
        UserError: if the denoiser adds something after that layer.
    """
    if skips := [name for name in unet.config.up_block_types if "Skip" in name]:
        raise UserError(
            f"the denoiser has a {skips[0]}, so its output cannot be scaled, which LDMPipeline "
            "needs for a flow: share the model itself"
        )
    with torch.no_grad():
        unet.conv_out.weight *= factor
        unet.conv_out.bias *= factor


def _fold_foreign_scale(vae: Autoencoder) -> Autoencoder:
    """Fold a latent scale into the weights, unless it is `scaling_factor` alone.

    `LDMPipeline` ignores `shift_factor`, `latents_mean` and `latents_std`.

    Returns:
        The same autoencoder if it has none of the three, else a copy without them.

    Raises:
        UserError: if it is no AutoencoderKL, and has one of the three or a scale of its own.
    """
    kind, zeros = find_kind(vae), torch.zeros(latent_channels(vae), 1, 1, dtype=torch.float64)
    ignored = [vae.config.get(x) for x in ("shift_factor", "latents_mean", "latents_std")]
    if kind.is_plain and not any(ignored):
        return vae
    if not isinstance(vae, AutoencoderKL):
        raise UserError(
            f"the autoencoder is an {type(vae).__name__} with a shift_factor, latents_mean, "
            "latents_std or a scale of its own, which LDMPipeline ignores: share the model itself"
        )
    mean, std = ((zeros + x).flatten() for x in kind.scale(vae, zeros))
    return fold_latent_scale(prepare_for_training(vae), LatentStatistics(mean, std))
