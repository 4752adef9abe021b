import numpy as np
import pytest
from PIL import Image

from hf_latent.hub.card.pictures import LONGEST_SIDE, copy_picture
from hf_latent.hub.card.render import card_pictures


def test_a_small_picture_is_copied_as_it_is(tmp_path):
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    copy_picture(tmp_path / "a.png", tmp_path / "b.png")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "b.png")), pixels)


def test_a_large_picture_is_made_smaller_and_keeps_its_shape(tmp_path):
    Image.new("RGB", (2 * LONGEST_SIDE, LONGEST_SIDE)).save(tmp_path / "a.png")
    copy_picture(tmp_path / "a.png", tmp_path / "b.png")
    assert Image.open(tmp_path / "b.png").size == (LONGEST_SIDE, LONGEST_SIDE // 2)
    assert Image.open(tmp_path / "a.png").size == (2 * LONGEST_SIDE, LONGEST_SIDE)


def test_a_picture_larger_than_pillows_limit_is_copied(tmp_path, monkeypatch):
    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    with monkeypatch.context() as patch:
        patch.setattr(Image, "MAX_IMAGE_PIXELS", 8)
        with pytest.raises(Image.DecompressionBombError):
            Image.open(tmp_path / "a.png")
        copy_picture(tmp_path / "a.png", tmp_path / "b.png")
        patch.setattr("hf_latent.hub.card.pictures.LONGEST_SIDE", 4)
        copy_picture(tmp_path / "a.png", tmp_path / "c.png")
        assert Image.MAX_IMAGE_PIXELS == 8
    assert np.array_equal(np.asarray(Image.open(tmp_path / "b.png")), pixels)
    assert Image.open(tmp_path / "c.png").size == (4, 4)


def test_only_pictures_beside_the_card_are_named():
    card = """
![a](samples.png)
![again](samples.png) ![two](b.png "a title") ![](<c.png>)
![escaped](my%5Fown.png) ![a name that a push would not send](my%20own.png) ![no PNG](h.jpg)
![web](https://example.org/x.png) ![](//example.org/y.png) ![](data:image/png;base64,AAAA)
![up](../secret.png) ![down](folder/d.png) ![](/etc/passwd) ![](%2e%2e%2fsecret.png) ![](..)
![hidden](.token) ![](C:x.png) ![](a\\b.png)
[no picture](e.png)

```markdown
![only shown as text](f.png)
```
![last](g.png)
"""
    assert card_pictures(card) == ["samples.png", "b.png", "c.png", "my_own.png", "g.png"]
