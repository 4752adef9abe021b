import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from hf_latent.data.images import dataset as image_dataset
from hf_latent.data.images import open as images_module
from hf_latent.data.images.open import ImagesConfig, open_images, parse_resolution
from hf_latent.errors import UserError


def picture(seed, height=12, width=16, channels=3):
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def write(folder, pictures):
    for name, array in pictures.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(folder / name)
    return str(folder)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """20 RGB training images of 12 x 16 in two classes, and 4 held out."""
    folder = tmp_path_factory.mktemp("labelled")
    pictures = {f"train/{'ab'[i % 2]}/{i:02}.png": picture(i) for i in range(20)}
    pictures |= {f"test/{'ab'[i % 2]}/{i:02}.png": picture(i) for i in range(20, 24)}
    return write(folder, pictures)


def tensor(array):
    """The expected tensor: channels first, 0 becomes -1 and 255 becomes 1."""
    array = array.reshape(*array.shape[:2], -1)
    return torch.tensor(array / 127.5 - 1, dtype=torch.float32).permute(2, 0, 1)


def equal_items(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


class EpochOrder:
    """A sampler of (epoch, index) keys."""

    def __init__(self, epoch, order):
        self.keys = [(epoch, index) for index in order]

    def __iter__(self):
        return iter(self.keys)

    def __len__(self):
        return len(self.keys)


def batches(dataset, epoch, order, workers):
    loader = DataLoader(
        dataset, batch_size=4, sampler=EpochOrder(epoch, order), num_workers=workers
    )
    parts = list(loader)
    joined = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
    by_index = torch.tensor(order).argsort()
    return {key: value[by_index] for key, value in joined.items()}


def test_items_follow_the_contract(labelled):
    splits = open_images(ImagesConfig(data=labelled, resolution="12,16"))
    assert splits.image_shape == splits.train.image_shape == (3, 12, 16)
    assert (len(splits.train), len(splits.validation)) == (20, 4)
    assert splits.id2label == {0: "a", 1: "b"}
    assert splits.num_classes == 2
    assert splits.bad_images == 0
    order = [*range(0, 20, 2), *range(1, 20, 2)]  # by class folder, then by name
    for index, seed in enumerate(order):
        item = splits.train[index]
        assert set(item) == {"images", "class_labels"}
        assert torch.allclose(item["images"], tensor(picture(seed)), atol=1e-6, rtol=0)
        assert item["images"].dtype == torch.float32
        assert item["images"].is_contiguous()
        assert (item["class_labels"].dtype, item["class_labels"].shape) == (torch.int64, ())
        assert item["class_labels"] == seed % 2
    found = splits.train.conditions(range(3, 12))
    assert found["class_labels"].tolist() == [seed % 2 for seed in order[3:12]]


def test_without_labels_there_are_no_class_labels(tmp_path):
    data = write(tmp_path, {f"{i}.png": picture(i) for i in range(5)})
    splits = open_images(ImagesConfig(data=data))
    assert set(splits.train[0]) == {"images"}
    assert splits.train.conditions(range(2)) == {} and splits.train.labels is None
    assert splits.id2label is None and splits.num_classes is None


def test_built_in_data_is_the_default():
    splits = open_images(ImagesConfig(resize_mode="pad"))
    assert (len(splits.train), len(splits.validation)) == (13000, 2000)
    assert splits.image_shape == (1, 32, 32)
    assert splits.num_classes == 10
    image = splits.train[0]["images"]
    assert (image[:, :2] == -1).all() and (image[:, 2:30, 2:30] > -1).any()


@pytest.mark.parametrize(
    ("mode", "own"), [("L", 1), ("RGB", 3), ("RGBA", 4), ("LA", 4), ("P", 3), ("CMYK", 3), ("1", 1)]
)
def test_channels_default_to_those_of_the_images(tmp_path, mode, own):
    for i in range(4):
        image = Image.fromarray(picture(i, channels=4)).convert("RGB").convert(mode)
        if mode in ("RGBA", "LA"):
            image.putalpha(Image.fromarray(picture(i, channels=1)))
        image.save(tmp_path / f"{i}.{'tif' if mode == 'CMYK' else 'png'}")
    assert open_images(ImagesConfig(data=str(tmp_path))).image_shape == (own, 32, 32)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_channels_can_be_chosen_for_mixed_images(tmp_path, channels):
    pictures = {f"{i}.png": picture(i, 8, 8, channels=[1, 3, 4][i % 3]) for i in range(9)}
    config = ImagesConfig(data=write(tmp_path, pictures), channels=channels, resolution=8)
    splits = open_images(config)
    assert {item["images"].shape for item in splits.train} == {(channels, 8, 8)}


def test_pad_is_black_after_compositing_and_transparent_with_alpha(tmp_path):
    data = write(tmp_path, {f"{i}.png": np.full((4, 4, 4), 10 + i, np.uint8) for i in range(3)})
    for channels in (3, 4):
        config = ImagesConfig(data=data, resolution=8, resize_mode="pad", channels=channels)
        image = open_images(config).train[0]["images"]
        assert image.shape[0] == channels
        assert (image[:, :2] == -1).all()
        assert (image[:, 2:6, 2:6] > -1).all()


def test_16_bit_images_reach_the_tensor_exactly(tmp_path):
    arrays = [np.random.default_rng(i).integers(0, 65536, (8, 8)).astype(np.uint16) for i in (0, 1)]
    arrays[0][0, :2] = arrays[1][0, :2] = 0, 65535
    data = write(tmp_path, {f"{i}.png": array for i, array in enumerate(arrays)})
    splits = open_images(ImagesConfig(data=data, resolution=8))
    found = [splits.train[0]["images"][0], splits.validation[0]["images"][0]]
    for image in [*found, splits.train[0]["images"][0]]:  # decoded, then from memory
        wanted = [torch.tensor(array / 32767.5 - 1, dtype=torch.float32) for array in arrays]
        assert any(torch.allclose(image, one, atol=1e-7, rtol=0) for one in wanted)
        assert image[0, :2].tolist() == [-1.0, 1.0]


def test_random_draws_depend_on_seed_epoch_and_index_only(labelled):
    config = ImagesConfig(data=labelled, resolution=8, crop="random", horizontal_flip=True)
    train = open_images(config).train
    forward = batches(train, 3, range(20), workers=0)
    rotated = [*range(7, 20), *range(7)]
    for order, workers in ((range(19, -1, -1), 0), (range(20), 2), (rotated, 2)):
        assert equal_items(batches(train, 3, order, workers), forward)
    one_by_one = open_images(config).train
    assert all(torch.equal(one_by_one[3, i]["images"], forward["images"][i]) for i in range(20))
    other_epoch = batches(train, 4, range(20), workers=0)["images"]
    assert (other_epoch != forward["images"]).any(dim=(1, 2, 3)).sum() > 10
    other_seed = open_images(ImagesConfig(**{**vars(config), "seed": 1})).train
    assert not torch.equal(batches(other_seed, 3, range(20), 0)["images"], forward["images"])


def test_plain_index_means_epoch_0(labelled):
    train = open_images(ImagesConfig(data=labelled, crop="random", horizontal_flip=True)).train
    assert equal_items(train[5], train[0, 5])


def test_flips_mirror_about_half(labelled):
    train = open_images(ImagesConfig(data=labelled, resolution="12,16", horizontal_flip=True)).train
    plain, mirrored = train.view(mirrored=False), train.view(mirrored=True)
    flips = []
    for epoch in range(20):
        for index in range(20):
            image = train[epoch, index]["images"]
            flips.append(torch.equal(image, mirrored[index]["images"]))
            assert flips[-1] or torch.equal(image, plain[index]["images"])
    assert abs(np.mean(flips) - 0.5) < 0.1


def test_views_are_centred_and_never_random(labelled):
    config = ImagesConfig(data=labelled, resolution=8, crop="random", horizontal_flip=True)
    centred = open_images(ImagesConfig(data=labelled, resolution=8)).train
    train = open_images(config).train
    for index in range(20):
        expected = centred[index]["images"]
        plain, mirrored = train.view(mirrored=False), train.view(mirrored=True)
        assert torch.equal(plain[7, index]["images"], expected)
        assert torch.equal(mirrored[7, index]["images"], expected.flip(-1))
        assert torch.equal(plain.view(mirrored=True)[index]["images"], expected.flip(-1))
        assert equal_items(train[0, index], train[0, index])


def test_validation_is_never_random(labelled):
    config = ImagesConfig(data=labelled, resolution=8, crop="random", horizontal_flip=True)
    random = open_images(config).validation
    centred = open_images(ImagesConfig(data=labelled, resolution=8)).validation
    assert all(equal_items(random[epoch, i], centred[i]) for i in range(4) for epoch in (0, 5))


@pytest.mark.parametrize("options", [{}, {"horizontal_flip": True}, {"resize_mode": "pad"}])
def test_memory_changes_nothing(labelled, options):
    config = ImagesConfig(data=labelled, resolution=8, **options)
    kept, read = (open_images(config, keep_in_memory=keep).train for keep in (True, False))
    for _ in range(2):  # filling, then reading
        assert all(equal_items(kept[1, i], read[1, i]) for i in range(20))


def test_memory_keeps_the_bit_depth_of_each_image(tmp_path):
    write(tmp_path, {"test/a.png": picture(0, channels=1)})
    fine = np.arange(12 * 16, dtype=np.uint16).reshape(12, 16) * 300
    data = write(tmp_path, {"train/a.png": picture(1, channels=1), "train/b.png": fine})
    train = open_images(ImagesConfig(data=data, resolution="12,16"), keep_in_memory=True).train
    for _ in range(2):  # filling, then reading
        assert torch.allclose(train[0]["images"], tensor(picture(1, channels=1)), atol=1e-6, rtol=0)
        assert torch.allclose(train[1]["images"][0], torch.tensor(fine / 32767.5 - 1).float())


def test_memory_avoids_decoding_unless_crops_are_random(labelled, monkeypatch):
    decoded = []
    decode_image = image_dataset.decode_image
    monkeypatch.setattr(
        image_dataset, "decode_image", lambda x, *how: decoded.append(x) or decode_image(x, *how)
    )
    for crop, count in (("center", 20), ("random", 40)):
        train = open_images(ImagesConfig(data=labelled, resolution=8, crop=crop)).train
        decoded.clear()
        _ = [train[i] for i in range(20)], [train.view(mirrored=True)[i] for i in range(20)]
        assert len(decoded) == count


def test_large_sets_are_not_kept_in_memory(labelled, monkeypatch):
    size = 24 * 3 * 8 * 8
    for limit, kept in ((size, True), (size - 1, False)):
        monkeypatch.setattr(images_module, "MEMORY_LIMIT_BYTES", limit)
        train = open_images(ImagesConfig(data=labelled, resolution=8)).train
        assert train.keep_in_memory == kept


def test_pickles_without_the_pixels():
    train = open_images(ImagesConfig()).train
    expected = train[4]
    train.read(torch.arange(1000))
    content = pickle.dumps(train)
    assert len(content) < 400_000  # 1,000 images are 1 MB; rows and labels 200 kB
    assert equal_items(pickle.loads(content)[4], expected)


def test_indices_out_of_range_end_iteration(labelled):
    train = open_images(ImagesConfig(data=labelled)).train
    assert len(list(train)) == 20
    assert equal_items(train[-1], train[19])
    with pytest.raises(IndexError):
        train[20]


def test_is_mirrored_agrees_with_the_items(labelled):
    train = open_images(
        ImagesConfig(data=labelled, resolution=8, crop="random", horizontal_flip=True)
    ).train
    centred = open_images(ImagesConfig(data=labelled, resolution=8, horizontal_flip=True)).train
    keys = [(epoch, index) for epoch in range(3) for index in range(20)]
    epochs, indices = np.array(keys).T
    mirrored = centred.is_mirrored(epochs, indices)
    assert np.array_equal(train.is_mirrored(epochs, indices), mirrored)
    assert 0 < mirrored.sum() < 60
    for key, is_mirrored in zip(keys, mirrored, strict=True):
        shown = train.view(bool(is_mirrored))[key]["images"]
        assert torch.equal(centred[key]["images"], shown)
    assert train.view(mirrored=True).is_mirrored(epochs, indices).all()
    assert not train.view(mirrored=False).is_mirrored(epochs, indices).any()


@pytest.mark.parametrize("options", [{}, {"horizontal_flip": True}, {"crop": "random"}])
@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize(
    ("count", "places"),
    [(1, [0]), (2, [0, 10]), (5, [0, 4, 8, 12, 16]), (20, range(20)), (99, range(20))],
)
def test_evenly_spaced_images_are_of_every_class(labelled, count, places, keep, options):
    config = ImagesConfig(data=labelled, resolution=8, **options)
    train = open_images(config, keep_in_memory=keep).train
    labels = [int(item["class_labels"]) for item in train]
    assert labels == [0] * 10 + [1] * 10, "sorted by class, as folders are"
    plain = open_images(ImagesConfig(data=labelled, resolution=8)).train
    chosen = train.evenly_spaced(count)
    assert len(chosen) == len(places) and len(train) == 20
    for _ in range(2):  # decoded, then from memory
        for i, place in enumerate(places):
            item = chosen[3, i]
            assert int(item["class_labels"]) == labels[place]
            assert torch.equal(item["images"], plain[place]["images"])
    # What the chosen ones keep in memory is not taken for the whole set's.
    assert all(torch.equal(train.view(False)[i]["images"], plain[i]["images"]) for i in range(20))


def test_max_train_samples_keeps_a_random_subset_in_order(labelled):
    def rows(count, seed=0):
        config = ImagesConfig(data=labelled, max_train_samples=count, seed=seed)
        return open_images(config).train.rows.tolist()

    some = rows(8)
    assert some == sorted(set(some)) and len(some) == 8 and set(some) <= set(range(20))
    assert rows(8) == some and set(rows(4)) < set(some)
    assert len({tuple(rows(8, seed)) for seed in range(5)}) == 5
    assert {row >= 10 for row in some} == {False, True}  # both classes
    assert rows(20) == rows(99) == list(range(20))


def test_max_train_samples_changes_neither_items_nor_held_out_images(labelled):
    whole = open_images(ImagesConfig(data=labelled))
    some = open_images(ImagesConfig(data=labelled, max_train_samples=3))
    assert (len(some.train), len(some.validation)) == (3, 4)
    for item, row in zip(some.train, some.train.rows, strict=True):
        assert torch.equal(item["images"], whole.train[int(row)]["images"])
    assert some.validation_fingerprint == whole.validation_fingerprint


def test_skipped_images_leave_a_dense_index(tmp_path):
    data = write(tmp_path, {f"{i}.png": picture(i) for i in range(6)})
    (tmp_path / "2.png").write_bytes(b"no picture")
    splits = open_images(ImagesConfig(data=data, on_bad_image="skip"))
    assert splits.bad_images == 1
    assert len(list(splits.train)) == len(splits.train)
    assert len(splits.train) + len(splits.validation) == 5
    with pytest.raises(UserError, match=r"2\.png"):
        open_images(ImagesConfig(data=data))


def test_another_fingerprint_is_refused(labelled):
    found = open_images(ImagesConfig(data=labelled)).validation_fingerprint
    assert len(found) == 16 and int(found, 16) >= 0
    open_images(ImagesConfig(data=labelled, validation_fingerprint=found))
    with pytest.raises(UserError, match=f"fingerprint {found}, not 0123"):
        open_images(ImagesConfig(data=labelled, validation_fingerprint="0123456789abcdef"))


@pytest.mark.parametrize(
    ("resolution", "size"), [(32, (32, 32)), ("256", (256, 256)), ("48,80", (48, 80))]
)
def test_resolution_is_parsed(resolution, size):
    assert parse_resolution(resolution) == size


@pytest.mark.parametrize("options", [{"resize_mode": "crop"}, {"resize_mode": "pad"}])
def test_images_that_are_not_square(labelled, options):
    splits = open_images(ImagesConfig(data=labelled, resolution="48,80", **options))
    assert splits.image_shape == (3, 48, 80)
    assert splits.train[0]["images"].shape == (3, 48, 80)


@pytest.mark.parametrize(
    "wrong",
    [
        *({"resolution": value} for value in (0, -8, "a", "8,", "8,0", "8,8,8", "8.5", "")),
        *({"validation_fraction": value} for value in (0.0, 1.0, -0.1, float("nan"))),
        {"max_train_samples": 0},
        {"seed": -1},
        {"channels": 0},
        {"resize_mode": "stretch"},
        {"crop": "left"},
        {"on_bad_image": "ignore"},
    ],
    ids=str,
)
def test_wrong_values_name_their_flag(wrong):
    with pytest.raises(UserError, match=f"--{next(iter(wrong))}") as caught:
        ImagesConfig(**wrong)
    assert "\n" not in str(caught.value)


def test_every_field_is_documented():
    for name in ImagesConfig.__dataclass_fields__:
        assert f"\n        {name}: " in ImagesConfig.__doc__


def test_configuration_has_nothing_public_but_fields():
    # jsonargparse would offer a public method or property as a subcommand.
    public = {name for name in dir(ImagesConfig) if not name.startswith("_")}
    assert public <= set(ImagesConfig.__dataclass_fields__)
