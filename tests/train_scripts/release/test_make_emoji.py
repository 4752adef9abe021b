import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from datasets import Image as ImageFeature
from PIL import Image

from hf_latent.command import run_command
from hf_latent.data.images.config import ImagesConfig
from hf_latent.data.images.open import open_images
from hf_latent.errors import UserError
from make_emoji import (
    COLOURED,
    EmojiConfig,
    caption_emoji,
    group_key,
    is_held_out,
    is_held_out_combination,
    join_groups,
    list_images,
    make_emoji,
)
from tests import forked

SCRIPT = Path(__file__).parents[3] / "train_scripts" / "release" / "make_emoji.py"
TONES = ["1F3FB", "1F3FC", "1F3FF"]
PLAIN = [f"{code:X}" for code in range(0x1F400, 0x1F440)]
HANDS = ["1F44B", "1F44D", "1F44E", "1F64F"]
# Flags of the United States and its islands; separate groups would be in different splits.
SAME_PIXELS = ("1F1FA-1F1F8", "1F1FA-1F1F2")


def picture(seed, hidden=0):
    """Return an RGBA image; `hidden` changes only its colour under full transparency."""
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 4), np.uint8)
    pixels[:4, :, 3] = 0
    pixels[:4, :, :3] = hidden
    png = io.BytesIO()
    Image.fromarray(pixels).save(png, "PNG")
    return png.getvalue()


def entry(unified, category="Animals & Nature", tones=()):
    """Return an entry of emoji.json."""

    def one(code):
        return {"unified": code, "image": f"{code.lower()}.png", "has_img_google": True}

    variants = {tone: one(f"{unified}-{tone}") for tone in tones}
    return one(unified) | {"category": category} | ({"skin_variations": variants} if tones else {})


def names_of(emoji):
    return [one["image"] for one in (emoji, *emoji.get("skin_variations", {}).values())]


def write_entries(package, emoji):
    (package / "emoji.json").write_text(json.dumps(emoji))


@pytest.fixture
def emoji():
    """Return the emoji of a miniature package."""
    people = [entry(code, "People & Body", TONES) for code in HANDS]
    flags = [entry(code, "Flags") for code in SAME_PIXELS]
    return [*(entry(code) for code in PLAIN), *people, *flags, entry("1F3FB", "Component")]


@pytest.fixture
def package(tmp_path, emoji):
    folder = tmp_path / "package"
    images = folder / "img" / "google" / "64"
    images.mkdir(parents=True)
    for seed, name in enumerate(name for one in emoji for name in names_of(one)):
        (images / name).write_bytes(picture(seed))
    for hidden, code in enumerate(SAME_PIXELS):
        (images / f"{code.lower()}.png").write_bytes(picture(1000, hidden))
    write_entries(folder, emoji)
    (folder / "package.json").write_text('{"version": "1.2.3"}')
    (folder / "LICENSE").write_text("MIT, somebody")
    return folder


def make(package, output_dir):
    make_emoji(EmojiConfig(package=str(package), output_dir=str(output_dir)))
    return {
        split: Dataset.from_parquet(
            str(output_dir / f"{split}.parquet"), cache_dir=str(output_dir / "cache")
        )
        for split in ("train", "test")
    }


def sides(package, splits):
    """Return the split that has each file's bytes."""
    found = {}
    for split, rows in splits.items():
        for image in rows.cast_column("image", ImageFeature(decode=False))["image"]:
            found[image["bytes"]] = split
    files = (package / "img" / "google" / "64").iterdir()
    return {file.name: found.get(file.read_bytes()) for file in files}


@pytest.mark.parametrize(
    "same",
    [
        ["1F44B", "1F44B-1F3FB", "1F44B-1F3FF"],
        ["1F9D1-200D-1F680", "1F468-200D-1F680", "1F469-1F3FD-200D-1F680"],
        ["1F3C3", "1F3C3-200D-2640-FE0F", "1F3C3-1F3FB-200D-2642-FE0F-200D-27A1-FE0F"],
        ["1F9D1", "1F468", "1F469", "1F468-200D-1F9B0", "1F9D1-1F3FF-200D-1F9B3"],
        ["1F9D2", "1F466", "1F467-1F3FB"],
        ["1F9D3", "1F474", "1F475"],
        ["1F46A", "1F468-200D-1F467", "1F468-200D-1F469-200D-1F467-200D-1F466"],
        ["1F46A", "1F9D1-200D-1F9D1-200D-1F9D2-200D-1F9D2"],
        ["1F46B", "1F46D", "1F9D1-200D-1F91D-200D-1F9D1", "1F469-200D-1F91D-200D-1F468-1F3FB"],
        ["1F491", "1F469-200D-2764-FE0F-200D-1F468"],
        ["1F48F", "1F468-200D-2764-FE0F-200D-1F48B-200D-1F468"],
        ["1F934", "1F478", "1FAC5-1F3FB"],
        ["1F385", "1F936", "1F9D1-200D-1F384"],
        ["1F91B", "1F91C-1F3FB"],
        ["1F550", "1F567"],
        ["0023-FE0F-20E3", "0039-FE0F-20E3"],
        ["27A1-FE0F", "2B05-FE0F"],
    ],
)
def test_variants_share_a_group(same):
    assert len({group_key(unified) for unified in same}) == 1


def test_different_emoji_have_different_groups():
    # A sign that is dropped from other emoji is also an emoji.
    emoji = ["1F600", "1F44B", "1F9D1", "1F9D2", "1F9D3", "1F9D1-200D-1F680", "1F46A", "1F46B"]
    emoji += ["1F491", "1F48F", "2640-FE0F", "2642-FE0F", "27A1-FE0F", "1F550", "2764-FE0F"]
    assert len({group_key(unified) for unified in emoji}) == len(emoji)


def test_groups_that_share_images_are_joined_in_chains():
    groups = ["d", "c", "b", "c", "a", "b", "e"]
    hashes = ["1", "2", "3", "1", "4", "2", "5"]
    assert join_groups(groups, hashes) == ["b", "b", "b", "b", "a", "b", "e"]


def test_a_fixed_tenth_of_the_groups_is_held_out():
    assert [code for code in PLAIN[:32] if is_held_out(group_key(code))] == ["1F405", "1F409"]
    assert 80 < sum(is_held_out(f"{code:x}") for code in range(1000)) < 120


def test_every_image_is_in_the_split_of_its_group_with_unchanged_bytes(package, emoji, tmp_path):
    splits = make(package, tmp_path / "made")
    side = sides(package, splits)
    assert side.pop("1f3fb.png") is None
    for code in (*PLAIN, *HANDS):
        one = next(one for one in emoji if one["unified"] == code)
        expected = "test" if is_held_out(group_key(code)) else "train"
        assert [side[name] for name in names_of(one)] == [expected] * len(names_of(one))
    assert [is_held_out(group_key(code)) for code in SAME_PIXELS] == [True, False]
    assert {side[f"{code.lower()}.png"] for code in SAME_PIXELS} in ({"train"}, {"test"})
    assert set(side.values()) == {"train", "test"}
    assert sum(len(rows) for rows in splits.values()) == len(side)


def test_skin_tones_of_a_couple_are_in_the_couples_split(package):
    couple = entry("1F46B", "People & Body", TONES)
    couple["skin_variations"]["1F3FB"]["unified"] = "1F469-1F3FB-200D-1F91D-200D-1F468-1F3FC"
    write_entries(package, [couple])
    assert {image.group for image in list_images(package)} == {"1f46b"}


def test_captions_are_names_and_skin_tones():
    emoji = {"name": "PERSON COOKING", "short_names": ["person-cooking", "cook_"]}
    assert caption_emoji(emoji) == ("person cooking", "cook")
    found = caption_emoji(emoji, "1F3FB")
    assert found == ("person cooking, light skin tone", "cook, light skin tone")
    both = "person cooking, medium-light skin tone and dark skin tone"
    assert caption_emoji(emoji, "1F3FC-1F3FF")[0] == both
    assert caption_emoji(emoji, "1F3FF-1F3FF")[0] == "person cooking, dark skin tone"


def test_combinations_are_held_out_in_all_directions_and_tones():
    names = [f"{who} {what}" for who in ("man", "woman") for what in map(str, range(500))]
    held_out = [name for name in names if is_held_out_combination(name, names)]
    assert 25 < len(held_out) < 75
    assert not any(is_held_out_combination(name, ["man only"]) for name in held_out)
    for name in held_out[:5]:
        assert is_held_out_combination(f"{name} facing right", names)
        assert is_held_out_combination(f"{name}, dark skin tone", names)
    tones = [f"{x}, dark skin tone" for x in range(1000)]
    assert 30 < sum(is_held_out_combination(name, tones) for name in tones) < 75
    assert all(is_held_out_combination(name, []) for name in COLOURED)
    assert not is_held_out_combination("red heart", [])


def test_with_captions_images_are_split_by_them(package, emoji, tmp_path):
    for number, one in enumerate(emoji):
        one |= {"name": f"THING {number}", "short_names": [f"thing-{number}"]}
    emoji[0]["name"] = "BLUE HEART"
    write_entries(package, emoji)
    folder = tmp_path / "made"
    make_emoji(EmojiConfig(package=str(package), output_dir=str(folder), captions=True))
    images = open_images(
        ImagesConfig(data=str(folder), resolution=8, channels=4, caption_column="auto")
    )
    texts = images.captions.texts
    first = [
        {texts[i] for i in split.caption_ids[:, 0].tolist()}
        for split in (images.train, images.validation)
    ]
    assert "blue heart" in first[1] and not first[0] & first[1]
    assert "thing 1" in first[0]
    assert "Split: by combinations of words" in (folder / "README.md").read_text()


def test_labels_are_categories_and_the_readme_counts_them(package, tmp_path):
    splits = make(package, tmp_path / "made")
    for rows in splits.values():
        names = ["Animals & Nature", "Flags", "People & Body"]
        assert rows.features["label"].names == names
    train, test = (rows["label"][:].count(0) for rows in splits.values())
    readme = (tmp_path / "made" / "README.md").read_text()
    assert f"| Animals & Nature | {train} | {test} |" in readme
    assert "1.2.3" in readme and "Apache" in readme
    licence = tmp_path / "made" / "LICENSE-emoji-datasource-google"
    assert licence.read_text() == "MIT, somebody"


def test_emoji_without_an_image_are_left_out(package, emoji):
    emoji[0]["has_img_google"] = False
    emoji[-4]["skin_variations"][TONES[0]]["has_img_google"] = False
    write_entries(package, emoji)
    names = {image.name for image in list_images(package)}
    assert names_of(emoji[0])[0] not in names
    assert names_of(emoji[-4])[1] not in names and names_of(emoji[-4])[2] in names


def test_the_folder_opens_as_images_with_four_channels_and_its_own_test_split(package, tmp_path):
    splits = make(package, tmp_path / "made")
    images = open_images(ImagesConfig(data=str(tmp_path / "made"), resolution=8, channels=4))
    assert (len(images.train), len(images.validation)) == tuple(map(len, splits.values()))
    assert images.num_classes == 3
    item = images.train[0]
    pixels = np.asarray(splits["train"][0]["image"]).transpose(2, 0, 1)
    assert np.allclose(item["images"].numpy(), pixels / 127.5 - 1, atol=1e-6)
    assert int(item["class_labels"]) == splits["train"][0]["label"]


def test_the_same_package_makes_the_same_files(package, tmp_path):
    for name in ("a", "b"):
        make_emoji(EmojiConfig(package=str(package), output_dir=str(tmp_path / name)))
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


@pytest.mark.parametrize("name", ["../../x.png", "/etc/x.png", "a/b.png", "1f600.png\n", "", 7])
def test_an_invalid_image_name_is_refused(package, emoji, name):
    emoji[3]["image"] = name
    write_entries(package, emoji)
    with pytest.raises(UserError, match=r"emoji\.json: entry 3 names the image"):
        list(list_images(package))


def test_a_link_out_of_the_package_is_refused(package, tmp_path):
    image = package / "img" / "google" / "64" / "1f400.png"
    image.rename(tmp_path / "private.png")
    image.symlink_to(tmp_path / "private.png")
    with pytest.raises(UserError, match=r"1f400\.png is a link that leads out"):
        make(package, tmp_path / "made")


BAD_ENTRIES = ["x", {}, {"unified": "1F600"}, entry("smile"), entry("FFFFFFFFFFFFFFFFFFFF")]
BAD_ENTRIES += [entry("1F600") | {"unified": 7}, entry("1F600") | {"skin_variations": [1]}]


@pytest.mark.parametrize("bad", BAD_ENTRIES)
def test_an_invalid_entry_is_refused(package, bad):
    write_entries(package, [entry("1F600"), bad])
    with pytest.raises(UserError, match="entry 1 is not an emoji"):
        list(list_images(package))


def no_folder(package):
    package.rename(package.with_name("moved"))


def other_folder(package):
    (package / "emoji.json").unlink()


def not_json(package):
    (package / "emoji.json").write_bytes(b"[{\xff")


def deep_json(package):
    (package / "emoji.json").write_text("[" * 200_000)


def not_a_list(package):
    write_entries(package, {})


def no_png(package):
    (package / "img" / "google" / "64" / "1f401.png").unlink()


def damaged_png(package):
    file = package / "img" / "google" / "64" / "1f401.png"
    file.write_bytes(file.read_bytes()[:60])


def no_licence(package):
    (package / "LICENSE").unlink()


def too_few(package):
    write_entries(package, [entry("1F400")])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (no_folder, "is not a folder"),
        (other_folder, "has no emoji.json"),
        (not_json, "emoji.json is not JSON"),
        (deep_json, "emoji.json is not JSON"),
        (not_a_list, "emoji.json holds no list"),
        (no_png, "1f401.png cannot be read"),
        (damaged_png, "1f401.png is damaged"),
        (no_licence, "LICENSE cannot be read"),
        (too_few, "split would be empty"),
    ],
)
def test_a_bad_package_is_refused_in_one_line_and_nothing_is_written(
    package, tmp_path, capsys, spoil, message
):
    spoil(package)
    assert message in refuse(package, tmp_path / "made", capsys)
    assert not (tmp_path / "made").exists()


def refuse(package, output_dir, capsys):
    """Run the command, which must fail; return its error line."""
    arguments = ["--package", str(package), "--output_dir", str(output_dir)]
    with pytest.raises(SystemExit) as end:
        run_command(EmojiConfig, make_emoji, arguments)
    printed = capsys.readouterr()
    assert end.value.code == 2 and printed.out == ""
    assert len(printed.err.splitlines()) == 1
    return printed.err


def test_an_output_folder_with_files_is_refused(package, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    assert "has files in it" in refuse(package, tmp_path / "full", capsys)
    assert [file.name for file in (tmp_path / "full").iterdir()] == ["mine"]


def test_an_output_folder_that_cannot_be_written_is_refused(package, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert "cannot be written" in refuse(package, tmp_path / "file" / "made", capsys)


def test_the_command_runs_as_a_script(package, tmp_path):
    command = [sys.executable, str(SCRIPT), "--package", str(package)]
    done = forked.run([*command, "--output_dir", str(tmp_path / "new" / "made")])
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.startswith("train: ") and len(done.stdout.splitlines()) == 2
