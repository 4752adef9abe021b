import errno
import hashlib

import datasets
import numpy as np
import pytest
from PIL import Image as PILImage

from hf_latent.data.images import held_out as held_out_module
from hf_latent.data.images.config import ImagesConfig
from hf_latent.data.images.held_out import (
    FACTS,
    check_decodable,
    choose_held_out,
    content_hash,
    fingerprint,
    hold_out,
)
from hf_latent.data.images.pixels import decode_image
from hf_latent.data.images.sources import open_source
from hf_latent.errors import UserError


def picture(seed, channels=3):
    return np.random.default_rng(seed).integers(0, 256, (8, 8, channels), np.uint8)


def write(folder, pictures):
    """Write `{file name: array}`; the name's ending is the format."""
    for name, array in pictures.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        PILImage.fromarray(array).save(folder / name)
    return str(folder)


def held_out_hashes(data, **options):
    _, validation, _ = hold_out(open_source(data), ImagesConfig(**options))
    images = validation.dataset.select(validation.rows)["image"]
    return {content_hash(decode_image(image["path"])) for image in images}


def check(data, **options):
    return check_decodable(open_source(data).train, ImagesConfig(**options))


def spoil(file, kind):
    content = file.read_bytes()
    if kind == "truncated":
        file.write_bytes(content[: len(content) * 2 // 3])
    elif kind == "empty":
        file.write_bytes(b"")
    elif kind == "text":
        file.write_bytes(b"this is no image")


def test_content_hash_is_documented():
    array = picture(0)
    digest = hashlib.sha256(b"(8, 8, 3) uint8" + array.tobytes())
    assert content_hash(array) == digest.hexdigest()


def test_content_hash_depends_on_size_and_depth():
    zeros = [
        np.zeros((2, 8, 1), np.uint8),
        np.zeros((4, 4, 1), np.uint8),
        np.zeros((2, 4, 2), np.uint8),
        np.zeros((2, 4, 1), np.uint16),
    ]
    assert len({content_hash(array) for array in zeros}) == 4


def test_check_hashes_good_images_and_names_bad_ones(tmp_path):
    kinds = ("truncated", "empty", "text")
    names = [f"{kind}.{ending}" for kind in kinds for ending in ("png", "jpg", "webp", "bmp")]
    write(tmp_path, {name: picture(i) for i, name in enumerate(["good.png", *names])})
    for name in names:
        spoil(tmp_path / name, name.split(".")[0])
    good, errors = check(str(tmp_path))
    assert good.hashes.tolist() == [content_hash(picture(0)).encode()]
    assert {*good.rows.tolist(), *errors} == set(range(1 + len(names)))
    assert len(errors) == len(names)
    for name in names:
        assert sum(f"{tmp_path / name} (" in error for error in errors.values()) == 1


def test_check_is_cached_and_stores_no_images(tmp_path, monkeypatch):
    data = write(tmp_path, {f"{i}.png": picture(i) for i in range(5)})
    first, _ = check(data)

    def fail(*_):
        raise AssertionError("decoded again")

    monkeypatch.setattr(held_out_module, "read_image", fail)
    again, _ = check(data)
    assert again.hashes.tolist() == first.hashes.tolist()
    folder = datasets.config.HF_DATASETS_CACHE / "hf_latent_checked_images"
    newest = max(folder.iterdir(), key=lambda file: file.stat().st_mtime_ns)
    assert datasets.Dataset.from_file(str(newest)).column_names == ["hash", "error", *FACTS]


def test_a_temporary_failure_is_not_cached(tmp_path, monkeypatch):
    data = write(tmp_path, {f"{i}.png": picture(i) for i in range(4)})

    def fail_on_third(array):
        if np.array_equal(array, picture(2)):
            raise OSError(errno.EMFILE, "Too many open files")
        return content_hash(array)

    with monkeypatch.context() as patch:
        patch.setattr(held_out_module, "content_hash", fail_on_third)
        assert "Too many open files" in check(data)[1][2]
    hashed = []
    monkeypatch.setattr(
        held_out_module, "content_hash", lambda array: hashed.append(1) or content_hash(array)
    )
    checked, errors = check(data)
    assert errors == {}
    assert checked.hashes.tolist() == [content_hash(picture(i)).encode() for i in range(4)]
    assert len(hashed) == 1  # the good ones come from the cache


def test_check_with_two_processes_finds_the_same(tmp_path):
    data = write(tmp_path, {f"{i}.png": picture(i) for i in range(6)})
    spoil(tmp_path / "4.png", "truncated")
    train = open_source(data).train
    parallel, errors = check_decodable(train, ImagesConfig(), num_proc=2)
    for file in (datasets.config.HF_DATASETS_CACHE / "hf_latent_checked_images").iterdir():
        file.unlink()
    alone, errors_alone = check_decodable(train, ImagesConfig())
    assert parallel.hashes.tolist() == alone.hashes.tolist()
    assert errors == errors_alone
    assert list(errors) == [4]


def test_bad_images_stop_and_are_all_named(tmp_path):
    data = write(tmp_path, {f"{i}.png": picture(i) for i in range(6)})
    for bad in (1, 3):
        spoil(tmp_path / f"{bad}.png", "truncated")
    with pytest.raises(UserError, match="2 images cannot be used") as caught:
        hold_out(open_source(data), ImagesConfig())
    message = str(caught.value)
    assert str(tmp_path / "1.png") in message and str(tmp_path / "3.png") in message
    assert "--on_bad_image skip" in message and "\n" not in message


def test_long_lists_of_bad_images_are_cut(tmp_path):
    data = write(tmp_path, {f"{i:02}.png": picture(i) for i in range(25)})
    for i in range(23):
        spoil(tmp_path / f"{i:02}.png", "empty")
    with pytest.raises(UserError, match=r"23 images.*19\.png.*and 3 more") as caught:
        hold_out(open_source(data), ImagesConfig())
    assert "20.png" not in str(caught.value)


def test_bad_images_are_skipped_and_counted(tmp_path):
    data = write(tmp_path, {f"{i}.png": picture(i) for i in range(6)})
    spoil(tmp_path / "2.png", "text")
    train, validation, bad_images = hold_out(open_source(data), ImagesConfig(on_bad_image="skip"))
    assert bad_images == 1
    assert sorted([*train.rows, *validation.rows]) == [0, 1, 3, 4, 5]


def test_bad_bytes_in_a_file_are_named_by_row(tmp_path):
    write(tmp_path, {"a.png": picture(0)})
    good = (tmp_path / "a.png").read_bytes()
    images = [{"bytes": good, "path": "a.png"}, {"bytes": good[:80], "path": "b.png"}, None]
    rows = datasets.Dataset.from_dict(
        {"image": images}, features=datasets.Features({"image": datasets.Image()})
    )
    rows.to_parquet(tmp_path / "rows.parquet")
    with pytest.raises(UserError, match=r"row 1 \(.*row 2 \(no image\)"):
        hold_out(open_source(str(tmp_path / "rows.parquet")), ImagesConfig())


def test_images_with_too_many_pixels_are_bad_and_pillow_keeps_its_own_limit(tmp_path):
    limit = PILImage.MAX_IMAGE_PIXELS
    data = write(tmp_path, {"a.png": picture(0), "b.png": picture(1), "c.png": picture(2)[:2]})
    for most in (50, 20):  # Pillow warns, then raises
        _, errors = check(data, max_image_pixels=most)
        assert list(errors) == [0, 1]
        assert all(f"(more pixels than --max_image_pixels {most})" in x for x in errors.values())
    assert check(data, max_image_pixels=64)[1] == {}
    assert limit == PILImage.MAX_IMAGE_PIXELS


def test_duplicates_in_other_formats_stay_together(tmp_path):
    pictures = {}
    for i in range(60):
        pictures |= {f"{i}.png": picture(i), f"{i}.bmp": picture(i), f"sub/{i}.tiff": picture(i)}
    source = open_source(write(tmp_path, pictures))
    train, validation, _ = hold_out(source, ImagesConfig(validation_fraction=0.3))
    images = source.train["image"]
    sides = [
        {content_hash(decode_image(images[int(row)]["path"])) for row in rows}
        for rows in (train.rows, validation.rows)
    ]
    assert not sides[0] & sides[1]
    assert len(train.rows) == 3 * len(sides[0])
    assert len(validation.rows) == 3 * len(sides[1])


def test_split_ignores_names_order_and_file_format(tmp_path):
    one = write(tmp_path / "one", {f"{i:02}.png": picture(i) for i in range(40)})
    two = write(tmp_path / "two", {f"{90 - i:02}.bmp": picture(i) for i in range(40)})
    assert held_out_hashes(one, validation_fraction=0.2) == held_out_hashes(
        two, validation_fraction=0.2
    )
    config = ImagesConfig(validation_fraction=0.2)
    prints = [fingerprint(hold_out(open_source(x), config)[1].hashes) for x in (one, two)]
    assert prints[0] == prints[1]


def test_fingerprint_is_documented(tmp_path):
    data = write(tmp_path, {f"{i}.png": picture(i) for i in range(40)})
    hashes = sorted(held_out_hashes(data, validation_fraction=0.2))
    assert len(hashes) > 1
    config = ImagesConfig(validation_fraction=0.2)
    expected = hashlib.sha256("\n".join(hashes).encode()).hexdigest()[:16]
    assert fingerprint(hold_out(open_source(data), config)[1].hashes) == expected


def random_hashes(count):
    digests = [hashlib.sha256(str(i).encode()).hexdigest() for i in range(count)]
    return np.array(digests, "S64")


@pytest.mark.parametrize("fraction", [0.05, 0.5])
def test_fraction_is_about_right(fraction):
    held_out = choose_held_out(random_hashes(20000), fraction)
    assert (held_out.dtype, held_out.shape) == (bool, (20000,))
    assert abs(held_out.mean() - fraction) < 0.01


def test_a_larger_fraction_keeps_the_held_out_images():
    small, large = (choose_held_out(random_hashes(2000), f) for f in (0.05, 0.2))
    assert (large >= small).all() and large.sum() > small.sum() > 0


def test_at_least_one_image_is_held_out():
    hashes = random_hashes(5)
    held_out = choose_held_out(hashes, 1e-9)
    assert hashes[held_out].tolist() == [min(hashes.tolist())]


@pytest.mark.parametrize("count", [1, 3])
def test_no_training_image_is_an_error(tmp_path, count):
    data = write(tmp_path, {f"{i}.png": picture(0) for i in range(count)})
    with pytest.raises(UserError, match=f"0 images to train on and {count} held out"):
        hold_out(open_source(data), ImagesConfig())


def test_no_good_image_at_all_is_an_error(tmp_path):
    data = write(tmp_path, {"a.png": picture(0)})
    spoil(tmp_path / "a.png", "empty")
    with pytest.raises(UserError, match="0 images to train on and 0 held out"):
        hold_out(open_source(data), ImagesConfig(on_bad_image="skip"))


def test_the_sources_own_split_is_used(tmp_path):
    pictures = {f"train/{i}.png": picture(i) for i in range(6)}
    pictures |= {f"test/{i}.png": picture(i) for i in range(10, 14)}
    source = open_source(write(tmp_path, pictures))
    train, validation, _ = hold_out(source, ImagesConfig())
    assert train.rows.tolist() == list(range(6))
    assert validation.rows.tolist() == list(range(4))
    assert validation.dataset is source.held_out


def test_bad_held_out_images_are_named_too(tmp_path):
    data = write(tmp_path, {"train/a.png": picture(0), "test/b.png": picture(1)})
    spoil(tmp_path / "test/b.png", "truncated")
    with pytest.raises(UserError, match=r"1 image .*held-out .*b\.png"):
        hold_out(open_source(data), ImagesConfig())
