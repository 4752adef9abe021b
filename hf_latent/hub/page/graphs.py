"""The steps encode, denoise and decode as ONNX graphs, compared with the pipeline's own."""

import logging
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from hf_latent.errors import UserError
from hf_latent.models.frozen import freeze
from hf_latent.pipeline import LatentDiffusionPipeline
from hf_latent.pipeline.autoencoders import downsampling_factor, image_channels, latent_channels
from hf_latent.pipeline.decode import decode_latents
from hf_latent.pipeline.denoise import predict
from hf_latent.pipeline.encode import encode_images

TOLERANCE = 1e-4  # between graph and pipeline, of images in [-1, 1] and latents of unit variance
# The same with matrices in float16. Half of one of 256 levels of grey is 4e-3.
HALF_TOLERANCE = 2e-3
TRIED_IMAGES = 3  # another number than the graphs are made with


@dataclass(frozen=True)
class Graph:
    """One step of a pipeline.

    Attributes:
        name: of the file, without its ending.
        module: computes the step.
        inputs: tensors by name. Their first dimension is the number of images. A call of the
            exported graph may have another number.
    """

    name: str
    module: nn.Module
    inputs: dict[str, torch.Tensor]


class Step(nn.Module):
    """A function of a model and tensors, as a module.

    Args:
        compute: gets the model and the tensors.
        model: in eval mode.
    """

    def __init__(self, compute: Callable[..., torch.Tensor], model: nn.Module):
        """Keep both."""
        super().__init__()
        self.compute, self.model = compute, model

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        """Compute the step."""
        return self.compute(self.model, *tensors)


def _encode(vae: Any, images: torch.Tensor) -> torch.Tensor:
    return encode_images(vae, images, sample_posterior=False)


def _denoise(unet: Any, noisy_latents: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
    timesteps, *class_labels = others
    names = ("class_labels",)[: len(class_labels)]
    return predict(unet, noisy_latents, timesteps, dict(zip(names, class_labels, strict=True)))


def create_graphs(pipeline: LatentDiffusionPipeline, count: int) -> list[Graph]:
    """Return the three steps of a pipeline, each with inputs of `count` images at its own size."""
    vae, unet = freeze(pipeline.vae.float()), freeze(pipeline.unet.float())
    generator = torch.Generator().manual_seed(0)
    channels, (height, width) = latent_channels(pipeline.vae), pipeline.latent_size
    f = downsampling_factor(pipeline.vae)
    images = torch.rand(
        count, image_channels(pipeline.vae), height * f, width * f, generator=generator
    )
    latents = torch.randn(count, channels, height, width, generator=generator)
    last = pipeline.trained_scheduler.config.num_train_timesteps - 1
    noisy = {"noisy_latents": latents, "timesteps": torch.linspace(last, 1, count).round()}
    if pipeline.num_classes is not None:
        noisy["class_labels"] = torch.arange(count) % (pipeline.num_classes + 1)
    return [
        Graph("encode", Step(_encode, vae), {"images": images * 2 - 1}),
        Graph("denoise", Step(_denoise, unet), noisy),
        Graph("decode", Step(decode_latents, vae), {"latents": latents}),
    ]


def export_graphs(pipeline: LatentDiffusionPipeline, folder: Path) -> dict[str, dict[str, Any]]:
    """Write encode.onnx, denoise.onnx and decode.onnx, each after a comparison.

    Weights are float16 where the step's result stays within `HALF_TOLERANCE`, and the computation
    is in float32.

    Args:
        pipeline: the model; its weights become float32.
        folder: an existing folder.

    Returns:
        By step: the file's bytes, the weights' dtype, and the greatest difference.

    Raises:
        UserError: if a step cannot be exported, or computes something else than the pipeline.
    """
    report = {}
    graphs = create_graphs(pipeline, 2)
    for graph, tried in zip(graphs, create_graphs(pipeline, TRIED_IMAGES), strict=True):
        model = _to_onnx(graph)
        with torch.no_grad():
            expected = tried.module(*tried.inputs.values()).numpy()
        for half, tolerance in ((True, HALF_TOLERANCE), (False, TOLERANCE)):
            content = _serialize(model, half)
            found = run_graph(content, tried.inputs.values())
            difference = float(abs(found - expected).max())
            if difference <= tolerance:
                break
        else:
            raise UserError(
                f"the exported step {graph.name} differs from the pipeline by {difference:.2g}, "
                f"more than {TOLERANCE:g}: this model cannot become a page with these versions of "
                "torch and onnx"
            )
        (folder / f"{graph.name}.onnx").write_bytes(content)
        report[graph.name] = {
            "bytes": len(content),
            "weights": "float16" if half else "float32",
            "greatest_difference": difference,
        }
    return report


def run_graph(content: bytes, inputs: Iterable[torch.Tensor]) -> np.ndarray:
    """Compute a graph with onnxruntime on the CPU.

    Args:
        content: the bytes of an ONNX file.
        inputs: the graph's tensors, in the order of `Graph.inputs`.

    Returns:
        The step's result for B images: latents `(B, c, h, w)`, or images `(B, C, H, W)`, float32.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    names = (node.name for node in session.get_inputs())
    (output,) = session.run(None, {n: x.numpy() for n, x in zip(names, inputs, strict=True)})
    return output


def _to_onnx(graph: Graph) -> Any:
    batch = torch.export.Dim("batch")
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    logger.setLevel(logging.ERROR)  # it names every operation of packages that are not installed
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                graph.module.eval(),
                tuple(graph.inputs.values()),
                dynamo=True,
                dynamic_shapes=(tuple({0: batch} for _ in graph.inputs),),
                input_names=list(graph.inputs),
                output_names=["output"],
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        cause = str(error.__cause__ or error).strip().splitlines()[0]
        raise UserError(f"torch cannot export the step {graph.name} to ONNX: {cause}") from error
    assert program is not None  # of dynamo=True
    return program.model_proto


def _serialize(model: Any, half: bool) -> bytes:
    """Return a model's bytes, its matrices as float16 if `half`, each with a cast back."""
    import onnx
    from onnx import helper, numpy_helper

    written = onnx.ModelProto()
    written.CopyFrom(model)
    if half:
        for weight in written.graph.initializer:
            # Vectors stay: they are short, and among them are the frequencies of the timesteps.
            matrix = sum(size > 1 for size in weight.dims) > 1
            if weight.data_type == onnx.TensorProto.FLOAT and matrix:
                name, stored = weight.name, f"{weight.name}_float16"
                with np.errstate(over="ignore"):  # infinite values do not pass the comparison
                    values = numpy_helper.to_array(weight).astype(np.float16)
                weight.CopyFrom(numpy_helper.from_array(values, stored))
                cast = helper.make_node("Cast", [stored], [name], to=onnx.TensorProto.FLOAT)
                written.graph.node.insert(0, cast)
    return written.SerializeToString()
