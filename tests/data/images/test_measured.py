import importlib
import io
import logging
import re
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tifffile
import torch
from datasets import Array3D, Dataset, Features
from PIL import Image

from hf_latent.data.images.config import ImagesConfig
from hf_latent.data.images.measured import _LoneFile, read_measured
from hf_latent.data.images.open import open_images
from hf_latent.data.images.pixels import decode_image
from hf_latent.errors import UserError
from tests.marking_pickle import MarkingPickle

LIMIT = 10**6


def values(channels=6, dtype=np.uint16, seed=0, height=8, width=10):
    """An image (C, H, W) whose channels differ in range."""
    generator = np.random.default_rng(seed)
    highest = np.linspace(100, 4000, channels)[:, None, None]
    return (generator.random((channels, height, width)) * highest).astype(dtype)


def tiff(array, **options):
    file = io.BytesIO()
    tifffile.imwrite(file, array, photometric=options.pop("photometric", "minisblack"), **options)
    return file.getvalue()


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def ome(array, axes="CYX"):
    return tiff(array, ome=True, metadata={"axes": axes})


def assert_read(encoded, expected, channels=None, frames=1):
    found = read_measured(encoded, channels, LIMIT)
    assert found.array.shape == expected.transpose(1, 2, 0).shape
    assert np.array_equal(found.array, expected.transpose(1, 2, 0))
    assert (found.dtype, found.frames) == (expected.dtype.name, frames)


def write_folder(folder, count=12, **options):
    """Write OME-TIFF files; return their pixels, (count, C, H, W)."""
    folder.mkdir(parents=True, exist_ok=True)
    images = np.stack([values(seed=i, **options) for i in range(count)])
    for i, image in enumerate(images):
        (folder / f"{i:02d}.ome.tif").write_bytes(ome(image))
    return images


def opened(folder, **settings):
    return open_images(ImagesConfig(data=str(folder), **{"resolution": "8,10"} | settings))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 6])
def test_ome_tiff_says_which_axis_has_the_channels(channels, dtype):
    image = values(channels, dtype)
    if channels > 1:
        assert_read(ome(image), image)
        together = np.moveaxis(image, 0, 2).copy()
        assert_read(
            tiff(together, ome=True, metadata={"axes": "YXC"}, planarconfig="contig"), image
        )
        assert_read(ome(np.stack([image, image + 1]), "TCYX"), image, frames=2)
        assert_read(ome(np.stack([image, image + 1], 1), "CZYX"), image, frames=2)
        assert_read(tiff(image, imagej=True, metadata={"axes": "CYX"}), image)
    else:
        assert_read(ome(image[0], "YX"), image)
        assert_read(tiff(image[0], imagej=True), image)
        assert read_measured(tiff(image[0]), None, LIMIT) is None


def test_a_plain_stack_has_channels_if_the_user_says_so():
    image = values()
    assert read_measured(tiff(image), None, LIMIT) is None
    assert read_measured(tiff(image), 3, LIMIT) is None
    assert np.array_equal(decode_image(tiff(image))[:, :, 0], image[0])
    assert_read(tiff(image), image, channels=6)
    assert_read(tiff(image, metadata=None), image, channels=6)
    assert_read(tiff(image, compression="zlib", bigtiff=True), image, channels=6)


@pytest.mark.parametrize("axes", ["TCYX", "CZYX", "TZCYX", "CTZYX"])
@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}, {"imagej": True}])
def test_of_several_times_and_depths_only_the_first_is_decoded(axes, options):
    if options == {"imagej": True} and axes[0] == "C":
        axes = "TZCYX"  # the one order of ImageJ
    lengths = {"T": 4, "Z": 5, "C": 3, "Y": 8, "X": 10}
    array = np.arange(9600)[-np.prod([lengths[x] for x in axes]) :].astype(np.uint16)
    array = array.reshape([lengths[x] for x in axes])
    encoded = tiff(array, metadata={"axes": axes}, **{"ome": "imagej" not in options} | options)
    first = array[tuple(0 if axis in "TZ" else slice(None) for axis in axes)]
    found = read_measured(encoded, None, first.size)
    assert np.array_equal(found.array, first.transpose(1, 2, 0))
    assert found.frames == array.size // first.size
    with pytest.raises(ValueError, match="--max_image_pixels"):
        read_measured(encoded, None, first.size - 1)


def test_a_stack_with_one_page_for_all_its_images_is_read():
    array = values(6).reshape(2, 3, 8, 10)
    stack = tiff(array, imagej=True, metadata={"axes": "TCYX"}, truncate=True)
    with tifffile.TiffFile(io.BytesIO(stack)) as file:
        assert len(file.pages) == 1
    assert_read(stack, array[0], frames=2)


def test_samples_beside_each_other_or_in_planes_are_channels():
    image = values()
    assert_read(tiff(np.moveaxis(image, 0, 2).copy(), planarconfig="contig"), image)
    assert_read(tiff(image, planarconfig="separate"), image)
    four = values(4, np.uint8)
    assert_read(tiff(np.moveaxis(four, 0, 2).copy(), planarconfig="contig"), four)


def test_files_that_call_their_samples_colours_are_pictures(tmp_path):
    colours = np.moveaxis(values(3, np.uint8), 0, 2).copy()
    assert read_measured(tiff(colours, photometric="rgb"), None, LIMIT) is None
    assert read_measured(tiff(colours.astype(np.uint16) * 257, photometric="rgb"), 3, LIMIT) is None
    for mode in ("L", "LA", "RGBA", "P", "CMYK", "1"):
        Image.fromarray(colours).convert(mode).save(tmp_path / "picture.tif")
        assert read_measured(str(tmp_path / "picture.tif"), None, LIMIT) is None, mode


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int8, np.int64, np.uint32])
def test_other_types_become_float32_and_keep_their_name(dtype):
    image = (values(2) // 40).astype(dtype)
    for found in (
        read_measured(tiff(image), 2, LIMIT),
        read_measured(npy(image), 2, LIMIT),
    ):
        assert found.array.dtype == np.float32 and found.dtype == np.dtype(dtype).name
        assert np.array_equal(found.array, image.transpose(1, 2, 0).astype(np.float32))


def test_the_axis_of_a_numpy_array_that_has_the_channels_is_never_guessed(tmp_path):
    image = values()
    assert_read(npy(image), image, channels=6)
    assert_read(npy(np.moveaxis(image, 0, 2)), image, channels=6)
    assert_read(npy(np.asfortranarray(image)), image, channels=6)
    assert_read(npy(image.astype(">u2")), image, channels=6)
    assert_read(npy(image[0]), image[:1])
    np.save(tmp_path / "a.npy", image)
    assert_read(str(tmp_path / "a.npy"), image, channels=6)
    for array, channels in [
        (image, None),
        (image, 5),
        (values(6, width=6), 6),
        (image[None], 6),
        (image[0, 0], 1),
    ]:
        with pytest.raises(ValueError, match=r"the shape .* must be \(H, W\), or .*--channels"):
            read_measured(npy(array), channels, LIMIT)


def test_nothing_is_unpickled(tmp_path):
    pickle = MarkingPickle(tmp_path / "mark")
    pickle.write(tmp_path / "images" / "a.npy")
    (tmp_path / "images" / "b.npy").write_bytes(npy(np.array([[{}]], object)))
    np.savez(tmp_path / "images" / "c.npz", a=values())
    (tmp_path / "images" / "c.npz").rename(tmp_path / "images" / "c.npy")
    with pytest.raises(UserError, match=r"3 images cannot be used: .*a.npy .*b.npy .*c.npy"):
        opened(tmp_path / "images")
    pickle.assert_never_loaded()
    for encoded in (tmp_path / "images" / "b.npy", (tmp_path / "images" / "b.npy").read_bytes()):
        with pytest.raises(ValueError, match=r"(?i)object"):
            read_measured(encoded if isinstance(encoded, bytes) else str(encoded), None, LIMIT)


def test_no_other_file_is_opened(tmp_path):
    private, image = values(seed=1), values(seed=2)
    (tmp_path / "private.tif").write_bytes(tiff(private[:1], metadata=None))
    xml = ome(image[:2])
    with tifffile.TiffFile(io.BytesIO(xml)) as file:
        text = file.ome_metadata
    other = f'IFD="0"><UUID FileName="{tmp_path}/private.tif">urn:uuid:2</UUID></TiffData>'
    plane = '<TiffData FirstC="{}" FirstT="0" FirstZ="0" '
    parts = plane.format(0) + 'IFD="0"/>' + plane.format(1) + other
    text = re.sub(r"<TiffData.*?/>|<TiffData.*?</TiffData>", "", text, flags=re.DOTALL)
    text = text.replace("</Pixels>", parts + "</Pixels>")
    content = tiff(image[:1], description=text.encode(), metadata=None)
    (tmp_path / "a.ome.tif").write_bytes(content)
    with tifffile.TiffFile(tmp_path / "a.ome.tif") as file:
        assert np.array_equal(file.asarray()[1], private[0]), "tifffile would open it"
    for encoded in (str(tmp_path / "a.ome.tif"), content):
        assert_read(encoded, image[:1])
    with _LoneFile(tmp_path / "a.ome.tif") as lone, tifffile.TiffFile(lone) as file:
        assert not file.filehandle.is_file


def test_without_tifffile_other_channels_are_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "tifffile", None)
    image = values()
    for channels in (None, 1, 3, 4):
        assert read_measured(ome(image), channels, LIMIT) is None
    assert_read(npy(image), image, channels=6)
    with pytest.raises(ValueError, match="TIFF of 6 channels needs pip install tifffile"):
        read_measured(ome(image), 6, LIMIT)


def lzw_stack(path):
    """Write a TIFF stack with LZW compression, which tifffile leaves to imagecodecs."""
    image = values(6, np.uint16)
    first, *others = (Image.fromarray(plane) for plane in image)
    first.save(path, compression="tiff_lzw", save_all=True, append_images=others)
    return image


def test_lzw_compression_is_read(tmp_path):
    image = lzw_stack(tmp_path / "a.tif")
    assert_read(str(tmp_path / "a.tif"), image, channels=6)


def test_without_imagecodecs_one_line_names_it(tmp_path, monkeypatch):
    fresh = tifffile.tifffile.CompressionCodec(encode=False)
    few = importlib.import_module("tifffile._imagecodecs")
    monkeypatch.setattr(tifffile.tifffile, "imagecodecs", few)
    monkeypatch.setattr(tifffile.TIFF, "DECOMPRESSORS", fresh)
    lzw_stack(tmp_path / "a.tif")
    with pytest.raises(UserError, match=r"a.tif \(<COMPRESSION.LZW: 5> requires the 'imagecodecs'"):
        opened(tmp_path, channels=6)


def test_sizes_are_checked_before_decoding(tmp_path, monkeypatch):
    for decoder in (tifffile.TiffPageSeries, tifffile.TiffFile):
        monkeypatch.setattr(decoder, "asarray", None)
    for encoded in (ome(values()), npy(values())):
        with pytest.raises(ValueError, match="more pixels in all channels than --max_image_pixels"):
            read_measured(encoded, 6, 6 * 80 - 1)
    write_folder(tmp_path)
    with pytest.raises(UserError, match=r"12 images .*--max_image_pixels 479"):
        opened(tmp_path, max_image_pixels=479)
    header = b"{'descr': '<u2', 'fortran_order': False, 'shape': (99999999, 99999999)}"
    lying = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    (tmp_path / "lying").mkdir()
    (tmp_path / "lying" / "a.npy").write_bytes(lying)
    with pytest.raises(UserError, match=r"1 image cannot be used"):
        opened(tmp_path / "lying")


def test_a_small_image_with_large_compressed_pixels_is_refused(tmp_path):
    path = tmp_path / "bomb.tif"
    noise = np.random.default_rng(0).integers(0, 2**16, (2, 64, 64), np.uint16)
    path.write_bytes(tiff(noise, compression="zlib", metadata=None, rowsperstrip=64))
    with tifffile.TiffFile(path, mode="r+") as file:
        for page in file.pages:
            for name in ("ImageWidth", "ImageLength"):
                page.tags[name].overwrite(8)
    with pytest.raises(ValueError, match="its compressed pixels are larger than its pixels"):
        read_measured(path.read_bytes(), 2, LIMIT)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_pixels_that_are_not_finite_are_refused(bad):
    image = values(2, np.float64)
    image[1, 2, 3] = bad
    for encoded in (ome(image), npy(image)):
        with pytest.raises(ValueError, match="not finite"):
            read_measured(encoded, 2, LIMIT)
    with pytest.raises(ValueError, match="complex"):
        read_measured(npy(image[0] + 1j), None, LIMIT)


def test_damaged_tiff_files_are_named(tmp_path):
    (tmp_path / "a.tif").write_bytes(ome(values())[:200])
    (tmp_path / "b.tif").write_bytes(b"II*\0")
    colours = np.zeros((2, 8, 10, 3), np.uint8)
    (tmp_path / "c.tif").write_bytes(
        tiff(colours, ome=True, metadata={"axes": "CYXS"}, photometric="rgb")
    )
    with pytest.raises(UserError, match=r"3 images .*a\.tif .*b\.tif .*c\.tif .*axes CYXS"):
        opened(tmp_path)


def test_the_value_range_of_each_channel_is_measured_on_the_training_images(tmp_path):
    images = write_folder(tmp_path)
    splits = opened(tmp_path)
    assert splits.image_shape == (6, 8, 10)
    rows, held_out = splits.train.rows, splits.validation.rows
    assert len(rows) + len(held_out) == 12 and len(held_out)
    low, high = (end(images[rows], axis=(0, 2, 3)) for end in (np.min, np.max))
    pairs = [(float(x), float(y)) for x, y in zip(low, high, strict=True)]
    assert splits.values == {"range": pairs, "dtype": "uint16", "shown": [0, 1, 2]}
    low, high = (x.astype(np.float64)[:, None, None] for x in (low, high))
    for dataset, places in ((splits.train, rows), (splits.validation, held_out)):
        expected = ((images[places] - low) / (high - low)).clip(0, 1) * 2 - 1
        assert np.abs(dataset.read().numpy() - expected).max() < 2 / 65535
    listed = ", ".join(f"{x:g} to {y:g}" for x, y in pairs)
    assert splits.train.preprocessing == f"crop to 8x10, 6 channels, values {listed}"


def test_a_given_value_range_is_for_all_channels_or_for_each(tmp_path):
    images = write_folder(tmp_path, channels=2, dtype=np.float32)
    one = opened(tmp_path, value_range="0,4000")
    expected = images[one.train.rows] / 2000 - 1
    assert np.abs(one.train.read().numpy() - expected).max() < 2 / 65535
    assert one.values == {"range": [(0.0, 4000.0)], "dtype": "float32", "shown": [0, 1, 1]}
    each = opened(tmp_path, value_range="0,100,0,4000")
    expected = images[each.train.rows] / np.array([50, 2000])[:, None, None] - 1
    assert np.abs(each.train.read().numpy() - expected).max() < 2 / 65535
    with pytest.raises(UserError, match="3 pairs of values, and the images have 2 channels"):
        opened(tmp_path, value_range="0,1,0,1,0,1")


def test_four_measured_channels_are_not_red_green_blue_and_alpha(tmp_path):
    images = write_folder(tmp_path / "all", channels=4, dtype=np.uint8)
    splits = opened(tmp_path / "all", value_range="0,255")
    expected = images[splits.train.rows] / 127.5 - 1
    assert np.abs(splits.train.read().numpy() - expected).max() < 2 / 65535
    (tmp_path / "last").mkdir()
    for i, image in enumerate(images):
        np.save(tmp_path / "last" / f"{i:02d}.npy", image[3])
    settings = {"value_range": "0,255", "resolution": 4}
    alone = opened(tmp_path / "last", **settings, validation_fraction=0.01)
    together = opened(tmp_path / "all", **settings)
    rows = [row for row in together.train.rows if row in alone.train.rows]
    places = [[list(x.train.rows).index(row) for row in rows] for x in (together, alone)]
    together, alone = (
        x.train.read(torch.tensor(y)) for x, y in zip((together, alone), places, strict=True)
    )
    assert len(rows) and torch.equal(together[:, 3:], alone)


def test_images_of_another_number_of_channels_are_named(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "odd.tif").write_bytes(tiff(values(1, np.float64)[0]))
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.png")
    with pytest.raises(UserError, match=r"2 images .*odd.tif \(1 channels, not 6\).*photo"):
        opened(tmp_path)
    assert opened(tmp_path, on_bad_image="skip").bad_images == 2
    with pytest.raises(UserError, match=r"13 images .*6 channels, not 3"):
        opened(tmp_path, channels=3)


def test_pictures_have_no_other_channels(tmp_path):
    for i in range(4):
        Image.new("RGB", (8, 8), (i, 0, 9)).save(tmp_path / f"{i}.png")
    with pytest.raises(UserError, match=r"--channels 6: .* has pictures"):
        opened(tmp_path, channels=6)
    with pytest.raises(UserError, match=r"--shown_channels 0: .* has no measured images"):
        opened(tmp_path, shown_channels=0)


def write_grey(folder, number, count, **options):
    """Write grey TIFF files of uint16 and return their pixels, (count, H, W)."""
    folder.mkdir(parents=True, exist_ok=True)
    images = np.stack([values(1, seed=100 * number + x)[0] for x in range(count)])
    for i, image in enumerate(images):
        (folder / f"{number}-{i}.tif").write_bytes(tiff(image, **options))
    return images


@pytest.mark.parametrize("most_are_measured", [True, False])
def test_grey_measured_images_and_grey_pictures_are_used_together(tmp_path, most_are_measured):
    counts = (7, 3) if most_are_measured else (3, 7)
    images = np.concatenate(
        [
            write_grey(tmp_path, 0, counts[0], imagej=True, resolution=(1, 1)),
            write_grey(tmp_path, 1, counts[1], metadata=None),
        ]
    )
    splits = opened(tmp_path, value_range="measured", validation_fraction=0.2)
    (low, high) = splits.values["range"][0]
    assert splits.values["shown"] == ([0] if most_are_measured else None)
    found = torch.cat([splits.train.read(), splits.validation.read()])[:, 0].numpy()
    expected = (images.clip(low, high) - low) / (high - low) * 2 - 1
    order = [np.abs(x - expected).max((1, 2)).argmin() for x in found]
    assert sorted(order) == [*range(10)]
    assert np.abs(found - expected[order]).max() < 1e-4


def test_a_measured_image_among_pictures_is_named_if_it_is_not_grey(tmp_path):
    for i in range(4):
        (tmp_path / "train").mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (i, 0, 9)).save(tmp_path / "train" / f"{i}.png")
    (tmp_path / "validation").mkdir()
    (tmp_path / "validation" / "a.tif").write_bytes(ome(values(3)))
    with pytest.raises(UserError, match=r"held-out .*a.tif \(3 channels, and most .* pictures"):
        opened(tmp_path)


def test_pictures_with_an_opaque_alpha_are_used_among_measured_images(tmp_path):
    write_folder(tmp_path, 3, channels=3)
    pixels = np.dstack([*values(3, np.uint8), np.full((8, 10), 255, np.uint8)])
    Image.fromarray(pixels).save(tmp_path / "opaque.png")
    splits = opened(tmp_path, value_range="0,4000")
    assert splits.image_shape == (3, 8, 10) and splits.train.is_measured
    found = torch.cat([splits.train.read(), splits.validation.read()])
    expected = torch.from_numpy(pixels[:, :, :3].transpose(2, 0, 1) / 4000 * 2 - 1)
    assert min((x - expected).abs().max() for x in found) < 1e-4


@pytest.mark.parametrize("options", [{"metadata": None}, {"imagej": True, "resolution": (1, 1)}])
def test_one_held_out_image_without_a_fixed_range_is_enough_to_measure(tmp_path, options):
    images = write_grey(tmp_path / "train", 0, 4, metadata=None)
    (tmp_path / "validation").mkdir()
    held_out = images[0].astype(np.float32)
    (tmp_path / "validation" / "a.tif").write_bytes(tiff(held_out, **options))
    splits = opened(tmp_path)
    assert splits.values["range"] == [(images.min(), images.max())]
    assert torch.equal(splits.validation.read(), splits.train.read()[:1])


def test_grey_pictures_are_read_with_the_settings_of_a_grey_measured_autoencoder(tmp_path):
    write_grey(tmp_path, 0, 4, metadata=None)
    splits = opened(tmp_path, shown_channels=0, channels=1, value_range="0,4000")
    assert splits.image_shape == (1, 8, 10) and splits.shown_channels is None
    with pytest.raises(UserError, match="--shown_channels 1"):
        opened(tmp_path, shown_channels=1)


def test_the_check_is_made_again_after_tifffile_is_installed(tmp_path, monkeypatch):
    for i in range(4):
        (tmp_path / f"{i}.tif").write_bytes(tiff(values(3, seed=i)))
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "tifffile", None)
        patch.setattr("hf_latent.data.images.held_out.find_spec", lambda name: None)
        assert not opened(tmp_path, channels=3).train.is_measured
    assert opened(tmp_path, channels=3).train.is_measured


def test_shown_channels_are_chosen_and_checked(tmp_path):
    write_folder(tmp_path)
    assert opened(tmp_path, shown_channels="0,2,5").shown_channels == [0, 2, 5]
    assert opened(tmp_path, shown_channels=4).shown_channels == [4]
    with pytest.raises(UserError, match=r"--shown_channels 0,2,6: .* has 6 channels, from 0"):
        opened(tmp_path, shown_channels="0,2,6")
    for wrong in ("0,1", "a", "-1", "0,1,2,3"):
        with pytest.raises(UserError, match="--shown_channels"):
            ImagesConfig(shown_channels=wrong)


def test_the_message_on_pages_says_how_they_become_channels(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("hf_latent"), "propagate", True)
    for i in range(4):
        (tmp_path / f"{i}.tif").write_bytes(tiff(values(seed=i)))
    assert opened(tmp_path, value_range="0,4000").image_shape == (1, 8, 10)
    assert "only the first is used, 20 are left out; if the pages are channels" in caplog.text
    assert "pass --channels 6" in caplog.text
    assert opened(tmp_path, channels=6).image_shape == (6, 8, 10)


def test_grey_without_a_fixed_range_is_measured(tmp_path):
    images = np.stack([values(1, np.float32, seed)[0] for seed in range(8)])
    for i, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{i}.tif")
    splits = opened(tmp_path)
    used = images[splits.train.rows]
    low, high = used.min(), used.max()
    assert splits.values == {"range": [(low, high)], "dtype": "float32", "shown": None}
    expected = (used - low) / (high - low) * 2 - 1
    assert np.abs(splits.train.read()[:, 0].numpy() - expected).max() < 2 / 65535


def test_measured_on_request_for_grey_of_sixteen_bits(tmp_path):
    images = np.stack([values(1, seed=seed)[0] for seed in range(8)])
    for i, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    assert opened(tmp_path).values is None
    splits = opened(tmp_path, value_range="measured")
    used = images[splits.train.rows]
    pair = (float(used.min()), float(used.max()))
    assert splits.values == {"range": [pair], "dtype": "uint16", "shown": None}


def test_columns_of_arrays(tmp_path):
    images = np.stack([values(seed=i, channels=2) for i in range(8)])
    array = Features({"image": Array3D((2, 8, 10), "uint16")})
    dataset = Dataset.from_dict({"image": list(images)}, features=array)
    dataset.to_parquet(tmp_path / "array.parquet")
    lists = pa.array(images.tolist(), pa.list_(pa.list_(pa.list_(pa.uint16()))))
    pq.write_table(pa.table({"image": lists}), tmp_path / "lists.parquet")
    for name in ("array", "lists"):
        splits = opened(tmp_path / f"{name}.parquet", channels=2, value_range="0,4000")
        expected = images[splits.train.rows] / 2000 - 1
        assert np.abs(splits.train.read().numpy() - expected).max() < 2 / 65535
        assert splits.values["dtype"] == "uint16"
        with pytest.raises(UserError, match=r"8 images .*row 0 \(the shape \(2, 8, 10\)"):
            opened(tmp_path / f"{name}.parquet")
    dataset.save_to_disk(tmp_path / "saved")
    saved = opened(tmp_path / "saved", channels=2, value_range="0,4000")
    assert torch.equal(saved.train.read(), splits.train.read())
    flat = pa.array(images[:, 0].tolist(), pa.list_(pa.list_(pa.float64())))
    pq.write_table(pa.table({"image": flat, "label": [0, 1] * 4}), tmp_path / "flat.parquet")
    splits = opened(tmp_path / "flat.parquet")
    assert splits.image_shape == (1, 8, 10) and splits.num_classes == 2
    broken = pa.array([*images[:7].tolist(), [[[1, 2], [3]]]], lists.type)
    pq.write_table(pa.table({"image": broken}), tmp_path / "broken.parquet")
    with pytest.raises(UserError, match=r"1 image .*row 7 \(no image\)"):
        opened(tmp_path / "broken.parquet", channels=2)
