"""The four steps on the components of a pipeline: encode, add noise, denoise, decode."""

from collections.abc import Callable, Mapping, Sequence

import torch
from diffusers import AutoencoderKL, PNDMScheduler, UNet2DModel
from diffusers.configuration_utils import FrozenDict
from diffusers.image_processor import VaeImageProcessor
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from PIL import Image

from .add_noise import NoisedLatents, add_noise, is_flow, mix_noise
from .class_labels import Labels, to_label_ids
from .decode import decode_latents
from .denoise import check_latents, denoise_latents
from .encode import downsampling_factor, encode_images
from .guidance import choose_guidance, guidance_by_step
from .image_conditions import Masks, keep_unmasked, read_mask, skipped_steps
from .inference_steps import set_inference_steps
from .samplers import check_sampler, create_sampler
from .upcast import upcast_where_needed

Images = torch.Tensor | Image.Image | list[Image.Image]
Generators = torch.Generator | list[torch.Generator] | None


class PipelineSteps:
    """What a pipeline does with images, latents and noise, one method a step.

    Attributes:
        vae: the autoencoder.
        unet: the denoiser.
        guide_unet: a weaker denoiser for autoguidance, or None.
        scheduler: what it samples with.
        trained_scheduler: what it came with, which says the denoiser's objective.
        image_processor: between pictures and tensors.
    """

    vae: AutoencoderKL
    unet: UNet2DModel
    guide_unet: UNet2DModel | None
    scheduler: SchedulerMixin
    trained_scheduler: SchedulerMixin
    image_processor: VaeImageProcessor
    # Of DiffusionPipeline:
    _execution_device: torch.device
    maybe_free_model_hooks: Callable
    progress_bar: Callable
    config: FrozenDict

    @property
    def num_classes(self) -> int | None:
        """The number of classes, or None for an unconditional model."""
        embeddings = self.unet.config.num_class_embeds
        return None if embeddings is None else embeddings - 1

    @property
    def id2label(self) -> dict[int, str]:
        """The classes' names by label; empty where none are known."""
        return {int(label): name for label, name in (self.config.id2label or {}).items()}

    def get_label_ids(self, class_labels: Labels) -> list[int]:
        """Translate labels or class names into numbers; ValueError for what is not in the model."""
        return to_label_ids(class_labels, self.num_classes, self.id2label)

    @torch.no_grad()
    def encode_images(
        self, images: Images, generator: Generators = None, sample_posterior: bool = True
    ) -> torch.Tensor:
        """Encode images, `(B, C, H, W)` in [-1, 1] or PIL, as `encode.encode_images`."""
        pixels = self._pixels(images).to(self._execution_device)
        dtype = self.vae.dtype
        with upcast_where_needed(self.vae):
            latents = encode_images(self.vae, pixels, generator, sample_posterior).to(dtype)
        self.maybe_free_model_hooks()
        return latents

    def _pixels(self, images: Images) -> torch.Tensor:
        if isinstance(images, torch.Tensor):
            return images
        pictures = images if isinstance(images, list) else [images]
        if not all(isinstance(picture, Image.Image) for picture in pictures):
            raise ValueError("images must be PIL images, or a tensor (B, C, H, W) in [-1, 1]")
        if modes := {picture.mode for picture in pictures} - {"L", "RGB", "RGBA"}:
            raise ValueError(f"convert images of mode {modes} to L, RGB or RGBA first")
        if len({(picture.mode, picture.size) for picture in pictures}) > 1:
            raise ValueError("the images have different sizes or modes: bring them to one")
        return self.image_processor.preprocess(pictures)

    def add_noise(
        self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
    ) -> NoisedLatents:
        """Mix latents and noise as in the training, as `hf_latent.pipeline.add_noise.add_noise`.

        At the training's noise levels and in its terms, whatever the sampler.
        """
        scheduler = self.trained_scheduler
        if not is_flow(scheduler):
            scheduler = create_sampler(scheduler, "ddim")  # of samplers, the one without a state
        return add_noise(scheduler, latents, noise, timesteps)

    @torch.no_grad()
    def denoise_latents(
        self,
        latents: torch.Tensor,
        num_inference_steps: int = 20,
        class_labels: Labels | None = None,
        guidance_scale: float | None = None,
        generator: Generators = None,
        after_step: Callable | None = None,
        guidance_interval: tuple[float, float] | None = None,
        image_latents: torch.Tensor | None = None,
        strength: float = 1.0,
        mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Turn noise, or latents of images with noise, into latents, step by step.

        Args:
            latents: `(B, c, h, w)`, standard normal.
            num_inference_steps: the scheduler's steps, at least 1.
            class_labels: B labels or names; None: the null label of a class-conditional model.
            guidance_scale: 1 is off; None: where there are class labels or a guide the model's
                own, or 2, else off.
            generator: draws the noise of stochastic schedulers.
            after_step: `after_step(i, t, latents) -> latents`, called after every step.
            guidance_interval: guide between these noise levels only, see
                `hf_latent.pipeline.guidance.guidance_by_step`; None: the model's own, or all.
            image_latents: `(B, c, h, w)`, of images to begin with.
            strength: the part of the steps that is made of them, 0 to 1; 1 begins with noise only.
            mask: `(B or 1, 1, h, w)` bool, where the images are made anew; None: everywhere.

        Returns:
            `(B, c, h, w)`, noise-free latents.

        Raises:
            ValueError: if an argument does not fit the model.
        """
        label_ids, guidance_scale, guidance_interval = self._condition(
            len(latents), class_labels, guidance_scale, guidance_interval
        )
        check_sampler(self.trained_scheduler, self.scheduler)
        device, scheduler = self._execution_device, self.scheduler
        noise, kept, skipped = latents.to(device, self.unet.dtype), image_latents, 0
        if kept is None:
            if mask is not None:
                raise ValueError("a mask needs image_latents: what is under it stays")
        else:
            check_latents(self.unet, kept)
            if kept.shape != noise.shape:
                shapes = f"{tuple(kept.shape)}, and of noise {tuple(noise.shape)}"
                raise ValueError(f"image_latents have the shape {shapes}: both must be the same")
            if isinstance(scheduler, PNDMScheduler):  # its first steps are several in one
                raise ValueError("PNDMScheduler begins with noise only: use another sampler")
            kept = kept.to(noise)
            skipped = skipped_steps(num_inference_steps, strength) * getattr(scheduler, "order", 1)
        set_inference_steps(scheduler, num_inference_steps, device)
        timesteps = scheduler.timesteps[skipped:]
        if kept is not None and not len(timesteps):
            return kept
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(skipped)
        if kept is not None and skipped:
            latents = mix_noise(scheduler, kept, noise, timesteps[:1].expand(len(noise)))
        else:
            latents = noise * getattr(scheduler, "init_noise_sigma", 1.0)

        def after(i: int, t: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
            if mask is not None and kept is not None:
                following = timesteps[i + 1] if i + 1 < len(timesteps) else None
                free = mask.to(device)
                latents = keep_unmasked(scheduler, latents, kept, noise, free, following)
            return latents if after_step is None else after_step(i, t, latents)

        latents = denoise_latents(
            self.unet,
            scheduler,
            latents,
            self.progress_bar(timesteps),
            None if label_ids is None else torch.tensor(label_ids, device=device),
            guidance_by_step(scheduler, timesteps, guidance_scale, guidance_interval),
            generator,
            after,
            self.guide_unet,
        )
        self.maybe_free_model_hooks()
        return latents

    def _condition(
        self,
        count: int,
        class_labels: Labels | None,
        guidance_scale: float | None,
        guidance_interval: tuple[float, float] | None,
    ) -> tuple[list[int] | None, float, tuple[float, float] | None]:
        """Return the numbers of the labels, or of the null label, and how they guide."""
        guidable = class_labels is not None or self.guide_unet is not None
        for name, value in (("scale", guidance_scale), ("interval", guidance_interval)):
            if not guidable and value not in (None, 1):
                raise ValueError(
                    f"guidance_{name} needs class_labels or a guide_unet: name one, or leave it "
                    "unset"
                )
        own = self.config.get("guidance")
        guidance = choose_guidance(guidable, guidance_scale, guidance_interval, own)
        if class_labels is not None:
            return self.get_label_ids(class_labels), *guidance
        return (None if self.num_classes is None else [self.num_classes] * count), *guidance

    @torch.no_grad()
    def decode_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """Decode latents `(B, c, h, w)` into images `(B, C, h*f, w*f)`, near [-1, 1]."""
        dtype = self.vae.dtype
        with upcast_where_needed(self.vae):
            images = decode_latents(self.vae, latents.to(self._execution_device)).to(dtype)
        self.maybe_free_model_hooks()
        return images

    @property
    def latent_size(self) -> tuple[int, int]:
        """Height and width of the latents that the denoiser was trained on."""
        size = self.unet.config.sample_size
        return (size, size) if isinstance(size, int) else tuple(size)

    def _mask(self, mask_image: Masks, image_latents: torch.Tensor) -> torch.Tensor:
        height, width = image_latents.shape[2:]
        f = downsampling_factor(self.vae)
        return read_mask(mask_image, (height * f, width * f), (height, width))


def count_images(
    num_images: int | None, given: Mapping[str, Sequence | torch.Tensor | None]
) -> int:
    """Find out how many images are asked for, and whether all that is given fits that.

    Args:
        num_images: as asked for; None: as many as are given, or 1.
        given: what there may be of `class_labels`, which are taken in turn, of `image` and `mask`,
            one of which serves for all, and of `latents`, the noise, which must be there for each.

    Raises:
        ValueError: if it is none, or does not fit.
    """
    counts = {name: len(x) for name, x in given.items() if x is not None}
    if num_images is None:
        num_images = counts.get("latents", max(counts.values(), default=1))
    if num_images < 1 or 0 in counts.values():
        raise ValueError("nothing to generate: num_images must be at least 1")
    if counts.get("latents", num_images) != num_images:
        raise ValueError(f"{counts['latents']} latents for {num_images} images")
    for name in ("image", "mask"):
        if counts.get(name, 1) not in (1, num_images):
            raise ValueError(f"{counts[name]} {name}s were given for {num_images} images")
    return num_images
