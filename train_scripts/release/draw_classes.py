"""Draw images of all classes of a model, in two halves side by side, for the README.

    python train_scripts/release/draw_classes.py MODEL PICTURE

No image is selected: image i has the seed i.
"""

import sys
from pathlib import Path

from PIL import Image

from hf_latent.evaluation.images.sampling import load_pipeline, sample_images
from hf_latent.evaluation.pictures import GAP, labelled_rows, save_picture

COLUMNS, BATCH_SIZE = 5, 50


def draw_classes(model: str) -> Image.Image:
    """Return rows of a model's images: a row for each class, with its name."""
    pipeline = load_pipeline(model)
    names = pipeline.id2label
    labels, half = list(names), -(-len(names) // 2)
    asked = [label for label in labels for _ in range(COLUMNS)]
    images = sample_images(pipeline, asked, len(asked), 0, BATCH_SIZE)
    # `labelled_rows` takes an image of each class in turn.
    columns = images.unflatten(0, (len(labels), COLUMNS)).transpose(0, 1)
    left, right = (
        labelled_rows(columns[:, part].flatten(0, 1), labels[part], names)
        for part in (slice(half), slice(half, None))
    )
    picture = Image.new("RGB", (left.width + GAP + right.width, left.height), "white")
    picture.paste(left, (0, 0))
    picture.paste(right, (left.width + GAP, 0))
    return picture


if __name__ == "__main__":
    model, picture = sys.argv[1:]
    save_picture(Path(picture), draw_classes(model))
