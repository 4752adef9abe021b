"""Let an autoencoder start nearly as a linear one: its latents are principal components of patches.

From random weights an AutoencoderKL learns shapes first and colours many epochs later. Principal
components are the best linear code (Pearson 1901), take seconds, and have the colours. So the
layers that every image passes are fitted to them one after the other, on images of the training
set, and the residual branches, which are closed at the start, learn the rest. The idea of fitting
layers to data in turn is of Krähenbühl et al. 2016, that of components of Seuret et al. 2017.
"""

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

import torch
from diffusers import AutoencoderKL
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from torch import nn
from torch.nn import functional as F

# A group norm divides an image's features by their deviation, and so would take its brightness and
# contrast away. A constant in each group keeps them. A larger one keeps more at the start, but less
# is learned from there: behind the norm it leaves the features small, and a step of Adam moves what
# it feeds too far.
CONSTANT = 2.0
# SiLU's curvature is 0 at +-2.4, so that features around it pass as through a straight line.
SILU_INFLECTION, NORM_WEIGHT = 2.4, 0.5
RIDGE = 1e-6  # beside a mean square: components of a constant have none


class Features(NamedTuple):
    """What a layer gives, without its channels that are constant or 0.

    Attributes:
        maps: `(B, n, H, W)` float.
        channels: which of the layer's channels these are, n numbers.
    """

    maps: torch.Tensor
    channels: list[int]


@torch.no_grad()
def start_from_components(vae: AutoencoderKL, images: torch.Tensor, kl_weight: float) -> None:
    """Set the weights of a new autoencoder to those of a linear one, as nearly as its layers can.

    Latents are the principal components of patches of `f x f` pixels, each of variance 1. The
    posterior's variance is the one that the mean squared error and the KL prefer.

    Args:
        vae: new, with random weights; residual branches keep theirs except for the last layer,
            which becomes 0.
        images: `(B, C, H, W)` float in [-1, 1], some of the training set.
        kl_weight: of the training, per latent value.
    """
    _close_residual_branches(vae)
    latents, levels = _fit_encoder(vae, images, kl_weight)
    _fit_decoder(vae, latents, levels, images)


def principal_components(maps: torch.Tensor, side: int, count: int) -> tuple[torch.Tensor, ...]:
    """Find the principal components of patches that lie side by side.

    Args:
        maps: `(B, C, H, W)` float.
        side: of a patch, a divisor of H and W.
        count: of components; fewer if a patch has fewer values.

    Returns:
        The components of each patch, `(B, count, H/side, W/side)`, the one of largest variance
        first, and their variances, `(count,)`.
    """
    grid = len(maps), maps.shape[2] // side, maps.shape[3] // side
    patches = F.unfold(maps, side, stride=side).transpose(0, 1).flatten(1)
    patches = patches - patches.mean(1, keepdim=True)
    covariance = (patches @ patches.T).double() / patches.shape[1]
    variances, directions = (x.flip(-1).float() for x in torch.linalg.eigh(covariance))
    components = (directions[:, :count].T @ patches).unflatten(1, grid).transpose(0, 1)
    return components, variances[:count].clamp(min=0)


def _close_residual_branches(vae: AutoencoderKL) -> None:
    """Let residual blocks and attention add nothing at first (Goyal et al. 2017, section 5.1)."""
    for module in vae.modules():
        if isinstance(module, ResnetBlock2D | Attention):
            last = module.conv2 if isinstance(module, ResnetBlock2D) else module.to_out[0]
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)


def _fit_encoder(
    vae: AutoencoderKL, images: torch.Tensor, kl_weight: float
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Fit the encoder; return its latents, and the components of each level, the finest first."""
    encoder, groups = vae.encoder, vae.config.norm_num_groups
    levels: list[torch.Tensor] = []
    features = Features(images, list(range(images.shape[1])))
    features = _fit_components(encoder.conv_in, features, 1, groups)
    for block in encoder.down_blocks:
        for shortcut in _shortcuts(block):
            features = _fit_components(shortcut, features, 1, groups)
        levels.append(features.maps)
        if block.downsamplers:
            features = _fit_components(block.downsamplers[0].conv, features, 2, groups)
    c, f = vae.config.latent_channels, 2 ** (len(levels) - 1)
    components, variances = principal_components(images, f, c)
    smallest = 1e-6 * variances[0] + 1e-12
    components = components / variances.clamp(min=smallest).sqrt().view(-1, 1, 1)
    latents = _fit_last(encoder.conv_norm_out, encoder.conv_out, features, components)
    # Noise of variance v in a component adds v * error to the mean squared error, and
    # kl_weight / (2c) * (v - 1 - log v) to the weighted KL: at their smallest sum the derivative
    # by v is 0.
    error, weight = variances / (images.shape[1] * f * f), kl_weight / (2 * c)
    rows = slice(c, c + len(error))
    encoder.conv_out.bias[rows] = torch.log(weight / (error + weight).clamp(min=1e-12)).clamp(-20)
    for convolution in (vae.quant_conv, vae.post_quant_conv):
        nn.init.dirac_(convolution.weight)
        nn.init.zeros_(convolution.bias)
    return latents, levels


def _fit_decoder(
    vae: AutoencoderKL, latents: torch.Tensor, levels: list[torch.Tensor], images: torch.Tensor
) -> None:
    """Fit the decoder: from the latents to the coarsest components, then to finer ones."""
    decoder, groups = vae.decoder, vae.config.norm_num_groups
    features = Features(latents, list(range(latents.shape[1])))
    features = _fit_targets(decoder.conv_in, features, levels[-1], groups)
    for block, finer in zip(decoder.up_blocks, [*levels[-2::-1], images], strict=True):
        for shortcut in _shortcuts(block):
            features = _fit_components(shortcut, features, 1, groups)
        if block.upsamplers:
            features = Features(F.interpolate(features.maps, scale_factor=2.0), features.channels)
            features = _fit_targets(block.upsamplers[0].conv, features, finer, groups)
    _fit_last(decoder.conv_norm_out, decoder.conv_out, features, images)


def _shortcuts(block: nn.Module) -> list[nn.Conv2d]:
    """Return the 1x1 convolutions around the residual branches that change the width."""
    resnets = block.get_submodule("resnets").children()
    return [x for resnet in resnets if isinstance(x := resnet.conv_shortcut, nn.Conv2d)]


def _constant_channels(count: int, groups: int) -> list[int]:
    """Return the last channel of each group, if a group has more than one."""
    size = count // groups
    return [x for x in range(count) if size > 1 and x % size == size - 1]


def _fit_components(layer: nn.Conv2d, features: Features, side: int, groups: int) -> Features:
    """Let a layer keep as many components of the features as it has channels."""
    targets, variances = principal_components(features.maps, side, layer.out_channels)
    return _fit_targets(layer, features, targets / variances.mean().clamp(min=1e-12).sqrt(), groups)


def _fit_targets(
    layer: nn.Conv2d, features: Features, targets: torch.Tensor, groups: int
) -> Features:
    """Let a layer's channels become targets and constants; any that are left are 0."""
    constant = _constant_channels(layer.out_channels, groups)
    free = [x for x in range(layer.out_channels) if x not in constant]
    rows = free[: targets.shape[1]]
    return Features(_fit(layer, features, targets[:, : len(rows)], rows, constant), rows)


def _fit_last(
    norm: nn.GroupNorm, layer: nn.Conv2d, features: Features, targets: torch.Tensor
) -> torch.Tensor:
    """Fit the layer behind a norm and SiLU, which become nearly linear; return what it gives."""
    nn.init.constant_(norm.bias, SILU_INFLECTION)
    nn.init.constant_(norm.weight, NORM_WEIGHT)
    constant = _constant_channels(norm.num_channels, norm.num_groups)
    # Behind the norm a constant tells the group's deviation, and a channel of 0 its mean.
    channels = sorted({*features.channels, *constant, *(x - 1 for x in constant)})
    activations = []
    for one in features.maps:  # all channels of one image at a time: they take much memory
        maps = one.new_zeros(1, norm.num_channels, *one.shape[1:])
        maps[:, features.channels], maps[:, constant] = one, CONSTANT
        activations.append(F.silu(norm(maps))[:, channels])
    given = Features(torch.cat(activations), channels)
    return _fit(layer, given, targets, list(range(targets.shape[1])))


def _fit(
    layer: nn.Conv2d,
    features: Features,
    targets: torch.Tensor,
    rows: list[int],
    constant: Sequence[int] = (),
) -> torch.Tensor:
    """Set some output channels of a layer by least squares, and the others to 0.

    Args:
        layer: a convolution of 3x3 pixels, also with stride 2, or of 1x1.
        features: what it gets.
        targets: `(B, len(rows), H, W)`, what its outputs should be.
        rows: the output channels.
        constant: output channels that become `CONSTANT`.

    Returns:
        Its outputs at these channels.
    """
    size, edge = layer.kernel_size, layer.kernel_size[0] // 2
    # diffusers' downsampler adds a row and a column, and its convolution none.
    maps = F.pad(features.maps, (0, edge, 0, edge) if layer.stride == (2, 2) else (edge,) * 4)
    columns = len(features.channels) * prod(size) + 1
    squares = torch.zeros(columns, columns, dtype=torch.float64)
    products = torch.zeros(columns, len(rows), dtype=torch.float64)
    for one, target in zip(maps, targets, strict=True):
        patches = F.unfold(one[None], size, stride=layer.stride)[0]
        patches = torch.cat([patches, torch.ones_like(patches[:1])])
        squares += (patches @ patches.T).double()
        products += (patches @ target.flatten(1).T).double()
    squares.diagonal().add_(RIDGE * squares.diagonal().mean())
    solution = torch.linalg.solve(squares, products).T.to(maps)
    fitted, offsets = solution[:, :-1].unflatten(1, (-1, *size)), solution[:, -1]
    weight, bias = torch.zeros_like(layer.weight), maps.new_zeros(layer.out_channels)
    weight[torch.tensor(rows)[:, None], torch.tensor(features.channels)] = fitted
    bias[rows], bias[list(constant)] = offsets, CONSTANT
    layer.load_state_dict({"weight": weight, "bias": bias})
    return F.conv2d(maps, fitted, offsets, layer.stride)
