"""What `hf-latent doctor` says of the Hub."""

import pytest

from tests.hub.conftest import TOKEN

CODE = """
from hf_latent.experiments.doctor import describe_accounts
print(next(describe_accounts()))
"""
OFFLINE = "from huggingface_hub import constants; constants.HF_HUB_OFFLINE = True\n"


@pytest.mark.parametrize(
    ("before", "token", "said"),
    [
        ("", TOKEN, "logged in as ada\n"),
        ("", None, "no token; to push or to read private models, run hf auth login\n"),
        ("", f"{TOKEN}x", "the Hub does not know this token: run hf auth login, or set HF_TOKEN\n"),
        (OFFLINE, TOKEN, "HF_HUB_OFFLINE is set"),
    ],
)
def test_login(process, before, token, said):
    outcome = process.run(before + CODE, token)
    assert outcome.out.startswith(f"Hub: {said}"), outcome.err
    assert outcome.status == 0
    assert TOKEN not in outcome.out + outcome.err


def test_a_hub_in_trouble_is_asked_once(hub, process):
    hub.fail("whoami", times=1)
    outcome = process.run(CODE, TOKEN)
    assert outcome.out.startswith("Hub: the Hub cannot be reached or is in trouble (500"), outcome
