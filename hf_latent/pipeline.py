"""The four steps composed: encode, add noise, denoise, decode."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, ImagePipelineOutput, UNet2DModel
from diffusers.image_processor import VaeImageProcessor
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image

from .add_noise import NoisedLatents, add_noise
from .decode import decode_latents
from .denoise import denoise_latents, set_inference_steps
from .encode import encode_images
from .exact_weights import align_weights, lacking_weights
from .hub_format import HubFormat

Images = torch.Tensor | Image.Image | list[Image.Image]
Generators = torch.Generator | list[torch.Generator] | None
Labels = int | str | Sequence[int | str] | torch.Tensor
DEFAULT_GUIDANCE_SCALE = 2.0


class LatentDiffusionPipeline(HubFormat, DiffusionPipeline):
    """Unconditional or class-conditional latent diffusion, from plain diffusers parts.

    Args:
        vae: the autoencoder (`AutoencoderKL` or `AutoencoderTiny`).
        unet: the denoiser; N classes have N + 1 embeddings, the last the null label.
        scheduler: a stock scheduler of the denoiser's objective.
        id2label: the classes' names, by label.
    """

    model_cpu_offload_seq = "unet->vae"

    def __init__(
        self,
        vae: AutoencoderKL,
        unet: UNet2DModel,
        scheduler: SchedulerMixin,
        id2label: dict | None = None,
    ):
        """Register the components; see the class."""
        super().__init__()
        for name, model in (("vae", vae), ("unet", unet)):
            lacking = [] if hasattr(model, "hf_device_map") else lacking_weights(model)
            if lacking:
                raise ValueError(f"the {name} lacks weights: {', '.join(lacking[:3])}")
            align_weights(model)
        self.register_modules(vae=vae, unet=unet, scheduler=scheduler)
        self.register_to_config(id2label=id2label)
        self.image_processor = VaeImageProcessor(do_resize=False)

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
        if self.num_classes is None:
            raise ValueError("this model has no classes: ask for num_images without class_labels")
        if isinstance(class_labels, torch.Tensor):
            class_labels = class_labels.flatten().tolist()
        elif isinstance(class_labels, str) or not isinstance(class_labels, Sequence):
            class_labels = [class_labels]
        numbers = range(self.num_classes)
        label_of = {str(label): label for label in numbers}
        label_of |= {name: label for label, name in self.id2label.items()}  # names come first
        label_ids = [label_of.get(x, -1) if isinstance(x, str) else x for x in class_labels]
        for label, label_id in zip(class_labels, label_ids, strict=True):
            if label_id not in numbers:
                names = (self.id2label and f", or one of {', '.join(self.id2label.values())}") or ""
                raise ValueError(
                    f"class label {label} is not in the model: "
                    f"use a number from 0 to {self.num_classes - 1}{names}"
                )
        return [int(label_id) for label_id in label_ids]

    @torch.no_grad()
    def encode_images(
        self, images: Images, generator: Generators = None, sample_posterior: bool = True
    ) -> torch.Tensor:
        """Encode images, `(B, C, H, W)` in [-1, 1] or PIL, as `hf_latent.encode.encode_images`."""
        pixels = images
        if not isinstance(pixels, torch.Tensor):
            pictures = pixels if isinstance(pixels, list) else [pixels]
            if modes := {picture.mode for picture in pictures} - {"L", "RGB", "RGBA"}:
                raise ValueError(f"convert images of mode {modes} to L, RGB or RGBA first")
            pixels = self.image_processor.preprocess(pictures)
        pixels = pixels.to(self._execution_device)
        latents = encode_images(self.vae, pixels, generator, sample_posterior)
        self.maybe_free_model_hooks()
        return latents

    def add_noise(
        self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
    ) -> NoisedLatents:
        """Mix latents and noise, as `hf_latent.add_noise.add_noise` with the scheduler."""
        return add_noise(self.scheduler, latents, noise, timesteps)

    @torch.no_grad()
    def denoise_latents(
        self,
        latents: torch.Tensor,
        num_inference_steps: int = 20,
        class_labels: Labels | None = None,
        guidance_scale: float | None = None,
        generator: Generators = None,
        after_step: Callable | None = None,
    ) -> torch.Tensor:
        """Turn noise into latents, in `num_inference_steps` scheduler steps.

        Args:
            latents: `(B, c, h, w)`, standard normal.
            num_inference_steps: the scheduler's steps, at least 1.
            class_labels: B labels or names; None: the null label of a class-conditional model.
            guidance_scale: 1 is off; None: 2 where there are class labels, else off.
            generator: draws the noise of stochastic schedulers.
            after_step: `after_step(i, t, latents) -> latents`, called after every step.

        Returns:
            `(B, c, h, w)`, noise-free latents.

        Raises:
            ValueError: if an argument does not fit the model.
        """
        if class_labels is not None:
            label_ids = self.get_label_ids(class_labels)
            guidance_scale = DEFAULT_GUIDANCE_SCALE if guidance_scale is None else guidance_scale
        elif guidance_scale not in (None, 1):
            raise ValueError("guidance_scale needs class_labels: name them, or leave it unset")
        elif self.num_classes is not None:
            label_ids = [self.num_classes] * len(latents)
        else:
            label_ids = None
        device = self._execution_device
        set_inference_steps(self.scheduler, num_inference_steps, device)
        latents = latents.to(device, self.unet.dtype)
        latents = denoise_latents(
            self.unet,
            self.scheduler,
            latents * getattr(self.scheduler, "init_noise_sigma", 1.0),
            self.progress_bar(self.scheduler.timesteps),
            None if label_ids is None else torch.tensor(label_ids, device=device),
            guidance_scale,
            generator,
            after_step,
        )
        self.maybe_free_model_hooks()
        return latents

    @torch.no_grad()
    def decode_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """Decode latents `(B, c, h, w)` into images `(B, C, h*f, w*f)`, near [-1, 1]."""
        images = decode_latents(self.vae, latents.to(self._execution_device))
        self.maybe_free_model_hooks()
        return images

    def reconstruct(
        self, images: Images, output_type: str = "pt"
    ) -> torch.Tensor | np.ndarray | list[Image.Image]:
        """Encode images to the posterior's mean and decode them: what the latent keeps.

        `output_type` is "pt" `(B, C, H, W)` in [0, 1], "np" `(B, H, W, C)` in [0, 1], or "pil".
        """
        reconstructions = self.decode_latents(self.encode_images(images, sample_posterior=False))
        return self.image_processor.postprocess(reconstructions, output_type)

    @torch.no_grad()
    def __call__(
        self,
        class_labels: Labels | None = None,
        num_images: int | None = None,
        guidance_scale: float | None = None,
        num_inference_steps: int = 20,
        generator: Generators = None,
        latents: torch.Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> ImagePipelineOutput | tuple:
        """Generate images.

        Args:
            class_labels: labels or class names; with `num_images` they are taken in turn.
            num_images: how many images in all; by default one a label, or 1.
            guidance_scale: classifier-free guidance, 1 is off; None: 2 with labels, else off.
            num_inference_steps: the scheduler's steps, at least 1.
            generator: one, or a list of one an image (which is then the same in any batch).
            latents: `(B, c, h, w)` standard normal noise to start from, instead of a drawn one.
            output_type: as of `reconstruct`, or "latent" `(B, c, h, w)`.
            return_dict: return an `ImagePipelineOutput` with `images`, otherwise `(images,)`.
            callback_on_step_end: `callback(pipeline, i, t, {"latents": ...})`, after every step;
                latents in the dict that it returns go on to the next step.
            callback_on_step_end_tensor_inputs: what is in the callback's dict.

        Raises:
            ValueError: if an argument does not fit the model.
        """
        if output_type not in ("pil", "np", "pt", "latent"):
            raise ValueError(f"output_type must be pil, np, pt or latent, not {output_type!r}")
        if unknown := set(callback_on_step_end_tensor_inputs) - {"latents"}:
            raise ValueError(f"callback_on_step_end_tensor_inputs has no {sorted(unknown)}")
        labels = None if class_labels is None else self.get_label_ids(class_labels)
        if num_images is None:
            num_images = (
                len(latents) if latents is not None else 1 if labels is None else len(labels)
            )
        if num_images < 1 or labels == []:
            raise ValueError("nothing to generate: num_images must be at least 1")
        if labels is not None:
            labels = [labels[i % len(labels)] for i in range(num_images)]
        for given in (generator, latents):
            if isinstance(given, list | torch.Tensor) and len(given) != num_images:
                raise ValueError(f"{len(given)} latents or generators for {num_images} images")
        if latents is None:
            size = self.unet.config.sample_size
            size = (size, size) if isinstance(size, int) else size
            shape = (num_images, self.unet.config.in_channels, *size)
            latents = randn_tensor(shape, generator, self._execution_device, self.unet.dtype)

        def after_step(i: int, t: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
            if callback_on_step_end is None:
                return latents
            tensors = {"latents": latents} if callback_on_step_end_tensor_inputs else {}
            return (callback_on_step_end(self, i, t, tensors) or {}).get("latents", latents)

        latents = self.denoise_latents(
            latents, num_inference_steps, labels, guidance_scale, generator, after_step
        )
        if output_type == "latent":
            images = latents
        else:
            images = self.image_processor.postprocess(self.decode_latents(latents), output_type)
        return ImagePipelineOutput(images=images) if return_dict else (images,)
