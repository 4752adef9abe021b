"""Draw captions that were held out, and say which of them are recognised.

    python train_scripts/release/words_figures.py MODEL DATA CACHE

MODEL was trained on the captions of DATA, whose held-out images have other combinations of words.
It writes docs/reports/words.json and docs/pictures/words.png. No image is selected: image i of the
first column has the seed i. CACHE is the folder of a vector cache.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from hf_latent.data.images.dataset import evenly_spaced
from hf_latent.data.images.pixels import to_uint8
from hf_latent.evaluation.config import EvaluateConfig
from hf_latent.evaluation.features.extractors import load_feature_extractor
from hf_latent.evaluation.images.captioned import HeldOutCaptions, learn_captions
from hf_latent.evaluation.images.reference import open_real_images, vectors_by_space
from hf_latent.evaluation.images.sampling import choose_sampling, load_pipeline, sample_images
from hf_latent.evaluation.machine import machine_figures, shown_name
from hf_latent.evaluation.measures.retrieval import distinct_captions, rank_own
from hf_latent.evaluation.pictures import image_grid, save_picture
from hf_latent.evaluation.stages import Stages
from hf_latent.output import write_json

DOCS = Path(__file__).parents[2] / "docs"
PROMPTS, IMAGES, BATCH_SIZE = 20, 4, 32


def draw_held_out(model: str, data: str, cache: str) -> tuple[dict[str, Any], Image.Image]:
    """Draw `PROMPTS` held-out captions; return a report and the picture."""
    pipeline, stages = load_pipeline(model), Stages(3)
    config = EvaluateConfig(model=model, data=data, output_dir=cache, label_column="none")
    splits, real = open_real_images(config, pipeline)
    every = HeldOutCaptions.of(real.held_out, splits.captions)
    extractor = load_feature_extractor(config.feature_extractor)
    vectors = vectors_by_space(real, {"features": extractor}, cache, BATCH_SIZE, 0, stages)
    with stages.stage("judge") as bar:
        judge, embeddings, learned = learn_captions(
            every, real.train, vectors["features"], pipeline, config.seed, bar
        )
    places = torch.from_numpy(evenly_spaced(len(every.rows), PROMPTS))
    others = torch.ones(len(every.rows), dtype=torch.bool).index_fill(0, places, False)
    order = torch.cat([places, others.nonzero().flatten()])
    captions = HeldOutCaptions(every.texts, every.rows[order], every.caption_ids[order])
    prompts = captions.prompts[:PROMPTS]
    with stages.stage("drawing", PROMPTS * IMAGES) as bar:
        images = sample_images(
            pipeline, None, PROMPTS * IMAGES, config.seed, BATCH_SIZE, prompts=prompts
        )
        bar.update(len(images))
    held_out = real.held_out.read_uint8(captions.rows[:PROMPTS])
    ranked, own = distinct_captions(captions.caption_ids), captions.caption_ids[:PROMPTS]
    shown = {"rank": to_uint8(images[:PROMPTS] * 2 - 1), "real_rank": held_out}
    with torch.no_grad():
        ranks = {
            name: rank_own(judge, extractor(x), own, embeddings, ranked).tolist()
            for name, x in shown.items()
        }
    steps, guidance = choose_sampling(pipeline)
    report = {
        "model": shown_name(model),
        "data": shown_name(data),
        "num_captions": len(ranked),
        "judge_train_images": learned,
        "num_inference_steps": steps,
        "guidance_scale": guidance.scale,
        "guidance_interval": guidance.interval,
        "captions": [
            {"caption": text, **{name: ranks[name][i] for name in ranks}}
            for i, text in enumerate(prompts)
        ],
    }
    grid = torch.cat([images.unflatten(0, (IMAGES, PROMPTS)), held_out[None] / 255])
    picture = image_grid(
        grid.transpose(0, 1).flatten(0, 1),
        IMAGES + 1,
        row_labels=prompts,
        column_labels=[*["drawn"] * IMAGES, "held out"],
    )
    return report | machine_figures(), picture


if __name__ == "__main__":
    report, picture = draw_held_out(*sys.argv[1:])
    write_json(DOCS / "reports" / "words.json", report)
    save_picture(DOCS / "pictures" / "words.png", picture)
    found = sum(x["rank"] <= 5 for x in report["captions"])
    print(f"{found} of {PROMPTS} captions are among the first five of {report['num_captions']}")
