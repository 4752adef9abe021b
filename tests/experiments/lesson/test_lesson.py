"""The lesson: its page compared with its report, and claims that measurements contradict."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from datasets import DatasetDict
from PIL import Image

from hf_latent.cli import main
from hf_latent.data.images import sources
from hf_latent.experiments import quickstart
from hf_latent.experiments.lesson import chapters
from hf_latent.experiments.lesson.claims import CLAIMS
from hf_latent.experiments.lesson.lesson import CHAPTERS, LessonConfig, open_lesson, render_lesson
from hf_latent.models.fold import LatentStatistics, fold_latent_scale, unfold_latent_scale
from hf_latent.models.frozen import hash_weights
from hf_latent.models.load import load_autoencoder
from tests.conftest import CHROMIUM
from tests.small import few_held_out, small_trainings
from tests.training.page.reading import Page

PAGE_OF_A_MODEL = "../page/"


@pytest.fixture(autouse=True, scope="module")
def small():
    """Narrow models, and few built-in images, which are held out from few others."""
    whole = few_held_out()
    images = DatasetDict(whole, train=whole["train"].select(range(200)))
    with small_trainings() as patch:
        patch.setitem(sources.BUILT_IN, "fashion_mnist", lambda: images)
        patch.setitem(quickstart.AUTOENCODER, "fold_samples", 50)
        patch.setattr(chapters, "GENERATED_IMAGES", 10)
        yield


@pytest.fixture(scope="module")
def folder(small, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lesson") / "run"
    flags = (
        f"--output_dir {folder} --train_minutes 0.12 --resolutions [64] --page {PAGE_OF_A_MODEL}"
    )
    main(["lesson", *flags.split()])
    return folder


@pytest.fixture
def lesson(tmp_path):
    return open_lesson(LessonConfig(), tmp_path)


def test_the_report_names_no_path(folder):
    assert str(folder.parent) not in (folder / "report.json").read_text()
    assert str(folder.parent) not in (folder / "lesson.html").read_text()


def words(page):
    return " ".join(" ".join(page.texts["p"]).split())


def read_report(folder):
    return json.loads((folder / "report.json").read_text())


def test_every_claim_stands_in_its_chapter_with_value_and_verdict(folder):
    report, page = read_report(folder), Page((folder / "lesson.html").read_text())
    claims = iter(report["claims"])
    tables = [x for x in page.tables if x[0] == ["claim", "measured", "verdict"]]
    assert len(tables) == len(CHAPTERS)
    for name, (_, *rows) in zip(CHAPTERS, tables, strict=True):
        for statement, value, verdict in rows:
            claim = next(claims)
            expected = "yes" if claim["value"] is True else f"{claim['value']:.3g}"
            assert (claim["chapter"], claim["statement"]) == (name, statement)
            assert (value, verdict) == (expected, "holds" if claim["holds"] else "contradicted")
            assert claim["value"] == report[claim["figure"]]
    assert next(claims, None) is None
    held = sum(claim["holds"] for claim in report["claims"])
    assert f"{held} of {len(CLAIMS)} claims hold" in words(page)


def test_other_figures_of_the_page_are_those_of_the_report(folder, tmp_path):
    """Figures that no run gives: a page that shows them took them from report.json."""
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    report = read_report(folder)
    cost = dict.fromkeys(report["costs"][0], 31.25) | {"resolution": 777}
    row = {"factor": 91, "latent_values": 92, "steps": 9301, "psnr_db": 94.5, "edge_agreement": 9.6}
    changed = {"photograph_values": 123_456, "photograph_latent_values": 2_345, "psnr_db": 61.25}
    changed |= {"photograph_compression_ratio": 52.6, "latent_values": 871, "image_values": 872}
    changed |= {"compression_ratio": 8.74, "denoiser_steps": 1_876, "label_agreement": 0.123}
    changed |= {"label_agreement_images": 883, "real_label_agreement": 0.456, "images": 8_841}
    changed |= {"chance_label_agreement": 0.17, "total_seconds": 5_355.0, "cpu_cores": 713}
    changed |= {"vae_hash_before": "b" * 64, "vae_hash_after": "c" * 64, "vae": "<i>own</i>"}
    text = json.dumps(report | changed | {"costs": [cost], "autoencoders": [row]})
    (tmp_path / "report.json").write_text(text)
    page = Page(render_lesson(tmp_path))
    for figure in (
        *("has 123,456.", "makes 2,345 latent", "52.6 times fewer", "871 latent values of 872"),
        *(
            "8.74 times",
            "61.2 dB",
            "1,876 steps",
            f"{'b' * 16}...",
            f"{'c' * 16}...",
            "0.123 of 883",
        ),
        *(
            "0.456 of real",
            "chance is 0.17",
            "89.2 minutes",
            "713 CPU",
            "<i>own</i>",
            "8841 held-out",
        ),
    ):
        assert figure in words(page), figure
    (costs,) = (x[1:] for x in page.tables if x[0][0] == "pixels of a side")
    assert costs == [["777", "31.2 s", "31.2 s", *["31.2"] * 4]]
    (autoencoders,) = (x[1:] for x in page.tables if x[0][0] == "downsampling factor")
    assert autoencoders == [["91", "92", "9,301", "94.5 dB", "9.60"]]


def test_each_chapter_shows_its_code_and_its_picture(folder):
    page = Page((folder / "lesson.html").read_text())
    names = [chapter.measure.__name__ for chapter in CHAPTERS.values()]
    assert len(page.texts["pre"]) == len(names)
    for name, code in zip(names, page.texts["pre"], strict=True):
        assert f"def {name}(lesson: Lesson)" in code
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    drawn = [name for name, chapter in CHAPTERS.items() if chapter.picture]
    assert [x["alt"] for x in images] == [CHAPTERS[name].picture for name in drawn]
    for name in drawn:
        assert Image.open(folder / f"{name}.png").width > 300
    frames = [attributes["src"] for tag, attributes in page.tags if tag == "iframe"]
    assert frames == [PAGE_OF_A_MODEL]


def test_the_released_autoencoder_is_what_the_denoiser_was_trained_on(folder):
    report = read_report(folder)
    expected = hash_weights(load_autoencoder("fashion-mnist-f4"))
    assert report["vae_hash_before"] == report["vae_hash_after"] == expected
    assert [x["latent_values"] for x in report["autoencoders"]] == [256, 64, 16]
    values = ("photograph_values", "photograph_latent_values", "image_values", "latent_values")
    assert [report[name] for name in values] == [786_432, 16_384, 1_024, 256]


def check(figures, name):
    (claim,) = (claim for claim in CLAIMS if claim.figure == name)
    return claim.check(figures)["holds"]


def test_an_autoencoder_without_its_scale_contradicts_the_claim_of_unit_variance(lesson):
    scaled = chapters.measure_noise(lesson)
    statistics = LatentStatistics(torch.zeros(4), torch.full((4,), 0.18))
    vae = fold_latent_scale(unfold_latent_scale(lesson.vae), statistics)
    unscaled = chapters.measure_noise(replace(lesson, vae=vae))
    for name in ("latent_std_error_largest", "half_noise_variance"):
        assert check(scaled, name) and not check(unscaled, name), name
    # The noise is independent of the posterior's: 50 images are near 0.5 too.
    assert abs(scaled["half_noise_variance"] - 0.5) < 0.02
    # Noise is noise in both.
    assert scaled["pixel_noise_correlation"] == unscaled["pixel_noise_correlation"] < 0.05


def test_a_contradicted_claim_is_shown_as_contradicted(folder, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    report = read_report(folder)
    figures = report | {"vae_is_unchanged": False, "noise_survival": 0.51, "psnr_db": None}
    report["claims"] = [claim.check(figures) for claim in CLAIMS]
    (tmp_path / "report.json").write_text(json.dumps(report))
    rows = [row for table in Page(render_lesson(tmp_path)).tables for row in table]
    verdicts = {row[0]: row[1:] for row in rows}
    assert verdicts["At most half of the noise that was added to pixels comes back."] == [
        *("0.51", "contradicted")
    ]
    (frozen,) = (claim.statement for claim in CLAIMS if claim.chapter == "frozen")
    assert verdicts[frozen] == ["no", "contradicted"]


def test_autoencoders_of_other_images_are_refused(capsys, tmp_path):
    with pytest.raises(SystemExit):
        main(["lesson", "--vae", "emoji", "--output_dir", str(tmp_path / "lesson")])
    assert "channels" in capsys.readouterr().err
    assert not (tmp_path / "lesson").exists()


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium: run .ci/browser")
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_shows_all_of_it(browser, folder, width):
    complaints = []
    tab = browser.new_page(viewport={"width": width, "height": 900})
    tab.on("console", lambda x: complaints.append(x.text))
    tab.route("**/page/", lambda route: route.fulfill(body="<p>the model</p>"))
    tab.route("http://lesson/lesson.html", lambda x: x.fulfill(path=folder / "lesson.html"))
    tab.goto("http://lesson/lesson.html")
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    loaded = "all => all.every(x => x.complete && x.naturalWidth > 0)"
    assert tab.locator("img").evaluate_all(loaded)
    code = tab.get_by_label("Code: Latents are few")
    assert not code.is_visible()
    tab.get_by_text("The code that measured it").first.click()
    assert code.is_visible()
    assert complaints == []
    tab.close()
