import hashlib

import pytest

from hf_latent.hub.card.signature import is_unedited, sign

CARD = "---\nlicense: mit\n---\n\n# A card\n\n- ü\n"


def test_a_signed_card_is_unedited_until_a_character_changes():
    signed = sign(CARD)
    assert signed.startswith(CARD)
    assert is_unedited(signed)
    assert is_unedited(signed.replace("\n", "\r\n"))
    assert is_unedited(signed.rstrip("\n"))
    for place in (0, 8, len(CARD) // 2, len(CARD) - 2):
        assert not is_unedited(signed[:place] + "x" + signed[place + 1 :])
    assert not is_unedited(signed + "more\n")
    assert not is_unedited(CARD)


def test_blank_lines_at_the_end_do_not_count():
    assert sign(CARD + "\n\n") == sign(CARD.rstrip()) == sign(CARD)


@pytest.mark.parametrize("words", ["push (a card that is edited is kept),", ""])
def test_a_card_that_an_earlier_version_signed_is_known(words):
    sha256 = hashlib.sha256(CARD.encode()).hexdigest()
    assert is_unedited(f"{CARD}\n<!-- Written by hf-latent {words} sha256 {sha256} -->\n")
