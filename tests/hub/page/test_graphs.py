"""The exported graphs compute the pipeline's own steps, or are refused."""

import numpy as np
import onnx
import pytest
import torch

from hf_latent.errors import UserError
from hf_latent.hub.page import graphs
from hf_latent.hub.page.graphs import export_graphs, run_graph
from tests.conftest import NUM_CLASSES


def compute(page, step: str, *inputs: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(run_graph((page / f"{step}.onnx").read_bytes(), inputs))


@pytest.mark.parametrize("count", [1, 5])
def test_graphs_encode_denoise_and_decode(model, page, count):
    generator = torch.Generator().manual_seed(3)
    images = torch.rand(count, 3, 16, 16, generator=generator) * 2 - 1
    latents = model.encode_images(images, sample_posterior=False)
    # The export compared other images.
    close = {"rtol": 0, "atol": 2 * graphs.HALF_TOLERANCE}
    torch.testing.assert_close(compute(page, "encode", images), latents, **close)
    decoded = model.decode_latents(latents)
    torch.testing.assert_close(compute(page, "decode", latents), decoded, **close)
    timesteps = torch.linspace(1000, 1, count)
    labels = torch.arange(count) % (NUM_CLASSES + 1)
    with torch.no_grad():
        expected = model.unet(latents, timesteps, class_labels=labels).sample
    found = compute(page, "denoise", latents, timesteps, labels)
    torch.testing.assert_close(found, expected, **close)


def test_matrices_are_float16_and_vectors_float32(page):
    weights = onnx.load(page / "denoise.onnx").graph.initializer
    shapes = {x.data_type: set() for x in weights}
    for weight in weights:
        shapes[weight.data_type].add(sum(size > 1 for size in weight.dims))
    assert min(shapes[onnx.TensorProto.FLOAT16]) == 2
    assert max(shapes[onnx.TensorProto.FLOAT]) == 1


@pytest.fixture
def only_decode(monkeypatch):
    """An export takes 10 seconds a graph."""
    create = graphs.create_graphs
    monkeypatch.setattr(graphs, "create_graphs", lambda *given: create(*given)[2:])


@pytest.mark.usefixtures("only_decode")
def test_weights_that_float16_changes_stay_float32(model, tmp_path, monkeypatch):
    monkeypatch.setattr(graphs, "HALF_TOLERANCE", 0.0)
    report = export_graphs(model, tmp_path)
    assert report["decode"]["weights"] == "float32"
    assert report["decode"]["greatest_difference"] <= graphs.TOLERANCE
    weights = onnx.load(tmp_path / "decode.onnx").graph.initializer
    assert onnx.TensorProto.FLOAT16 not in {x.data_type for x in weights}


@pytest.mark.usefixtures("only_decode")
def test_a_graph_that_computes_something_else_is_refused(model, tmp_path, monkeypatch):
    monkeypatch.setattr(graphs, "run_graph", lambda *inputs: np.float32(7))
    with pytest.raises(UserError, match="decode differs from the pipeline by"):
        export_graphs(model, tmp_path)
    assert not list(tmp_path.iterdir())
