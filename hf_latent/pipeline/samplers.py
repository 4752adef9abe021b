"""Stock schedulers as samplers: which fit which objective, and their noise levels.

A sampler of another objective, or of other noise levels than the denoiser was trained on, also
makes images, but wrong ones. So samplers are created here, and other schedulers are compared with
the trained model's.
"""

import inspect
from types import SimpleNamespace
from typing import Any, Literal, get_args

import diffusers
import torch
from diffusers import (
    DDIMParallelScheduler,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
    SchedulerMixin,
    UniPCMultistepScheduler,
)

from .add_noise import add_noise, is_flow, mix_noise
from .denoise import LEVEL_TOLERANCE, Guidance, denoise_latents

Sampler = Literal["euler", "heun", "dpm++", "unipc", "ddim"]

FLOW_SAMPLERS: dict[str, type[SchedulerMixin]] = {
    "euler": FlowMatchEulerDiscreteScheduler,
    "heun": FlowMatchHeunDiscreteScheduler,
    "dpm++": DPMSolverMultistepScheduler,
    "unipc": UniPCMultistepScheduler,
}
DIFFUSION_SAMPLERS: dict[str, type[SchedulerMixin]] = {
    "euler": EulerDiscreteScheduler,
    "heun": HeunDiscreteScheduler,
    "dpm++": DPMSolverMultistepScheduler,
    "unipc": UniPCMultistepScheduler,
    "ddim": DDIMScheduler,
}
# The highest share of noise that a sampler may leave with a denoiser that makes no errors.
MAX_NOISE_LEFT = 0.02
_REMOVE_NOISE: set[str] = set()  # schedulers and numbers of steps that `check_removes_noise` passed
# In each step these remove the noise of `N // steps` timesteps, whatever the next timestep is.
WHOLE_STEPS = (DDIMScheduler, DDIMParallelScheduler, PNDMScheduler)
# Configuration entries for the objective, the noise levels, and the spacing of steps.
KEPT_ENTRIES = (
    *("num_train_timesteps", "beta_schedule", "beta_start", "beta_end", "trained_betas"),
    *("rescale_betas_zero_snr", "prediction_type", "timestep_spacing", "steps_offset"),
)


def load_scheduler(name: str, **kwargs: Any) -> SchedulerMixin:
    """Load the scheduler of a saved pipeline.

    Args:
        name: a folder or Hub id.
        **kwargs: of `from_pretrained`.

    Raises:
        ValueError: if its class is not a diffusers scheduler.
        OSError: if there is none.
    """
    config = DDIMScheduler.load_config(name, subfolder="scheduler", **kwargs)  # of any class
    scheduler_class = getattr(diffusers, str(config.get("_class_name")), None)
    if not (isinstance(scheduler_class, type) and issubclass(scheduler_class, SchedulerMixin)):
        raise ValueError(f"{config.get('_class_name')} is no diffusers scheduler")
    return scheduler_class.from_config(config)  # type: ignore[attr-defined]


def get_objective(scheduler: SchedulerMixin) -> str:
    """Return a scheduler's objective: `flow`, `epsilon`, `v_prediction` or `sample`.

    Raises:
        ValueError: if its configuration names none.
    """
    if is_flow(scheduler):
        return "flow"
    prediction_type = scheduler.config.get("prediction_type")
    if prediction_type is None:
        raise ValueError(f"{type(scheduler).__name__} does not say what the denoiser predicts")
    return prediction_type


def check_objective(scheduler: SchedulerMixin, objective: str | None) -> str:
    """Check that a scheduler is for the denoiser's objective, and return the objective.

    Args:
        scheduler: a stock scheduler.
        objective: the denoiser's; None: the scheduler's.

    Raises:
        ValueError: if the scheduler is for another objective, or its configuration names none.
    """
    found = get_objective(scheduler)
    if objective not in (None, found):
        raise ValueError(
            f"{type(scheduler).__name__} is for the objective {found}, and the denoiser was "
            f"trained for {objective}: use pipeline.use_sampler(name)"
        )
    return found


def compatible_samplers(scheduler: SchedulerMixin) -> list[str]:
    """Return the names of the samplers for the objective of a trained model's scheduler.

    HeunDiscreteScheduler supports neither the objective `sample` nor zero terminal SNR.
    """
    if is_flow(scheduler):
        return list(FLOW_SAMPLERS)
    zero_terminal_snr = scheduler.config.get("rescale_betas_zero_snr", False)
    no_heun = zero_terminal_snr or get_objective(scheduler) == "sample"
    return [name for name in DIFFUSION_SAMPLERS if not (name == "heun" and no_heun)]


def create_sampler(scheduler: SchedulerMixin, sampler: str) -> SchedulerMixin:
    """Create the stock scheduler of a sampler, for a trained model.

    Args:
        scheduler: the trained model's, not changed; its objective and noise levels are kept.
        sampler: one of `compatible_samplers(scheduler)`.

    Raises:
        ValueError: if the sampler is unknown, or not for this objective.
    """
    if sampler not in get_args(Sampler):
        raise ValueError(f"there is no sampler {sampler!r}: use {', '.join(get_args(Sampler))}")
    compatible = compatible_samplers(scheduler)
    if sampler not in compatible:
        raise ValueError(
            f"sampler {sampler} does not go with a denoiser of the objective "
            f"{get_objective(scheduler)}"
            + (" and zero terminal SNR" if scheduler.config.get("rescale_betas_zero_snr") else "")
            + f": use {', '.join(compatible)}"
        )
    created = (_create_flow if is_flow(scheduler) else _create_diffusion)(scheduler, sampler)
    check_sampler(scheduler, created)
    return created


def _create_flow(scheduler: SchedulerMixin, sampler: str) -> SchedulerMixin:
    config = scheduler.config
    steps, shift = config.num_train_timesteps, config.get("shift", config.get("flow_shift", 1.0))
    if sampler in ("euler", "heun"):
        return FLOW_SAMPLERS[sampler](num_train_timesteps=steps, shift=shift)
    return FLOW_SAMPLERS[sampler](
        num_train_timesteps=steps,
        flow_shift=shift,
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
    )


def _create_diffusion(scheduler: SchedulerMixin, sampler: str) -> SchedulerMixin:
    # `from_config` would drop entries that equal the trained scheduler's defaults.
    scheduler_class = DIFFUSION_SAMPLERS[sampler]
    settings = {name: scheduler.config[name] for name in KEPT_ENTRIES if name in scheduler.config}
    settings |= {"clip_sample": False, "thresholding": False}  # latents have no bounds
    known = inspect.signature(scheduler_class.__init__).parameters
    try:
        return scheduler_class(**{name: x for name, x in settings.items() if name in known})
    # diffusers raises this for settings that a scheduler does not have, such as a beta schedule.
    except NotImplementedError as error:
        raise ValueError(f"sampler {sampler} does not go with this model: {error}") from error


def check_sampler(trained: SchedulerMixin, scheduler: SchedulerMixin) -> None:
    """Check that a scheduler makes the right images of a denoiser's predictions.

    Args:
        trained: the trained model's scheduler.
        scheduler: the one to sample with.

    Raises:
        ValueError: if the objective or the noise levels differ, or it clips the latents.
    """
    if type(scheduler) is type(trained) and scheduler.config == trained.config:
        return
    name, mend = type(scheduler).__name__, "use pipeline.use_sampler(name)"
    check_objective(scheduler, get_objective(trained))
    if not same_noise_levels(trained, scheduler):
        raise ValueError(f"{name} has other noise levels than the denoiser was trained on: {mend}")
    known = inspect.signature(type(scheduler).__init__).parameters
    for setting in ("clip_sample", "thresholding"):
        if setting in known and scheduler.config.get(setting):
            raise ValueError(
                f"{name} has {setting}=True, and latents have no bounds: set it to False, or {mend}"
            )


def same_noise_levels(trained: SchedulerMixin, scheduler: SchedulerMixin) -> bool:
    """Return whether timesteps mean the same noise levels in two schedulers of one objective."""
    if type(scheduler) is type(trained) and scheduler.config == trained.config:
        return True
    return (_same_flow if is_flow(trained) else _same_signal)(trained, scheduler)


def _same_flow(trained: SchedulerMixin, scheduler: SchedulerMixin) -> bool:
    config = scheduler.config
    # Sigmas that are not flow's exceed 1.
    if not type(scheduler).__name__.startswith("FlowMatch"):
        others = ("karras_sigmas", "exponential_sigmas", "beta_sigmas", "lu_lambdas")
        if not config.get("use_flow_sigmas") or any(config.get(f"use_{x}") for x in others):
            return False
    return config.num_train_timesteps == trained.config.num_train_timesteps


def _same_signal(trained: SchedulerMixin, scheduler: SchedulerMixin) -> bool:
    config = scheduler.config
    if config.get("use_flow_sigmas") or config.get("timestep_type", "discrete") != "discrete":
        return False
    ours, theirs = (getattr(x, "alphas_cumprod", None) for x in (trained, scheduler))
    if ours is None or theirs is None or len(ours) != len(theirs):
        return False
    # At zero terminal SNR some samplers keep a little signal.
    return torch.allclose(ours.cpu().double(), theirs.cpu().double(), rtol=1e-4, atol=1e-6)


def create_noising(trained: SchedulerMixin) -> SchedulerMixin:
    """Return a scheduler that adds noise as in training, at any timestep and without a state."""
    return trained if is_flow(trained) else create_sampler(trained, "ddim")


class _IdealDenoiser:
    """Knows the latents `(B, c, h, w)`, and predicts them in the objective's terms."""

    def __init__(self, noising: SchedulerMixin, latents: torch.Tensor):
        self.noising, self.latents = noising, latents
        self.config = SimpleNamespace(in_channels=latents.shape[1], block_out_channels=(1,))

    def __call__(self, noisy_latents: torch.Tensor, timestep: torch.Tensor) -> SimpleNamespace:
        timesteps = timestep.expand(len(noisy_latents))
        if not is_flow(self.noising):
            timesteps = timesteps.round().long()
        none, one = torch.zeros_like(self.latents), torch.ones_like(self.latents)
        signal = mix_noise(self.noising, self.latents, none, timesteps)
        noise = (noisy_latents - signal) / mix_noise(self.noising, none, one, timesteps)
        return SimpleNamespace(
            sample=add_noise(self.noising, self.latents, noise, timesteps).target
        )


def check_removes_noise(
    trained: SchedulerMixin, scheduler: SchedulerMixin, num_inference_steps: int
) -> None:
    """Check that a scheduler finds the right latents, given a denoiser that makes no errors.

    Some stock schedulers silently leave noise: their last noise level is not 0, or their steps are
    not those of the objective. So a copy of the scheduler denoises a few known values.

    Args:
        trained: the trained model's scheduler.
        scheduler: the one to sample with; it must pass `check_sampler`.
        num_inference_steps: as of `set_inference_steps`.

    Raises:
        ValueError: if the scheduler fails, or more than 2% of the noise is left.
    """
    parts = type(trained), dict(trained.config), type(scheduler), dict(scheduler.config)
    checked = repr((*parts, num_inference_steps))
    if checked in _REMOVE_NOISE:
        return
    check_sampler(trained, scheduler)
    if not (is_flow(trained) or hasattr(trained, "alphas_cumprod")):
        return  # the denoiser's inputs and outputs are scaled in unknown ways, as in EDM
    name, steps = type(scheduler).__name__, num_inference_steps
    generator = torch.Generator().manual_seed(0)
    known = torch.rand(1, 1, 8, 8, generator=generator) * 2 - 1  # so that clipping changes nothing
    noise = torch.randn(known.shape, generator=generator)
    try:
        copied = type(scheduler).from_config(scheduler.config)
        set_inference_steps(copied, steps, "cpu")
        start = noise * getattr(copied, "init_noise_sigma", 1.0)
        denoiser: Any = _IdealDenoiser(create_noising(trained), known)
        with torch.random.fork_rng(devices=[]):  # some schedulers ignore the generator
            found = denoise_latents(denoiser, copied, start, copied.timesteps, generator=generator)
    # The schedulers raise many exception types for what they cannot do.
    except Exception as error:
        cause = " ".join(str(error).split())
        if not cause.startswith(name):  # as of `set_inference_steps`
            cause = f"{name} cannot make {steps} steps with this model: {cause or error!r}"
        raise ValueError(cause) from error
    left = (found - known).square().mean().sqrt().item()
    allowed = MAX_NOISE_LEFT
    # Foreign models may be made to end at the first noise level.
    if trained.config.get("set_alpha_to_one") is False:
        allowed += noise_levels(trained, torch.zeros(1)).item()
    if not left <= allowed:
        raise ValueError(
            f"{name} leaves {left:.0%} of the noise after {steps} steps: use "
            "pipeline.use_sampler(name)"
        )
    _REMOVE_NOISE.add(checked)


def noise_levels(scheduler: SchedulerMixin, timesteps: torch.Tensor) -> torch.Tensor:
    """Return the noise levels of timesteps, on one scale for all objectives.

    `sigma / (1 + sigma)` of noisy = clean + sigma noise; for flow this is flow's own sigma.

    Args:
        scheduler: a stock scheduler.
        timesteps: `(n,)`, some of its timesteps.

    Returns:
        `(n,)` float64 in [0, 1], on the CPU; 0 is no noise, 1 noise only.
    """
    timesteps = timesteps.cpu().double()  # not every device has float64
    if is_flow(scheduler):
        return timesteps / scheduler.config.num_train_timesteps
    signal_share = scheduler.alphas_cumprod.cpu().double()[timesteps.round().long()]
    signal, noise = signal_share.sqrt(), (1 - signal_share).sqrt()
    return noise / (signal + noise)


def guidance_by_step(
    guidance: Guidance, scheduler: SchedulerMixin, timesteps: torch.Tensor
) -> list[float]:
    """Return the guidance scale for each of `(n,)` timesteps: 1 outside guidance's interval."""
    if guidance.interval is None:
        return [guidance.scale] * len(timesteps)
    lowest, highest = guidance.interval
    levels = noise_levels(scheduler, timesteps)
    inside = (lowest - LEVEL_TOLERANCE <= levels) & (levels <= highest + LEVEL_TOLERANCE)
    return torch.where(inside, guidance.scale, 1.0).tolist()


def set_inference_steps(
    scheduler: SchedulerMixin, num_inference_steps: int, device: torch.device | str
) -> None:
    """Spread a scheduler's steps over its noise levels.

    For flow's Euler and Heun, sigma falls from 1 to 0 in equal steps; by default it falls to 1/1000
    and the last step is wasted.

    Args:
        scheduler: its `set_timesteps` is called.
        num_inference_steps: at least 1.
        device: of the timesteps.

    Raises:
        ValueError: for fewer than 1, or a number with wrong noise levels, see `check_steps`.
    """
    if num_inference_steps < 1:
        raise ValueError(f"num_inference_steps must be at least 1, not {num_inference_steps}")
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        sigmas = 1 - torch.arange(num_inference_steps, dtype=torch.float64) / num_inference_steps
        scheduler.set_timesteps(sigmas=sigmas.tolist(), device=device)
    elif isinstance(scheduler, FlowMatchHeunDiscreteScheduler):
        scheduler.sigma_min = 1 / num_inference_steps  # the last sigma before 0
        scheduler.set_timesteps(num_inference_steps, device=device)
        scheduler.sigmas = scheduler.sigmas.cpu()  # compared on the host in every step
    else:
        check_steps(scheduler, num_inference_steps)
        scheduler.set_timesteps(num_inference_steps, device=device)
    if scheduler.config.get("use_flow_sigmas"):
        # These schedulers truncate timesteps to integers, which are other noise levels.
        sigmas = scheduler.sigmas[:-1].to(device)
        scheduler.timesteps = sigmas * scheduler.config.num_train_timesteps
    elif scheduler.config.get("timestep_spacing") == "trailing" and (scheduler.timesteps < 0).any():
        raise ValueError(
            f"{type(scheduler).__name__} rounds {num_inference_steps} steps to one step too many: "
            "use another number of steps"
        )


def check_steps(scheduler: SchedulerMixin, num_inference_steps: int) -> None:
    """Reject step counts for which DDIM and PNDM silently use the wrong noise level.

    With N timesteps, each step of DDIM removes the noise of `N // steps` timesteps, but the
    denoiser is called with the rounded next timestep. If steps do not divide N, both drift apart
    and the last step may leave noise. With `leading` spacing both are equal.

    Raises:
        ValueError: naming step counts that fit; or if there are fewer timesteps than steps.
    """
    if is_flow(scheduler):
        return  # flow's timesteps need not be whole numbers
    name, total = type(scheduler).__name__, scheduler.config.num_train_timesteps
    if num_inference_steps > total:
        raise ValueError(f"{name} has {total} timesteps, too few for {num_inference_steps} steps")
    if not isinstance(scheduler, WHOLE_STEPS):
        return
    spacing = scheduler.config.timestep_spacing
    fitting = [n for n in range(1, total + 1) if spacing == "trailing" and total % n == 0]
    if spacing != "leading" and num_inference_steps not in fitting:
        mend = "use the sampler euler, whose steps may have any length"
        if fitting:
            below = max(n for n in fitting if n < num_inference_steps)
            above = min(n for n in fitting if n > num_inference_steps)
            mend = f"use {below} or {above} steps, or {mend[4:]}"
        raise ValueError(
            f"{name} needs steps of whole timesteps, and {num_inference_steps} steps of {total} "
            f"timesteps with {spacing} spacing are not whole: {mend}"
        )
