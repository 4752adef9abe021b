"""A model as diffusers' stock `LDMPipeline`, which knows no classes, flows or latent statistics.

What that pipeline would not do is put into the weights instead.
"""

import copy

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    LDMPipeline,
    UNet2DModel,
)

from hf_latent.errors import UserError
from hf_latent.models.fold import LatentStatistics, fold_latent_scale, prepare_for_training
from hf_latent.models.load import Autoencoder
from hf_latent.pipeline import LatentDiffusionPipeline

# Of FlowMatchEulerDiscreteScheduler, each of them off by default.
OTHER_FLOWS = (
    "use_dynamic_shifting",
    "shift_terminal",
    "invert_sigmas",
    "stochastic_sampling",
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
)
# Timesteps that are whole numbers come out a rounding error below them, and would be cut to one
# less. This lifts them, by less than 0.0001.
ROUNDING = 1 + 1e-7


def to_ldm_pipeline(
    pipeline: LatentDiffusionPipeline, class_label: int | None = None
) -> LDMPipeline:
    """Make a stock pipeline that draws the images of one class, or of none, without guidance.

    From the same noise its images, in [0, 1], are within 1e-4 of the pipeline's own at
    `guidance_scale=1`. Those of a flow too, if it has no shift and the number of steps
    divides the scheduler's `num_train_timesteps` (1,000). Otherwise its timesteps are cut to whole
    numbers: single pixels then differ by some hundredths (of a small trained model, at 7, 15 and 30
    steps, by up to 0.03, and by 0.001 on average).

    Args:
        pipeline: any model whose scheduler is as in training; it is left as it is.
        class_label: of a model with classes; None: its null label.

    Returns:
        An `LDMPipeline`, of which plain diffusers loads a save with no remote code.

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
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        scheduler, factor = convert_flow_scheduler(scheduler)
        _scale_output(unet, factor)
    elif not isinstance(scheduler, DDIMScheduler):
        raise UserError(
            f"this model's scheduler is {type(scheduler).__name__}: give it a DDIMScheduler or, "
            "for a flow, a FlowMatchEulerDiscreteScheduler, and save it again"
        )
    return LDMPipeline(vqvae=_fold_foreign_scale(pipeline.vae), unet=unet, scheduler=scheduler)


def _fold_class(unet: UNet2DModel, class_label: int) -> None:
    """Make a class-conditional denoiser, in place, one of a single class that takes no labels.

    The class embedding is added to the timestep embedding. The last layer of the timestep embedding
    is linear, so its bias can hold the class embedding.
    """
    with torch.no_grad():
        unet.time_embedding.linear_2.bias += unet.class_embedding.weight[class_label]
    unet.class_embedding = None
    unet.register_to_config(num_class_embeds=None)


def convert_flow_scheduler(
    scheduler: FlowMatchEulerDiscreteScheduler,
) -> tuple[DPMSolverMultistepScheduler, float]:
    """Make a flow's scheduler of the one stock class that `LDMPipeline` can use.

    The first-order update of DPM-Solver++ (Lu et al. 2022),
    x_t = (sigma_t / sigma_s) x_s + (alpha_t - alpha_s sigma_t / sigma_s) x_0,
    is Euler's method where alpha = 1 - sigma and x_0 = x_s - sigma_s v. But with N timesteps the
    scheduler's sigmas begin at 1 - 1/N, and it cuts its timesteps, sigma N, to whole numbers. With
    N = T + 1, for a flow of T timesteps, its timesteps are the flow's (with a shift, almost).
    The sigmas are those of the flow times one factor, and a denoiser whose output is divided by it
    takes the same steps. For u from 1 to 0 in equal steps, u' = u T/N and the shift s,
    s' u' / (1 + (s' - 1) u') = factor * s u / (1 + (s - 1) u)
    where s' = 1 + (s - 1) N/T and factor = (T/N + s - 1) / s.

    Args:
        scheduler: of a flow, with any constant shift.

    Returns:
        The scheduler, and what the denoiser's output is to be multiplied with: 1 / factor.

    Raises:
        UserError: if the sigmas are chosen otherwise than by a shift.
    """
    if other := [name for name in OTHER_FLOWS if scheduler.config.get(name)]:
        raise UserError(
            f"this model's scheduler has {other[0]}, which no scheduler that LDMPipeline can use "
            "has: save the model with a plain FlowMatchEulerDiscreteScheduler"
        )
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
    """Multiply the output of a denoiser, in place, by its last layer.

    Raises:
        UserError: if something is added after that layer.
    """
    if skips := [name for name in unet.config.up_block_types if "Skip" in name]:
        raise UserError(
            f"the denoiser has a {skips[0]}, after which its output cannot be scaled, as "
            "LDMPipeline needs it of a flow: share the model itself"
        )
    with torch.no_grad():
        unet.conv_out.weight *= factor
        unet.conv_out.bias *= factor


def _fold_foreign_scale(vae: Autoencoder) -> Autoencoder:
    """Fold what `LDMPipeline` does not know of a latent scale into the weights.

    It divides by `scaling_factor`, and knows none of `shift_factor`, `latents_mean` and
    `latents_std`.

    Returns:
        The same autoencoder if it has none of them, else a copy that has none.

    Raises:
        UserError: if it has them, and is no AutoencoderKL.
    """
    shift, mean, std = (vae.config.get(x) for x in ("shift_factor", "latents_mean", "latents_std"))
    if not shift and mean is None and std is None:
        return vae
    if not isinstance(vae, AutoencoderKL):
        raise UserError(
            f"the autoencoder is an {type(vae).__name__} with a shift_factor, latents_mean or "
            "latents_std, which LDMPipeline does not know: share the model itself"
        )
    ones = torch.ones(vae.config.latent_channels, dtype=torch.float64)
    statistics = LatentStatistics(
        mean=ones * (shift or 0) + ones.new_tensor(0.0 if mean is None else mean),
        std=ones.new_tensor(1.0 if std is None else std) * ones / vae.config.scaling_factor,
    )
    return fold_latent_scale(prepare_for_training(vae), statistics)
