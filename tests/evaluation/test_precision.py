import logging
from types import SimpleNamespace

import pytest
import torch

from hf_latent.evaluation import precision
from hf_latent.evaluation.images.sampling import sample_images
from hf_latent.evaluation.precision import (
    TOO_SLOW,
    bf16_speed,
    choose_dtype,
    in_dtype,
    speed_ratio,
)
from tests.pipeline.test_prompts import make_words


def test_two_calls_are_timed_in_turn_for_a_limited_time(monkeypatch):
    clock, called = [0.0], []
    monkeypatch.setattr(precision.time, "perf_counter", lambda: clock[0])

    def take(seconds: float) -> None:
        called.append(seconds)
        clock[0] += seconds

    assert speed_ratio(lambda: take(4), lambda: take(1), 8) == 4
    assert called == [4, 1] * 3, "one for warm-up, and two begin within 8 seconds"
    called.clear()
    assert speed_ratio(lambda: take(1), lambda: take(100), 0) == 0.01
    assert called == [1, 100] * 2


def test_a_processor_without_bfloat16_computes_no_more_than_a_small_product():
    called = []
    ratio = bf16_speed(lambda: called.append(32), lambda: called.append(16))
    assert 0 < ratio < TOO_SLOW if not called else {32, 16} == set(called)


@pytest.mark.parametrize("kind", ["classes", "prompts"])
def test_the_denoiser_is_compared_with_itself(pipeline, monkeypatch, kind):
    outputs = []
    monkeypatch.setattr(precision, "bf16_speed", lambda *calls: outputs.extend(x() for x in calls))
    pipeline = make_words() if kind == "prompts" else pipeline
    precision.denoiser_bf16_speed(pipeline)
    exact, rounded = (output.sample for output in outputs)
    assert (exact.dtype, rounded.dtype) == (torch.float32, torch.bfloat16)
    torch.testing.assert_close(rounded.float(), exact, rtol=0, atol=0.05)
    assert pipeline.unet.dtype == torch.float32


@pytest.mark.parametrize(("speed", "chosen"), [(1.7, torch.bfloat16), (0.004, torch.float32)])
def test_auto_says_what_it_chose(pipeline, monkeypatch, capsys, speed, chosen):
    monkeypatch.setattr(precision, "bf16_speed", lambda *calls: speed)
    logging.getLogger("hf_latent").setLevel(logging.INFO)
    assert choose_dtype(pipeline, "auto") == chosen
    name = str(chosen).removeprefix("torch.")
    line = f"dtype: {name}; bfloat16 is {speed} times as fast as float32 here\n"
    assert capsys.readouterr().out == line
    assert choose_dtype(pipeline, "float16") == torch.float16


@pytest.mark.parametrize(
    ("device", "has", "chosen"),
    [("cuda", True, torch.bfloat16), ("cuda", False, torch.float32), ("mps", True, torch.float32)],
)
def test_auto_takes_bfloat16_on_a_gpu_that_has_it(monkeypatch, device, has, chosen):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has)
    pipeline = SimpleNamespace(device=torch.device(device))
    assert choose_dtype(pipeline, "auto") == chosen


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_images_in_half_precision_are_nearly_those_in_float32(pipeline, dtype, capfd):
    arguments = ([0, 1, 2], 3, 0, 3, 2.0, 2)
    exact = sample_images(pipeline, *arguments)
    half = in_dtype(pipeline, choose_dtype(pipeline, dtype))
    assert {half.vae.dtype, half.unet.dtype} == {getattr(torch, dtype)}
    assert 0 < (sample_images(half, *arguments) - exact).abs().max() < 0.05
    assert torch.equal(sample_images(pipeline, *arguments), exact), "it was copied"
    assert in_dtype(pipeline, torch.float32) is pipeline
    assert capfd.readouterr().err == ""


def test_a_text_encoder_in_half_precision_says_nearly_the_same():
    words = make_words()
    exact, half = (
        sample_images(x, None, 2, 0, 2, prompts=["a red heart", "cat"])
        for x in (words, in_dtype(words, torch.bfloat16))
    )
    assert 0 < (half - exact).abs().max() < 0.05
