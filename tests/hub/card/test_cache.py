import json
import re
import shlex

import huggingface_hub
import pytest

from hf_latent.command import parse_config
from hf_latent.data.images.config import ImagesConfig
from hf_latent.data.latents.manifest import check_fits
from hf_latent.hub.card.cache import render_cache_card, size_category
from hf_latent.hub.card.signature import is_unedited
from tests.hub.conftest import TOKEN, write_cache

SHOWN_CLASSES = 100


@pytest.fixture
def manifest(cache):
    return json.loads((cache / "manifest.json").read_text())


def blocks(card, language):
    return re.findall(rf"```{language}\n(.*?)```", card, re.DOTALL)


def test_the_hubs_own_validation_takes_the_card(process, manifest):
    code = "import huggingface_hub\nhuggingface_hub.DatasetCard({!r}).validate()"
    for license in (None, "mit"):
        card = render_cache_card(manifest, "ada/latents", license)
        outcome = process.run(code.format(card))
        assert outcome.status == 0, outcome.err
    broken = card.replace("size_categories:\n- n<1K", "size_categories: tiny")
    assert process.run(code.format(broken)).status == 1


def test_metadata(manifest):
    data = huggingface_hub.DatasetCard(render_cache_card(manifest, license="mit")).data.to_dict()
    assert data == {
        "license": "mit",
        "pretty_name": "Latents of fashion_mnist",
        "size_categories": ["n<1K"],
        "tags": ["latent-diffusion", "latents", "hf-latent", "safetensors"],
        "task_categories": ["unconditional-image-generation"],
        "viewer": False,
    }
    assert "license" not in huggingface_hub.DatasetCard(render_cache_card(manifest)).data.to_dict()


@pytest.mark.parametrize(
    ("rows", "name"),
    [
        (0, "n<1K"),
        (999, "n<1K"),
        (1000, "1K<n<10K"),
        (15_000, "10K<n<100K"),
        (999_999, "100K<n<1M"),
        (10**6, "1M<n<10M"),
        (10**11, "100B<n<1T"),
        (10**12, "n>1T"),
    ],
)
def test_size_categories(rows, name):
    assert size_category(rows) == name


def test_the_card_says_what_the_manifest_says(manifest):
    card = render_cache_card(manifest, "ada/latents")
    assert card.count("# Latents of fashion_mnist") == 1
    for line in (
        "7 images, encoded by the autoencoder fashion-mnist-f4",
        "| image | 1 x 8 x 8 (channels, height, width), 64 values |",
        "| latent | 4 x 2 x 2, 16 values, 4 times fewer |",
        "| preprocessing | pad to 8x8, 1 channels |",
        "| mirror images | none |",
        "| dtype | float32 |",
        f"| the autoencoder's sha256 | {manifest['autoencoder_sha256']} |",
        f"| train | 5 | {manifest['splits']['train']['fingerprint']} |",
        "| files | 4, 1.8 kB of safetensors |",
        "| 3 | +0.1250 | 1.0000 |",
        "| 0 | T-shirt/top |",
        "of shape (images, 1, 4, 2, 2)",
        "`class_labels`, of shape (images,)",
    ):
        assert line in card, line


def test_it_warns_that_latents_are_images(manifest):
    card = " ".join(render_cache_card(manifest).split())
    assert "**These latents are the images.**" in card
    assert "decodes them into images close to the originals" in card
    assert "The images' licence, and the privacy of the people in them, apply" in card


def test_what_the_manifest_lacks_is_left_out(manifest):
    kept = {key: manifest[key] for key in ("splits", "shards")}
    card = render_cache_card(kept)
    for absent in ("preprocessing", "mirror", "None", "class", "sha256 |", "per channel", "times"):
        assert absent not in card, absent
    assert "# Latents of images" in card
    assert "--vae path/to/the/autoencoder --output_dir" in card


def test_mirror_images_are_described(manifest):
    card = render_cache_card(manifest | {"mirrored": True})
    assert "of shape (images, 2, 4, 2, 2)" in card
    assert "View 0 is the image, view 1\nits mirror image." in card


def test_a_local_autoencoder_is_not_named(manifest):
    card = render_cache_card(manifest | {"autoencoder": None, "data": None})
    assert "| autoencoder | from a local folder |" in card
    assert "--vae path/to/the/autoencoder --resolution 8 " in card
    assert "load_autoencoder" not in card


def test_the_python_blocks_run_as_they_stand(hub, process, cache, manifest):
    hub.put("ada/latents", {path.name: path.read_bytes() for path in cache.iterdir()}, private=True)
    card = render_cache_card(manifest, "ada/latents")
    code = "\n".join(blocks(card, "python"))
    outcome = process.run(
        code + "\nprint(*latents.shape, *class_labels.shape, *images.shape)", TOKEN
    )
    assert outcome.out == "2 4 2 2 2 2 1 8 8\n", outcome.err


def test_the_training_command(manifest):
    (command,) = blocks(render_cache_card(manifest, "ada/latents"), "bash")
    assert command == (
        "accelerate launch -m hf_latent train-denoiser --latents ada/latents "
        "--vae fashion-mnist-f4 --resolution 8 --resize_mode pad --output_dir runs/unet\n"
    )
    mirrored = render_cache_card(manifest | {"mirrored": True, "preprocessing": "crop to 8x8"})
    assert " --resolution 8 --horizontal_flip true --output_dir " in mirrored
    wide = render_cache_card(manifest | {"image_shape": [3, 8, 16]})
    assert "--resolution 8,16 " in wide


def test_texts_of_the_manifest_are_escaped(manifest):
    planted = "a|b`<script>\n---\n# x {{ 7 * 7 }}"
    wrong = {key: planted for key in ("data", "preprocessing", "dtype", "autoencoder")}
    wrong["id2label"] = {"0": planted}
    card = render_cache_card(manifest | wrong)
    assert "<script>" not in card and "\n# x" not in card
    assert "| 0 | a\\|b\\`&lt;script&gt; --- # x {{ 7 \\* 7 }} |" in card
    code = " ".join(blocks(card, "python") + blocks(card, "bash"))
    assert "script&" not in code and "--vae path/to" in code
    shell = render_cache_card(manifest | {"autoencoder": 'x"; rm -r $(y)'})
    assert "rm -r" not in " ".join(blocks(shell, "python") + blocks(shell, "bash"))
    assert huggingface_hub.DatasetCard(card).data.to_dict()["viewer"] is False


def test_many_classes_are_cut_short_and_in_order(manifest):
    names = {str(i): f"class {i}" for i in range(SHOWN_CLASSES + 5)}
    card = render_cache_card(manifest | {"id2label": dict(reversed(names.items()))})
    assert card.index("| 2 | class 2 |") < card.index("| 10 | class 10 |")
    assert f"| class {SHOWN_CLASSES} |" not in card
    assert "5 more are in `manifest.json`." in card


def test_an_edit_is_noticed(tmp_path, manifest):
    card = render_cache_card(manifest)
    assert is_unedited(card)
    assert is_unedited(card.replace("\n", "\r\n"))
    assert not is_unedited(card.replace("fashion", "Fashion", 1))
    assert not is_unedited("mine\n" + card)
    assert not is_unedited(card + "mine\n")
    assert not is_unedited("---\nlicense: mit\n---\n")
    without = json.loads((write_cache(tmp_path / "x", classes=False) / "manifest.json").read_text())
    assert is_unedited(render_cache_card(without))
    assert "Classes" not in render_cache_card(without)


@pytest.mark.parametrize("changes", [{}, {"mirrored": True}, {"preprocessing": "crop to 8x8"}])
def test_the_training_command_is_one_that_the_cache_fits(manifest, changes):
    manifest = manifest | changes
    (command,) = blocks(render_cache_card(manifest, "ada/latents"), "bash")
    flags = shlex.split(command)[5:]
    given = dict(zip(flags[::2], flags[1::2], strict=True))
    known = ("--resolution", "--resize_mode", "--horizontal_flip")
    flags = [f"{name}={given[name]}" for name in known if name in given]
    config = parse_config(ImagesConfig, flags)
    check_fits("cache", manifest, config, manifest["autoencoder_sha256"])
    assert config.horizontal_flip == manifest["mirrored"]
