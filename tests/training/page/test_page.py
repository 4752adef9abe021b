"""The page of a run, compared with the run's own files."""

import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hf_latent.errors import UserError
from hf_latent.training.autoencoder import train_autoencoder
from hf_latent.training.denoiser import train_denoiser
from hf_latent.training.page import curves, page
from hf_latent.training.page.page import render_page, write_page
from hf_latent.training.page.record import read_run
from hf_latent.training.run.clock import TrainingClock
from hf_latent.training.run.log import read_lines
from hf_latent.training.validation.diagnosis import diagnose
from tests.conftest import CHROMIUM
from tests.training.conftest import short_autoencoder, short_denoiser
from tests.training.page.reading import Page
from tests.training.run.test_log import Killed, KilledAfter

EVIL = "<script>alert('x')<"
STEPS = 6
PANELS = curves.PANELS  # before the fixture that leaves one


def write_data(folder: Path) -> Path:
    """Write images in colour, whose names are those of tags."""
    generator = np.random.default_rng(0)
    for i in range(40):
        place = folder / EVIL / ("<b>cats" if i % 2 else "dogs")
        place.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((32, 32)).save(place / f"{i}.png")
    return folder / EVIL


@pytest.fixture(autouse=True, scope="module")
def whole_pages():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(curves, "PANELS", PANELS)
        patch.setattr(TrainingClock, "LOGGING_STEPS", 1)
        yield


@pytest.fixture(scope="module")
def runs(small_trainings, whole_pages, tmp_path_factory) -> dict[str, Path]:
    """Finished runs; tests change copies of them."""
    folder = tmp_path_factory.mktemp("runs")
    changes = {"data": str(write_data(folder)), "max_train_steps": STEPS, "validation_steps": 1}
    slow = {"learning_rate": 1e-3, "reconstruction_loss": "l1"}  # no curve on a logarithmic scale
    train_autoencoder(short_autoencoder(folder, **changes, **slow, max_validation_samples=2))
    train_denoiser(short_denoiser(folder, **changes, max_validation_samples=2))
    return {name: folder / name for name in ("autoencoder", "denoiser")}


@pytest.fixture
def copied(runs, tmp_path):
    return shutil.copytree(runs["autoencoder"], tmp_path / "run")


def read_page(run: Path) -> Page:
    return Page((run / "report.html").read_text("utf-8"))


def rendered(run: Path) -> Page:
    return Page(render_page([read_run(run, run.name)]))


CURVES = {
    "autoencoder": {
        "Loss": ("train_loss", "validation_loss"),
        "Held-out PSNR in dB": ("psnr_db", "bicubic_psnr_db"),
        "R2 of held-out luma and chroma": ("luma_r2", "chroma_r2"),
    },
    "denoiser": {"Loss": ("train_loss", "validation_loss")},
}
OF_BOTH = {
    "Learning rate": ("learning_rate",),
    "Gradient norm": ("gradient_norm",),
    "Images a second": ("images_per_second",),
}


@pytest.mark.parametrize("name", CURVES)
def test_curves_are_those_of_the_log(runs, name):
    shown, lines = read_page(runs[name]), read_lines(runs[name])
    titles = CURVES[name] | OF_BOTH
    by_timestep = [x for x in lines[-1] if x.startswith("validation_loss_timesteps_")]
    if by_timestep:
        titles["Held-out loss by timestep"] = tuple(by_timestep)
    assert set(shown.paths) == set(titles)
    for title, names in titles.items():
        logged = [[(x["step"], x[key]) for x in lines if key in x] for key in names]
        drawn = shown.points(title)
        assert [len(x) for x in drawn] == [len(x) for x in logged]
        values, places = np.concatenate(logged), np.concatenate(drawn)
        for axis, sign in ((0, 1), (1, -1)):  # a straight line between values and places
            line = np.polyfit(values[:, axis], places[:, axis], 1)
            assert sign * line[0] > 0, title
            np.testing.assert_allclose(
                np.polyval(line, values[:, axis]), places[:, axis], atol=0.01
            )
    assert [len(x) for x in shown.points("Loss")] == [STEPS, STEPS]


@pytest.mark.parametrize("name", CURVES)
def test_tables_have_the_runs_figures_and_settings(runs, name):
    shown, lines = read_page(runs[name]), read_lines(runs[name])
    figures, changed, by_step, settings = (table for table in shown.tables)

    def text(value) -> str:
        return f"{value:.5g}" if isinstance(value, float) else f"{value:,}"

    validations = [line for line in lines if "validation_loss" in line]
    assert [int(row[0]) for row in by_step[1:]] == list(range(1, STEPS + 1))
    for row, line in zip(by_step[1:], validations, strict=True):
        assert dict(zip(by_step[0], row, strict=True)) == {k: text(x) for k, x in line.items()}
    last = {key: text(x) for line in lines for key, x in line.items()}
    training = json.loads((runs[name] / "model" / "training.json").read_text())
    last |= {key: text(training[key]) for key in ("images_seen", "seconds")}
    assert dict(figures[1:]) == last
    expected = {
        *("data", "resize_mode", "max_train_samples", "max_train_steps", "train_batch_size"),
        *("validation_steps", "max_validation_samples", "checkpointing_steps"),
        *("validation_fingerprint",),
        *(["vae"] if name == "denoiser" else ["learning_rate", "reconstruction_loss"]),
    }
    assert {row[0] for row in changed[1:]} == expected
    assert dict(changed[1:])["train_batch_size"] == "8"
    assert dict(changed[1:])["data"] == EVIL
    everything = dict(settings[1:])
    rate = {"autoencoder": "0.001", "denoiser": "0.002"}[name]
    assert everything["learning_rate"] == rate and everything["horizontal_flip"] == "false"
    assert "output_dir" not in everything and len(everything) > 40


@pytest.mark.parametrize("name", CURVES)
def test_the_page_has_each_validations_picture_and_needs_no_other_file(runs, name, tmp_path):
    run = runs[name]
    text, shown = (run / "report.html").read_text("utf-8"), read_page(run)
    samples = {int(p.stem.removeprefix("step-")): p for p in (run / "samples").iterdir()}
    assert shown.pictures() == {step: path.read_bytes() for step, path in samples.items()}
    assert list(shown.pictures()) == list(range(1, STEPS + 1))
    hidden = ["hidden" in attrs for tag, attrs in shown.tags if tag == "img"]
    assert hidden == [True] * (STEPS - 1) + [False]
    (slider,) = (attrs for tag, attrs in shown.tags if tag == "input")
    assert slider["type"] == "range" and slider["max"] == slider["value"] == str(STEPS - 1)
    assert {"for": slider["id"]} in [attrs for tag, attrs in shown.tags if tag == "label"]
    assert not re.search(r"https?:|url\((?!#)|@import", text)
    for tag, attrs in shown.tags:
        assert attrs.get("src", "data:").startswith("data:"), tag
        assert attrs.get("href", "#").startswith("#"), tag
        assert not any(key.startswith("on") for key in attrs), tag
    for tag, attrs in shown.tags:
        if tag == "svg":
            assert attrs["role"] == "img" and " by step. " in attrs["aria-label"]
    assert str(run.parent) not in text and str(Path.home()) not in text
    identities = [attrs["id"] for _, attrs in shown.tags if "id" in attrs]
    assert len(identities) == len(set(identities))


def test_text_of_files_is_escaped(runs):
    shown = read_page(runs["autoencoder"])
    assert shown.texts["script"] == [page.SCRIPT]
    assert any(line.startswith(f"{EVIL}: 38 images") for line in shown.texts["li"])
    assert any("<b>cats" in line for line in shown.texts["li"])
    assert "b" not in {tag for tag, _ in shown.tags}


def test_the_page_says_the_diagnosis_and_what_comes_next(runs):
    shown = read_page(runs["autoencoder"])
    for level, line in diagnose(read_lines(runs["autoencoder"])):
        assert ("Problem: " * (level > 20) + line) in shown.texts["li"]
    assert shown.texts["p"][1] == f"train-autoencoder. Finished after {STEPS} steps."
    (commands,) = shown.texts["pre"]
    words = shlex.split(commands.splitlines()[-1])
    assert words[:4] == ["hf-latent", "train-denoiser", "--vae", "autoencoder/model"]
    assert EVIL in words
    assert (
        "hf-latent generate --model denoiser/model" in read_page(runs["denoiser"]).texts["pre"][0]
    )


class Watching(KilledAfter):
    """Reads the page after each step, then kills the training."""

    def __init__(self, run: Path, steps: int):
        super().__init__(steps)
        self.run, self.seen = run, []

    def requested(self, accelerator) -> bool:
        self.seen.append(list(read_page(self.run).pictures()))
        return super().requested(accelerator)


def test_each_validation_rewrites_the_page_and_a_killed_run_can_be_resumed(
    autoencoder_config, tmp_path
):
    config = autoencoder_config(validation_steps=1, max_train_steps=STEPS, checkpointing_steps=1)
    watching = Watching(tmp_path / "autoencoder", 4)
    with pytest.raises(Killed):
        train_autoencoder(config, stop=watching)
    assert watching.seen == [[1], [1, 2], [1, 2, 3], [1, 2, 3, 4]]
    shown = read_page(tmp_path / "autoencoder")
    assert "Not finished: step 4 was logged last, at 2" in shown.texts["p"][1]
    assert shown.texts["p"][1].endswith("UTC; the training takes 6 steps.")
    resume = "hf-latent train-autoencoder --config autoencoder/config.yaml"
    assert f"{resume} --resume_from_checkpoint latest" in shown.texts["pre"][0]
    assert not list((tmp_path / "autoencoder").glob(".*"))


def test_a_run_that_was_not_validated_says_so(copied):
    log = copied / "logs" / "losses.jsonl"
    kept = [x for x in log.read_text().splitlines(True) if "validation_loss" not in x]
    log.write_text("".join(kept[:-1]))
    shown = rendered(copied)
    assert "The run has not been validated yet." in shown.texts["li"]
    assert "There is no picture yet: each validation makes one." in shown.texts["p"]
    assert shown.pictures() == {} and "input" not in {tag for tag, _ in shown.tags}
    assert len(shown.points("Loss")) == 1
    log.unlink()
    shown = rendered(copied)
    assert "train-autoencoder. Nothing has been logged yet." in shown.texts["p"]
    assert shown.paths == {} and "Nothing has been logged yet." in shown.texts["p"]


def test_only_pictures_of_the_run_are_shown(copied, tmp_path):
    samples = copied / "samples"
    shutil.copy(samples / "step-000001.png", tmp_path / "other.png")
    (samples / "step-000001.png").unlink()
    (samples / "step-000001.png").symlink_to(tmp_path / "other.png")
    (samples / "step-000002.png").write_text("<svg onload='alert(1)'>")
    shutil.copy(samples / "step-000003.png", samples / "step-000009.png")  # never logged
    assert list(rendered(copied).pictures()) == [3, 4, 5, 6]
    samples.rename(tmp_path / "elsewhere")
    samples.symlink_to(tmp_path / "elsewhere")
    assert rendered(copied).pictures() == {}


def test_many_or_large_pictures_are_shown_in_part(copied, monkeypatch):
    monkeypatch.setattr(page, "MAX_PICTURES", 4)
    assert list(rendered(copied).pictures()) == [1, 3, 4, 6]
    monkeypatch.setattr(page, "MAX_PICTURE_BYTES", 1)
    shown = rendered(copied)
    assert list(shown.pictures()) == [1, 3, 6]
    assert any(x.startswith("3 of 6 pictures are shown.") for x in shown.texts["p"])


def test_long_curves_are_means_of_neighbours(copied, monkeypatch):
    monkeypatch.setattr(curves, "MAX_POINTS", 3)
    losses = [x["train_loss"] for x in read_lines(copied) if "train_loss" in x]
    means = np.array(losses).reshape(3, 2).mean(1)
    shown, _ = rendered(copied).points("Loss")
    line = np.polyfit(means, shown[:, 1], 1)
    np.testing.assert_allclose(np.polyval(line, means), shown[:, 1], atol=0.01)


DAMAGE = {
    "config.yaml": [("{[", "cannot be read"), ("a: 1\n", "not of a training")],
    "model/training.json": [("{", "cannot be read")],
    "logs/losses.jsonl": [
        ("{\n", "is damaged"),
        ("[1]\n", "without steps"),
        ('{"a": 1}\n', "steps"),
    ],
}
DAMAGE["config.yaml"] += [("&a [*a]\n", "alias"), ("[" * 5000, "cannot be read")]
DAMAGE["config.yaml"] += [("output_dir: x\nmax_train_steps: many\n", "--max_train_steps")]
DAMAGE["config.yaml"] += [("output_dir: x\nmax_train_steps: 1\ndata: /\n", "--data")]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [(name, *case) for name, cases in DAMAGE.items() for case in cases],
    ids=[f"{name} {says}" for name, cases in DAMAGE.items() for _, says in cases],
)
def test_a_damaged_run_is_one_line(copied, name, content, says):
    (copied / name).write_text(content)
    with pytest.raises(UserError, match=re.escape(says)) as refused:
        rendered(copied)
    assert str(copied) in str(refused.value) and "\n" not in str(refused.value)


def test_values_that_are_no_numbers_are_left_out(copied):
    with open(copied / "logs" / "losses.jsonl", "a") as log:
        wrong = f'"psnr_db": "<i>", "ssim": NaN, "luma_r2": 1{"0" * 400}, "<i>": 1'
        log.write(f'{{"step": 7, "validation_loss": Infinity, {wrong}, "chroma_r2": true}}\n')
        log.write(f'{{"step": 1{"0" * 400}, "train_loss": 1}}\n')
    shown = rendered(copied)
    assert dict(shown.tables[0][1:])["<i>"] == "1"
    for title in ("Held-out PSNR in dB", "R2 of held-out luma and chroma"):
        assert [len(x) for x in shown.points(title)] == [STEPS, STEPS]


def test_a_failed_page_does_not_stop_a_training(copied, monkeypatch, capsys):
    def fail(runs):
        raise ZeroDivisionError

    monkeypatch.setattr(page, "draw_curves", fail)
    before = (copied / "report.html").read_bytes()
    write_page(copied)
    assert (copied / "report.html").read_bytes() == before
    (line,) = capsys.readouterr().err.splitlines()
    start = f"warning: the page {copied / 'report.html'} could not be made (ZeroDivisionError"
    assert line.startswith(start)


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium: run .ci/browser")
def test_a_browser_shows_the_picture_of_the_chosen_step(browser, runs):
    complaints = []
    tab = browser.new_page()
    tab.on("console", lambda x: complaints.append(x.text))
    page = runs["autoencoder"] / "report.html"
    tab.route("http://run/report.html", lambda route: route.fulfill(path=page))
    tab.goto("http://run/report.html")
    slider, shown = tab.get_by_role("slider"), tab.locator("img:visible")
    for place in (0, STEPS - 1):
        slider.fill(str(place))
        assert shown.evaluate_all("all => all.map(x => x.dataset.step)") == [str(place + 1)]
        assert tab.locator("output").inner_text() == str(place + 1)
        assert slider.get_attribute("aria-valuetext") == str(place + 1)
    assert complaints == []
    tab.close()
