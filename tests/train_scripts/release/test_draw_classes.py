import torch
from diffusers.image_processor import VaeImageProcessor

from draw_classes import COLUMNS, draw_classes
from hf_latent.evaluation.pictures import GAP, LABEL_WIDTH


def test_each_class_has_a_row_of_its_own_images(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    picture = draw_classes(str(tmp_path))
    width, tile = LABEL_WIDTH + COLUMNS * 64, (64, 64)  # images of 16 pixels are enlarged
    assert picture.size == (2 * width + GAP, 2 * 64)
    for label, (left, top) in {0: (0, 0), 1: (0, 64), 2: (width + GAP, 0)}.items():
        seed = label * COLUMNS + 1  # of the second image in its row
        generator = torch.Generator().manual_seed(seed)
        (image,) = pipeline([label], generator=generator, output_type="pt").images
        (expected,) = VaeImageProcessor.numpy_to_pil(image.permute(1, 2, 0).numpy())
        left += LABEL_WIDTH + 64
        found = picture.crop((left, top, left + 64, top + 64))
        assert found.tobytes() == expected.convert("RGB").resize(tile, 0).tobytes()
