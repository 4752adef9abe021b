"""The pipeline: the four steps generate images from labels, prompts, noise or images."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput, SchedulerMixin
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image

# diffusers copies the files that this file imports, and no others.
from .add_noise import NoisedLatents, add_noise, mix_noise
from .autoencoders import Autoencoder, latent_channels
from .conditions import (
    Conditions,
    Denoiser,
    Labels,
    call_back,
    check_output_type,
    class_conditions,
    count_images,
    null_conditions,
    refuse_arguments,
    to_label_ids,
)
from .decode import decode_latents, write_images
from .denoise import check_latents, choose_sampling, denoise_latents
from .encode import encode_images
from .hub_format import HubFormat, kept_settings
from .image_to_image import (
    Images,
    Start,
    check_interpolation,
    check_start,
    interpolated_latents,
    keep_unmasked,
    read_images,
    skipped_steps,
)
from .prompts import choose_prompts, complete_prompts, first_argument, prompt_conditions
from .samplers import (
    check_objective,
    check_removes_noise,
    create_noising,
    create_sampler,
    guidance_by_step,
    set_inference_steps,
)
from .saved_files import OPTIONAL_COMPONENTS
from .weights import align_weights, check_weights, upcast_where_needed

Generators: TypeAlias = torch.Generator | list[torch.Generator] | None


class LatentDiffusionPipeline(HubFormat, DiffusionPipeline):
    """Latent diffusion from plain diffusers parts, with class labels, prompts, both or neither.

    All methods raise ValueError for arguments that do not fit the model. A derived class must take
    all of these arguments.

    Args:
        vae: the autoencoder, of a class in `autoencoders.KINDS`. None: only denoise.
        unet: the denoiser; N classes have N + 1 embeddings, the last the null label's. None: only
            encode and decode.
        scheduler: a stock scheduler of the denoiser's objective.
        id2label: the classes' names, by label. None: those of the denoiser's last pipeline, if any.
        guide_unet: a weaker denoiser for autoguidance, see `denoise.predict`, of the same latents,
            classes, noise levels and objective; only the shapes are checked. It may also be set
            later, on the denoiser's device, before any offloading. None: classifier-free guidance.
        guidance: defaults of a call's `guidance_scale` and `guidance_interval`, either or both; to
            change them later, use `register_to_config`. None: as for id2label; {}: 2 at all levels.
        objective: the denoiser's; an error if the scheduler has another. None: the scheduler's.
        num_inference_steps: default of a call. None: as for id2label, else 20.
        distilled: whether other steps, samplers and guidance are errors. None: as for id2label.
        text_encoder: of transformers, for prompts; None: prompts are given as embeddings.
        tokenizer: that of the text encoder.

    Raises:
        ValueError: if weights are missing or not finite, or a component or setting does not fit.
    """

    # Offloading the guide would move it to the accelerator and back at every step.
    model_cpu_offload_seq = "text_encoder->unet->vae"
    _optional_components = OPTIONAL_COMPONENTS
    _interrupt = False  # set it in a callback to end a call after its step, as in diffusers

    def __init__(
        self,
        vae: Autoencoder | None,
        unet: Denoiser | None,
        scheduler: SchedulerMixin,
        id2label: dict | None = None,
        guide_unet: Denoiser | None = None,
        guidance: Mapping[str, Any] | None = None,
        objective: str | None = None,
        num_inference_steps: int | None = None,
        distilled: bool | None = None,
        text_encoder: Any = None,
        tokenizer: Any = None,
    ):
        """Register the components; see the class."""
        super().__init__()
        for name, model in {"vae": vae, "unet": unet, "guide_unet": guide_unet}.items():
            if model is not None:
                check_weights(name, model)
                align_weights(model)
        if unet is not None and vae is not None:
            check_latents(unet, (1, latent_channels(vae), 0, 0))
        guidance = {} if distilled and guidance is None else guidance  # not a copied teacher's
        settings = kept_settings(unet, id2label, guidance, num_inference_steps, distilled)
        self.register_modules(vae=vae, unet=unet, scheduler=scheduler, guide_unet=guide_unet)
        self.register_modules(text_encoder=text_encoder, tokenizer=tokenizer)
        # Schedulers set later are compared with this copy, because `scheduler` can be changed.
        self.trained_scheduler = type(scheduler).from_config(scheduler.config)
        self.register_to_config(**settings, objective=check_objective(scheduler, objective))
        self.image_processor = VaeImageProcessor(do_resize=False)

    @property
    def interrupt(self) -> bool:
        """Whether the call is to end before its next step."""
        return self._interrupt

    def require(self, name: str) -> Any:
        """Return a component; ValueError if the pipeline was loaded without it."""
        if getattr(self, name) is None:
            raise ValueError(f"this pipeline has no {name}: load it again without {name}=None")
        return getattr(self, name)

    @property
    def num_classes(self) -> int | None:
        """The number of classes, or None for a model without classes."""
        embeddings = self.require("unet").config.num_class_embeds
        return None if embeddings is None else embeddings - 1

    @property
    def id2label(self) -> dict[int, str]:
        """The classes' names by label; empty if unknown."""
        return {int(label): name for label, name in (self.config.id2label or {}).items()}

    @property
    def latent_size(self) -> tuple[int, int]:
        """Height and width of the latents that the denoiser was trained on."""
        size = self.require("unet").config.sample_size
        return (size, size) if isinstance(size, int) else tuple(size)

    def get_label_ids(self, class_labels: Labels) -> list[int]:
        """Translate labels or class names into numbers; ValueError for unknown ones."""
        return to_label_ids(class_labels, self.require("unet"), self.config.id2label)

    def use_sampler(self, sampler: str) -> None:
        """Set the sampler: euler, heun, dpm++, unipc or ddim, see `create_sampler`."""
        if self.config.get("distilled"):
            raise ValueError("a distilled model has its own sampler only: do not set another")
        self.scheduler = create_sampler(self.trained_scheduler, sampler)

    @torch.no_grad()
    def encode_images(
        self, images: Images, generator: Generators = None, sample_posterior: bool = True
    ) -> torch.Tensor:
        """Encode images, see `image_to_image.read_images`, as `encode.encode_images`."""
        pixels = read_images(self.image_processor, images, self.require("vae"))
        with upcast_where_needed(self.vae) as dtype:
            pixels = pixels.to(self._execution_device)
            latents = encode_images(self.vae, pixels, generator, sample_posterior).to(dtype)
        self.maybe_free_model_hooks()
        return latents

    def add_noise(
        self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
    ) -> NoisedLatents:
        """Mix latents and noise as in training, whatever the sampler, see `add_noise.add_noise`."""
        return add_noise(create_noising(self.trained_scheduler), latents, noise, timesteps)

    @torch.no_grad()
    def denoise_latents(
        self,
        latents: torch.Tensor,
        num_inference_steps: int | None = None,
        class_labels: Labels | None = None,
        guidance_scale: float | None = None,
        generator: Generators = None,
        after_step: Callable | None = None,
        guidance_interval: tuple[float, float] | None = None,
        image_latents: torch.Tensor | None = None,
        strength: float = 1.0,
        mask: torch.Tensor | None = None,
        conditions: Conditions | None = None,
        negative_conditions: Conditions | None = None,
    ) -> torch.Tensor:
        """Denoise noise, or images' latents with noise added, into latents `(B, c, h, w)`.

        Args:
            latents: `(B, c, h, w)`, standard normal noise.
            num_inference_steps: as of a call.
            class_labels: B labels or names; None: the null label of a class-conditional model.
            guidance_scale: as of a call.
            generator: draws the noise of stochastic schedulers.
            after_step: `after_step(i, t, latents) -> latents`, called after every step.
            guidance_interval: as of a call.
            image_latents: `(B, c, h, w)`, latents of images to start from.
            strength: with image_latents, the part of the steps that is made; 1 starts from noise.
            mask: `(B or 1, 1, h, w)` bool, true where images are regenerated; None: everywhere.
            conditions: named tensors of B images, in place of class_labels; missing ones are null.
            negative_conditions: what guidance leads away from, in place of null conditions.
        """
        check_start(latents, image_latents, mask)
        if class_labels is not None:
            label_ids = self.get_label_ids(class_labels)
            conditions = class_conditions(label_ids, len(label_ids), self._execution_device)
        steps, guidance = choose_sampling(
            self, conditions is not None, num_inference_steps, guidance_scale, guidance_interval
        )
        device, scheduler = self._execution_device, self.scheduler
        noise, skipped = latents.to(device, (self.require("unet")).dtype), 0
        if image_latents is not None:
            image_latents = image_latents.to(noise)
            skipped = skipped_steps(scheduler, steps, strength)
        check_removes_noise(self.trained_scheduler, scheduler, steps)
        set_inference_steps(scheduler, steps, device)
        timesteps = scheduler.timesteps[skipped:]
        if image_latents is not None and not len(timesteps):
            return image_latents
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(skipped)
        latents = noise * getattr(scheduler, "init_noise_sigma", 1.0)
        if image_latents is not None and skipped:
            latents = mix_noise(scheduler, image_latents, noise, timesteps[:1].expand(len(noise)))

        def after(i: int, t: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
            if mask is not None and image_latents is not None:
                following = timesteps[i + 1] if i + 1 < len(timesteps) else None
                latents = keep_unmasked(scheduler, latents, image_latents, noise, mask, following)
            return latents if after_step is None else after_step(i, t, latents)

        null, needs_null = null_conditions(self.unet, len(noise), device), guidance.scale != 1
        given = null | (conditions or {}), null | (negative_conditions or {})
        needs_null = needs_null and self.guide_unet is None
        conditions, null = complete_prompts(self, *given, len(noise), needs_null)
        latents = denoise_latents(
            *(self.unet, scheduler, latents, self.progress_bar(timesteps)),
            conditions=conditions,
            guidance=guidance_by_step(guidance, scheduler, timesteps),
            null_conditions=null,
            guide_unet=self.guide_unet,
            generator=generator,
            after_step=after,
            interrupted=lambda: self._interrupt,
        )
        self.maybe_free_model_hooks()
        return latents

    @torch.no_grad()
    def decode_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """Decode latents `(B, c, h, w)` into images `(B, C, h*f, w*f)`, near [-1, 1]."""
        with upcast_where_needed(self.require("vae")) as dtype:
            images = decode_latents(self.vae, latents.to(self._execution_device)).to(dtype)
        self.maybe_free_model_hooks()
        return images

    @torch.no_grad()
    def __call__(
        self,
        class_labels: Labels | None = None,
        num_images: int | None = None,
        guidance_scale: float | None = None,
        num_inference_steps: int | None = None,
        generator: Generators = None,
        latents: torch.Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        image: Images | None = None,
        strength: float | None = None,
        mask_image: Images | None = None,
        image_latents: torch.Tensor | None = None,
        guidance_interval: tuple[float, float] | None = None,
        prompt: str | Sequence[str] | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        **others: Any,
    ) -> ImagePipelineOutput | tuple:
        """Generate images from noise, or from other images.

        Args:
            class_labels: labels or class names; used in turn if `num_images` is larger. The first
                argument of a model with prompts and without classes is the prompt.
            num_images: number of images; None: one for each label, prompt or given image, or 1.
            guidance_scale: of classifier-free guidance, which needs labels or prompts, or of
                autoguidance; 1 is off; None: with any of them the model's own, or 2.
            num_inference_steps: the scheduler's steps, at least 1; None: the model's own, or 20.
            generator: one, or a list of one an image (an image is then the same in any batch).
            latents: `(B, c, h, w)` standard normal noise to start from; None: it is drawn.
            output_type: as of `reconstruct`, or "latent" `(B, c, h, w)`.
            return_dict: return an `ImagePipelineOutput` with `images`; if False, `(images,)`.
            callback_on_step_end: `callback(pipeline, i, t, {"latents": ...})`, called after every
                step; the next step starts from the latents in the dict that it returns.
            callback_on_step_end_tensor_inputs: keys of the callback's dict.
            image: image to image: start from these, see `read_images`; one is for all.
            strength: how much is regenerated, from 0 (nothing) to 1; None: 0.8, or 1 with a mask.
            mask_image: inpainting: white is regenerated, black is kept, see `read_mask`.
            image_latents: `(B, c, h, w)` from `encode_images`, in place of `image`.
            guidance_interval: see `denoise.Guidance`; (0, 1) is all; None: the model's own, or all.
            prompt: one or several; used in turn if `num_images` is larger.
            negative_prompt: guidance leads away from it; None: the empty prompt.
            prompt_embeds: `(P, T, D)` of `prompts.encode_prompts`, in place of `prompt`.
            negative_prompt_embeds: the same in place of `negative_prompt`.
            others: refused; those of other diffusers pipelines with a word about what to use.
        """
        refuse_arguments(others, callback_on_step_end_tensor_inputs)
        self._interrupt = False
        device, unet = self._execution_device, self.require("unet")
        class_labels, prompt = first_argument(unet, class_labels, prompt)
        label_ids = None if class_labels is None else self.get_label_ids(class_labels)
        prompts = choose_prompts(unet, prompt, prompt_embeds)
        negative_prompts = choose_prompts(unet, negative_prompt, negative_prompt_embeds)
        prompts = [""] if prompts is None and negative_prompts is not None else prompts
        check_output_type(output_type)
        vae = None if output_type == "latent" else self.require("vae")
        start = Start.read(self, image, image_latents, mask_image, strength)
        image_latents = start.image_latents
        generators = generator if isinstance(generator, list) else None
        given: dict[str, Any] = {"latents": latents, "generators": generators, "mask": start.mask}
        given |= {"image": image_latents, "class_labels": label_ids, "prompts": prompts}
        num_images = count_images(num_images, given)
        conditions = {} if label_ids is None else class_conditions(label_ids, num_images, device)
        conditions |= prompt_conditions(self, prompts, num_images)
        negative = prompt_conditions(self, negative_prompts, num_images)
        if image_latents is not None:
            image_latents = image_latents.expand(num_images, -1, -1, -1)
        if latents is None:
            size = self.latent_size if image_latents is None else image_latents.shape[2:]
            shape = (num_images, unet.config.in_channels, *size)
            latents = randn_tensor(shape, generator, device, unet.dtype)

        latents = self.denoise_latents(
            latents,
            num_inference_steps,
            guidance_scale=guidance_scale,
            generator=generator,
            after_step=call_back(self, callback_on_step_end, callback_on_step_end_tensor_inputs),
            guidance_interval=guidance_interval,
            image_latents=image_latents,
            strength=start.strength,
            mask=start.shrunk_mask(),
            conditions=conditions or None,
            negative_conditions=negative,
        )
        images = latents if output_type == "latent" else self.decode_latents(latents)
        if not images.isfinite().all():
            raise ValueError("the images are not finite: lower guidance_scale, or use float32")
        images = images if output_type == "latent" else start.paste(images)
        images = write_images(self.image_processor, images, output_type, vae)
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def reconstruct(
        self, images: Images, output_type: str = "pt"
    ) -> torch.Tensor | np.ndarray | list[Image.Image]:
        """Encode images to the posterior's mean and decode them.

        `output_type` is "pt", `(B, C, H, W)` in [0, 1]; "np", see `decode.to_values`; or "pil".
        """
        check_output_type(output_type, ("pil", "np", "pt"))
        reconstructions = self.decode_latents(self.encode_images(images, sample_posterior=False))
        return write_images(self.image_processor, reconstructions, output_type, self.vae)

    @torch.no_grad()
    def interpolate(
        self,
        first: int | Images,
        second: int | Images,
        num_images: int = 8,
        strength: float | None = None,
        generator: torch.Generator | None = None,
        **settings: Any,
    ) -> ImagePipelineOutput | tuple:
        """Generate a row of images that changes gradually from one seed, or image, to another.

        Args:
            first: a seed, or one image, PIL or `(1, C, H, W)` in [-1, 1].
            second: of the same kind.
            num_images: number of images, both ends included; at least 2.
            strength: between images: how much noise is added to their latents and removed again
                (Ho et al. 2020, section 4.3), as of a call; 0 only decodes; None: 0.5.
            generator: draws that noise, and the noise of stochastic schedulers.
            settings: as of a call, for example class_labels, except those that say where to start.
        """
        between_seeds = check_interpolation(first, second, num_images, strength, settings)
        latents = interpolated_latents(self, first, second, num_images)
        settings |= {"num_images": num_images, "generator": generator}
        if between_seeds:
            return self(latents=latents, **settings)
        noise = randn_tensor(latents[:1].shape, generator, latents.device, latents.dtype)
        settings |= {"image_latents": latents, "strength": 0.5 if strength is None else strength}
        return self(latents=noise.expand(latents.shape), **settings)
