"""A sample of the attacks that `python -m tests.attacks` tries; and that an attack can succeed."""

import random
import runpy

import torch

from tests.attacks.attack import Attacks
from tests.attacks.corruptions import WAYS_OF, is_survived
from tests.attacks.plants import plant_code, plant_pickle, plants_of
from tests.attacks.subjects import SUBJECTS, Outcome

WHOLE = Outcome(0, "", {"a": "1"})


def test_a_sample_of_damaged_files_and_planted_code():
    report = Attacks(seed=0).run(corruptions=12, plants=12)
    assert report == {
        **{"corruptions": 12, "corruption_failures": []},
        **{"plants": 12, "plant_failures": []},
    }


def test_60_files_can_be_planted():
    assert sum(len(plants_of(name)) for name in SUBJECTS) >= 60


def test_planted_code_leaves_its_mark_if_it_runs(tmp_path):
    plant_code("evil.py")(tmp_path, tmp_path / "imported")
    runpy.run_path(str(tmp_path / "evil.py"))
    assert (tmp_path / "imported").is_dir()
    plant_pickle("state.pt")(tmp_path, tmp_path / "loaded")
    torch.load(tmp_path / "state.pt", weights_only=False)
    assert (tmp_path / "loaded").is_dir()


def test_damage_that_is_not_noticed_is_a_failure():
    assert is_survived(WHOLE, WHOLE)
    assert is_survived(Outcome(2, "error: out is damaged\n", {}), WHOLE)
    assert not is_survived(Outcome(0, "", {"a": "2"}), WHOLE)
    assert not is_survived(Outcome(2, "error: out is damaged\n", {"a": "1"}), WHOLE)
    assert not is_survived(Outcome(2, "error: a\nerror: b\n", {}), WHOLE)
    assert not is_survived(Outcome(None, "KeyError: 'step'", {}), WHOLE)


def test_every_way_damages_a_file(tmp_path):
    for way in {way for ways in WAYS_OF.values() for way in ways}:
        (tmp_path / "a").write_bytes(b"some bytes")
        (tmp_path / "b").write_bytes(b"other ones")
        way(tmp_path / "a", random.Random(0))
        assert not (tmp_path / "a").exists() or (tmp_path / "a").read_bytes() != b"some bytes"
