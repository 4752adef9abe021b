"""Speed and quality of a model's samplers, over the denoiser evaluations that an image takes."""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median, stdev
from typing import Any, Literal

import numpy as np
import torch
from diffusers import FlowMatchHeunDiscreteScheduler, SchedulerMixin
from jsonargparse.typing import PositiveInt

from hf_latent.data.images.pixels import to_uint8
from hf_latent.errors import UserError
from hf_latent.evaluation.config import ComparisonConfig
from hf_latent.evaluation.features.extractors import (
    FeatureExtractor,
    image_vectors,
    load_feature_extractor,
)
from hf_latent.evaluation.images.reference import comparison_figures, open_real_images
from hf_latent.evaluation.images.sampling import (
    choose_sampling,
    count_evaluations,
    load_pipeline,
    sample_images,
)
from hf_latent.evaluation.machine import shown_name
from hf_latent.evaluation.measures.generation import FD_SUBSETS, frechet_distance
from hf_latent.evaluation.stages import Stages
from hf_latent.evaluation.timing import alternate, seconds_per_call
from hf_latent.experiments.benchmark.benchmark import BenchmarkConfig, median_ratio, run_benchmark
from hf_latent.experiments.benchmark.plot import Line, draw_panels
from hf_latent.experiments.generate import RELEASED
from hf_latent.hub.stock_pipeline import to_stock_pipeline
from hf_latent.output import replaced_whole
from hf_latent.pipeline import LatentDiffusionPipeline
from hf_latent.pipeline.conditions import has_prompts
from hf_latent.pipeline.decode import shown_channels
from hf_latent.pipeline.samplers import compatible_samplers, create_sampler

logger = logging.getLogger(__name__)

STEPS = (2, 4, 8, 20)  # divisors of 1,000 timesteps, which DDIM needs
PANELS = {"fd": "FD", "images_per_second_median": "images a second"}


@dataclass(frozen=True, kw_only=True)
class SamplerBenchmarkConfig(BenchmarkConfig, ComparisonConfig):
    """Compare a model's samplers; write bench.json and samplers.png.

    Each sampler that fits the model's objective draws images with the model's own guidance, with
    all classes in turn: images a second, FD, and denoiser evaluations, which are counted. The model
    is also exported, and compared with diffusers' stock pipeline: its own scheduler (euler for a
    flow's heun), the largest number of steps, all classes in turn, no guidance. A distilled model
    has one sampler and one number of steps, its own. A model with prompts draws from the empty
    one, whose images guidance does not change.

    Attributes:
        resize_mode: As in evaluate; pad is how the released model was trained.
        num_images: Images of each sampler and number of steps, and real ones to compare them with.
            Only FDs of equally many images can be compared.
        num_inference_steps: Numbers of steps. By default 2, 4, 8 and 20; a distilled model's own.
    """

    model: str = RELEASED
    resize_mode: Literal["crop", "pad"] = "pad"
    num_images: PositiveInt | None = 2000
    rounds: PositiveInt = 9
    num_inference_steps: list[PositiveInt] | None = None


@dataclass
class Point:
    """A sampler at one number of steps, and the images that it has drawn so far.

    Attributes:
        sampler: its name.
        scheduler: the sampler.
        steps: the number of steps.
        images: the number of images.
        evaluations: denoiser evaluations of all these images.
        vectors: the images' features, `(n, d)` float32 each.
    """

    sampler: str
    scheduler: SchedulerMixin
    steps: int
    images: int = 0
    evaluations: int = 0
    vectors: list[torch.Tensor] = field(default_factory=list)

    @torch.no_grad()
    def draw(
        self,
        count: int,
        pipeline: LatentDiffusionPipeline,
        extractor: FeatureExtractor,
        config: SamplerBenchmarkConfig,
    ) -> float:
        """Draw the next `count` images; return how many a second, features apart."""
        pipeline.scheduler = self.scheduler
        rows, classes = range(self.images, self.images + count), pipeline.num_classes
        labels = None if classes is None else [row % classes for row in rows]
        with evaluated_batches(pipeline) as batches:
            start = time.perf_counter()
            images = sample_images(
                pipeline,
                labels,
                count,
                config.seed + rows.start,
                config.batch_size,
                num_inference_steps=self.steps,
            )
            seconds = time.perf_counter() - start
        self.images += count
        self.evaluations += sum(batches)
        uint8 = to_uint8(images * 2 - 1)
        self.vectors += [extractor(part) for part in uint8.split(config.batch_size)]
        return count / seconds

    def figures(self, rates: list[float], reference: torch.Tensor) -> dict[str, Any]:
        """Return the point of bench.json.

        Args:
            rates: images a second, one for each round.
            reference: `(N, d)`, features of real images in random order, to compare N with.
        """
        vectors = torch.cat(self.vectors)[: len(reference)]
        subsets = zip(vectors.chunk(FD_SUBSETS), reference.chunk(FD_SUBSETS), strict=True)
        return {
            "sampler": self.sampler,
            "num_inference_steps": self.steps,
            "evaluations_per_image": self.evaluations / self.images,
            "images_per_second": rates,
            "images_per_second_median": median(rates),
            "fd": frechet_distance([vectors], [reference]),
            "fd_subset_std": stdev(frechet_distance([a], [b]) for a, b in subsets),
        }


@contextmanager
def evaluated_batches(pipeline: LatentDiffusionPipeline) -> Iterator[list[int]]:
    """Yield a list that gets the batch size of every evaluation of the denoiser and its guide."""
    sizes: list[int] = []
    networks = [network for network in (pipeline.unet, pipeline.guide_unet) if network is not None]
    hooks = [
        network.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
        for network in networks
    ]
    try:
        yield sizes
    finally:
        for hook in hooks:
            hook.remove()


def create_points(
    pipeline: LatentDiffusionPipeline, num_inference_steps: list[int] | None = None
) -> list[Point]:
    """Return every sampler at every number of steps; UserError if the model cannot do one.

    Args:
        pipeline: the model.
        num_inference_steps: None: `STEPS`, or of a distilled model its own.
    """
    trained, points = pipeline.trained_scheduler, []
    schedulers = {x: create_sampler(trained, x) for x in compatible_samplers(trained)}
    steps: Sequence[int] = STEPS
    if pipeline.config.get("distilled"):
        schedulers, steps = {type(trained).__name__: trained}, [choose_sampling(pipeline)[0]]
    for sampler, scheduler in schedulers.items():
        pipeline.scheduler = scheduler
        for number in sorted({*(num_inference_steps or steps)}):
            choose_sampling(pipeline, number)
            count_evaluations(pipeline, number)  # both refuse a number that does not fit
            points.append(Point(sampler, scheduler, number))
    return points


def compare_with_stock(
    pipeline: LatentDiffusionPipeline, config: SamplerBenchmarkConfig, steps: int
) -> dict[str, Any]:
    """Draw the same images with the pipeline and with its export, `to_stock_pipeline`.

    Returns:
        Images a second of both, and the largest difference of their images in [0, 1]; nothing if
        the model cannot be exported.
    """
    pipeline.scheduler = pipeline.trained_scheduler
    try:
        stock = to_stock_pipeline(pipeline)
    except UserError as error:
        logger.warning("no comparison with a stock pipeline: %s", error)
        return {}
    if isinstance(pipeline.scheduler, FlowMatchHeunDiscreteScheduler):
        pipeline.use_sampler("euler")  # as the export does
    stock.set_progress_bar_config(disable=True)
    count, classes = config.batch_size, pipeline.num_classes
    ours: dict[str, Any] = {"num_images": count}
    theirs: dict[str, Any] = {"batch_size": count}
    if has_prompts(pipeline.unet):
        ours = theirs = {"prompt": [""] * count, "guidance_scale": 1}
    elif classes is not None:
        labels = [row % classes for row in range(count)]
        ours = theirs = {"class_labels": labels, "guidance_scale": 1}

    def draw(call: Any, settings: dict[str, Any], output_type: str = "np") -> Any:
        generator = torch.Generator().manual_seed(config.seed)
        return call(
            generator=generator, num_inference_steps=steps, output_type=output_type, **settings
        ).images

    draws = {"own": partial(draw, pipeline, ours), "stock": partial(draw, stock, theirs)}
    sides = {name: partial(seconds_per_call, call) for name, call in draws.items()}
    seconds = alternate(sides, config.rounds)
    own = draws["own"](output_type="pt").permute(0, 2, 3, 1).cpu().numpy()  # np: the data's values
    return {
        "stock_class": type(stock).__name__,
        "stock_ratio_median": median_ratio(seconds["stock"], seconds["own"]),
        "stock_num_inference_steps": steps,
        "stock_images_per_second": [count / x for x in seconds["stock"]],
        "own_images_per_second": [count / x for x in seconds["own"]],
        "stock_largest_difference": float(np.abs(own - draws["stock"]()).max()),
    }


def benchmark_samplers(config: SamplerBenchmarkConfig) -> dict[str, Any]:
    """Measure every sampler at every number of steps; draw the plot; return figures."""
    pipeline = load_pipeline(config.model)
    _, guidance = choose_sampling(pipeline)
    extractor = load_feature_extractor(config.feature_extractor)
    extractor.see(shown_channels(pipeline.vae))
    _, real = open_real_images(config, pipeline)
    points = create_points(pipeline, config.num_inference_steps)
    stock = compare_with_stock(pipeline, config, points[-1].steps)
    count, stages = len(real.reference), Stages(2)
    with stages.stage("real images", 2 * count) as bar, torch.no_grad():
        reference, other = (
            torch.cat([*image_vectors(real.subset(x), extractor, config.batch_size, bar.update)])
            for x in (real.reference, real.other)
        )
    each = -(-count // (config.rounds + 1))  # one more round warms up
    with stages.stage("sampling", each * (config.rounds + 1) * len(points)) as bar:

        def draw(point: Point) -> float:
            rate = point.draw(each, pipeline, extractor, config)
            bar.update(each)
            return rate

        sides = {f"{x.sampler} {x.steps}": partial(draw, x) for x in points}
        rates = alternate(sides, config.rounds)
    figures = [x.figures(rates[f"{x.sampler} {x.steps}"], reference) for x in points]
    report = {
        "model": shown_name(config.model),
        "data": shown_name(config.data),
        "feature_extractor": config.feature_extractor,
        **comparison_figures(real, extractor, config.seed),
        "guidance_scale": guidance.scale,
        "guidance_interval": guidance.interval,
        "batch_size": config.batch_size,
        "rounds": config.rounds,
        "real_fd": frechet_distance([other], [reference]),
        "points": figures,
        **stock,
        **stages.figures(),
    }
    print(describe_report(report))
    with replaced_whole(Path(config.output_dir) / "samplers.png") as temporary:
        draw_points(report, temporary)
    return report


def describe_report(report: dict[str, Any]) -> str:
    """Return lines for the terminal, one a point."""
    lines = [
        f"{x['sampler']:<5} {x['num_inference_steps']:>3} steps: "
        f"{x['evaluations_per_image']:g} evaluations, {x['images_per_second_median']:.1f} images "
        f"a second, FD {x['fd']:.2f}"
        for x in report["points"]
    ]
    lines.append(f"real images: FD {report['real_fd']:.2f}; all FDs of {report['num_images']:,}")
    if "stock_ratio_median" in report:
        lines.append(
            f"{report['stock_ratio_median']:.3f} of the speed of {report['stock_class']}; images "
            f"differ by up to {report['stock_largest_difference']:.1g}"
        )
    return "\n".join(lines)


def draw_points(report: dict[str, Any], path: Path) -> None:
    """Draw FD and speed over evaluations an image, a line for each sampler.

    Args:
        report: the content of bench.json.
        path: the PNG file to write.
    """
    points = report["points"]
    samplers = dict.fromkeys(x["sampler"] for x in points)
    of_each = [[x for x in points if x["sampler"] == sampler] for sampler in samplers]
    evaluations = [[x["evaluations_per_image"] for x in same] for same in of_each]
    panels = {
        title: [
            Line(same[0]["sampler"], places, [x[key] for x in same])
            for places, same in zip(evaluations, of_each, strict=True)
        ]
        for key, title in PANELS.items()
    }
    ends, real_fd = [min(map(min, evaluations)), max(map(max, evaluations))], report["real_fd"]
    style = {"marker": "", "linestyle": ":", "color": "grey"}
    panels["FD"].append(Line("real images", ends, [real_fd, real_fd], style))
    ticks = [2**n for n in range(1, 12) if ends[0] <= 2**n <= ends[1]]
    draw_panels(panels, "denoiser evaluations an image", ticks, path)


def run(config: SamplerBenchmarkConfig) -> dict[str, Any]:
    """Measure, and write bench.json and samplers.png; return the content of bench.json."""
    return run_benchmark(config, "sampler", benchmark_samplers)
