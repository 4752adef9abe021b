"""The page in headless Chromium, used as a person would."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hf_latent.pipeline import LatentDiffusionPipeline
from hf_latent.pipeline.image_to_image import slerp
from tests.hub.page.conftest import CLASSES, PIXELS_OF, TITLE, drawn_classes, needs_browser

pytestmark = needs_browser
STEPS, SCALE = 6, 3.0


@pytest.fixture(scope="module")
def complaints() -> list[str]:
    """Errors in the browser's console."""
    return []


@pytest.fixture(scope="module")
def tab(browser, address, complaints):
    """A tab whose model is loaded."""
    tab = browser.new_page(viewport={"width": 1280, "height": 900})
    tab.on("console", lambda x: complaints.extend([x.text] * (x.type == "error")))
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.goto(address)
    tab.locator("#status").get_by_text("Ready.").wait_for(timeout=60_000)
    yield tab
    assert complaints == []


def shown(tab, canvas: str) -> np.ndarray:
    return np.array(tab.evaluate(PIXELS_OF, canvas))


def changed(tab, canvas: str, before: np.ndarray) -> np.ndarray:
    """Wait until a canvas shows something else, and return it."""
    tab.wait_for_function(
        f"([id, before]) => ({PIXELS_OF})(id).join() !== before.join()",
        arg=[canvas, before.tolist()],
    )
    return shown(tab, canvas)


def move(tab, slider: str, value: float) -> None:
    tab.get_by_role("slider", name=slider).fill(str(value))


def save(picture: np.ndarray, path: Path) -> Path:
    Image.fromarray(picture).save(path)
    return path


def test_the_page_says_what_it_is(tab):
    assert tab.title() == TITLE
    assert tab.get_by_role("heading", level=1).text_content() == TITLE
    assert "768 numbers become 64: 12 times fewer." in tab.locator("#encode").text_content()
    assert tab.locator("#class option").all_text_contents() == list(CLASSES.values())


def test_a_chosen_picture_is_encoded_and_decoded(tab, model, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    before = shown(tab, "round-trip")
    tab.get_by_label("Choose or drop a picture").set_input_files(save(pixels, tmp_path / "a.png"))
    found = changed(tab, "round-trip", before)
    np.testing.assert_array_equal(shown(tab, "pixels").reshape(16, 16, 4)[..., :3], pixels)
    expected = model.reconstruct([Image.fromarray(pixels)], output_type="np")[0]
    np.testing.assert_allclose(found.reshape(16, 16, 4)[..., :3] / 255, expected, atol=0.02)
    words = tab.locator("#encode-words").text_content()
    assert words.startswith("The round trip is ")


def test_pixel_noise_is_added_and_named(tab):
    before = shown(tab, "pixels")
    move(tab, "Pixel noise", 0.3)
    changed(tab, "pixels", before)
    tab.get_by_text("from the picture without noise").wait_for()
    move(tab, "Pixel noise", 0)
    tab.wait_for_function(
        f"before => ({PIXELS_OF})('pixels').join() === before.join()", arg=before.tolist()
    )


def test_a_file_that_is_no_picture_is_refused_in_words(tab, tmp_path):
    (tmp_path / "notes.txt").write_text("no picture")
    before = shown(tab, "pixels")
    tab.get_by_label("Choose or drop a picture").set_input_files(tmp_path / "notes.txt")
    words = tab.get_by_role("alert")
    words.wait_for()
    assert words.text_content().startswith("notes.txt is no picture that the browser can read")
    np.testing.assert_array_equal(shown(tab, "pixels"), before)
    tab.get_by_role("button", name="Let the model draw one").click()
    changed(tab, "pixels", before)
    words.wait_for(state="hidden")


def test_a_dropped_picture_is_taken(tab):
    before = shown(tab, "pixels")
    tab.evaluate(
        """async () => {
            const canvas = new OffscreenCanvas(16, 16);
            canvas.getContext('2d').fillRect(0, 0, 8, 16);
            const transfer = new DataTransfer();
            transfer.items.add(new File([await canvas.convertToBlob()], 'a.png'));
            document.getElementById('encode').dispatchEvent(
                new DragEvent('drop', { dataTransfer: transfer, bubbles: true }));
        }"""
    )
    found = changed(tab, "pixels", before).reshape(16, 16, 4)
    assert (found[:, :8, :3] == 0).all() and (found[:, 8:] == 255).all()


def test_the_noise_level_mixes_noise_into_the_latents(tab):
    move(tab, "Noise level", 0)
    tab.wait_for_function(
        f"() => ({PIXELS_OF})('noisy-latents').join() === ({PIXELS_OF})('latents').join()"
    )
    before = shown(tab, "noisy-decoded")
    move(tab, "Noise level", 100)
    changed(tab, "noisy-decoded", before)
    assert tab.locator("#level-shown").text_content() == "1.00"


def test_each_step_of_denoising_is_shown(tab):
    tab.get_by_role("combobox", name="Steps").select_option(str(STEPS))
    tab.get_by_role("combobox", name="Class").select_option("dog")
    tab.get_by_role("button", name="Denoise").click()
    tab.locator(f"#strip li:nth-child({STEPS + 1})").wait_for()
    captions = tab.locator("#strip figcaption").all_text_contents()
    assert captions[0] == "step 1, from level 1.00"
    assert captions[-1] == "the picture"
    tab.locator("#denoise-words").get_by_text("Drawn in").wait_for()


def test_every_class_is_drawn(tab):
    drawn_classes(tab)
    assert tab.locator("#strip figcaption").all_text_contents() == list(CLASSES.values())


def test_buttons_clicked_during_work_wait_for_it(tab):
    tab.evaluate("['draw', 'draw-classes'].forEach(x => document.getElementById(x).click())")
    tab.locator("#denoise-words").get_by_text("3 classes drawn").wait_for()
    assert tab.locator("#strip figcaption").all_text_contents() == list(CLASSES.values())


def test_the_same_file_can_be_chosen_again(tab, tmp_path):
    picture = save(np.zeros((16, 16, 3), np.uint8), tmp_path / "a.png")
    for _ in range(2):
        before = shown(tab, "pixels")
        tab.get_by_label("Choose or drop a picture").set_input_files(picture)
        assert (changed(tab, "pixels", before).reshape(-1, 4)[:, :3] == 0).all()
        before = shown(tab, "pixels")
        tab.get_by_role("button", name="Let the model draw one").click()
        changed(tab, "pixels", before)
    assert tab.locator("#picture").input_value() == ""


def test_a_page_opened_as_a_file_asks_for_a_server(browser, page):
    tab = browser.new_page()
    tab.goto((page / "index.html").as_uri())
    assert "web server" in tab.get_by_role("status").text_content()


def test_a_walk_shows_pictures_between_two(tab):
    move(tab, "Way", 0)
    tab.wait_for_function(
        f"() => ({PIXELS_OF})('walked').join() === ({PIXELS_OF})('round-trip').join()"
    )
    before = shown(tab, "walked")
    move(tab, "Way", 1)
    changed(tab, "walked", before)


def test_painting_with_pointer_and_keyboard_changes_the_picture(tab):
    canvas = tab.locator("#painted-latents")
    before = shown(tab, "painted")
    canvas.click(position={"x": 5, "y": 5})
    clicked = changed(tab, "painted", before)
    assert tab.locator("#paint-words").text_content() == "Painted at row 1, column 1."
    for key in ("ArrowDown", "ArrowDown", "ArrowRight", "ArrowRight", " "):
        canvas.press(key)
    changed(tab, "painted", clicked)
    assert tab.locator("#paint-words").text_content() == "Painted at row 3, column 3."
    tab.get_by_role("button", name="Undo all").click()
    tab.wait_for_function(
        f"before => ({PIXELS_OF})('painted').join() === before.join()", arg=before.tolist()
    )


def test_a_kept_half_stays(tab):
    tab.get_by_role("combobox", name="Keep").select_option("top")
    before = shown(tab, "renewed")
    tab.get_by_role("button", name="Make the rest anew").click()
    changed(tab, "renewed", before)


@pytest.fixture
def rounded(model) -> LatentDiffusionPipeline:
    """The model with its denoiser's matrices in float16, as the page has them."""
    unet = copy.deepcopy(model.unet)
    with torch.no_grad():
        for weight in unet.parameters():
            if weight.ndim > 1:
                weight.copy_(weight.half())
    rounded = LatentDiffusionPipeline(model.vae, unet, model.trained_scheduler, CLASSES)
    rounded.set_progress_bar_config(disable=True)
    rounded.use_sampler("unipc")
    return rounded


def latents_in_browser(tab, settings: str, noise: torch.Tensor) -> torch.Tensor:
    """Denoise with the page's own files, from given noise."""
    values = tab.evaluate(
        f"""async noise => {{
            const {{ loadModel }} = await import('./model.js');
            const {{ denoise }} = await import('./denoise.js');
            const {{ halfMask }} = await import('./decode.js');
            const model = await loadModel(() => {{}});
            const first = Float32Array.from(noise);
            const whole = {{ noise: first, steps: {STEPS}, guidance: {SCALE}, {settings} }};
            return Array.from(await denoise(model, whole));
        }}""",
        noise.flatten().tolist(),
    )
    return torch.tensor(values).view(noise.shape)


def test_the_browser_draws_the_pipelines_latents(tab, rounded):
    noise = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    found = latents_in_browser(tab, "labels: [1, 2]", noise)
    expected = rounded.denoise_latents(
        noise, STEPS, class_labels=[1, 2], guidance_scale=SCALE, guidance_interval=(0, 0.8)
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_the_browser_keeps_a_half_as_the_pipeline_does(tab, rounded):
    noise = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    kept = torch.full_like(noise, 0.5)
    settings = (
        "labels: [1], kept: { latents: first.map(() => 0.5), mask: halfMask([4, 4, 4], 'left') }"
    )
    found = latents_in_browser(tab, settings, noise)
    mask = torch.zeros(1, 1, 4, 4, dtype=torch.bool)
    mask[..., 2:] = True
    expected = rounded.denoise_latents(
        *(noise, STEPS, [1], SCALE), guidance_interval=(0, 0.8), image_latents=kept, mask=mask
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    assert (found[..., :2] == 0.5).all()


def test_noise_and_arcs_are_those_of_their_definitions(tab):
    noise = np.array(
        tab.evaluate("async () => Array.from((await import('./add_noise.js')).normal(20001, 3))")
    )
    assert len(noise) == 20001
    assert abs(noise.mean()) < 0.03 and abs(noise.std() - 1) < 0.03
    assert 0.66 < (abs(noise) < 1).mean() < 0.71
    first, second = torch.randn(2, 64, generator=torch.Generator().manual_seed(0))
    found = tab.evaluate(
        """async ([a, b]) => Array.from((await import('./decode.js')).slerp(
            Float32Array.from(a), Float32Array.from(b), 0.3))""",
        [first.tolist(), second.tolist()],
    )
    torch.testing.assert_close(torch.tensor(found), slerp(first, second, 0.3), rtol=0, atol=1e-5)


def test_a_runtime_of_another_hash_is_refused(browser, address):
    tab = browser.new_page()
    tab.route("**/*.wasm", lambda route: route.fulfill(body=b"something else"))
    tab.goto(address)
    tab.get_by_role("alert").get_by_text("The runtime could not be loaded").wait_for()
    assert tab.locator("#status").text_content() == "The page cannot run its model."
    assert tab.get_by_role("button", name="Denoise").is_disabled()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_fits_a_desk_and_a_hand(tab, width, scheme):
    tab.set_viewport_size({"width": width, "height": 800})
    tab.emulate_media(color_scheme=scheme)
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    paper = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (int(paper.split("(")[1].split(",")[0]) > 128) == (scheme == "light")


def test_every_control_has_a_name(tab):
    unnamed = tab.evaluate(
        """() => [...document.querySelectorAll('input, select, button, canvas')].filter(x =>
            !(x.labels?.length || x.textContent.trim() || x.getAttribute('aria-label')))
                .map(x => x.outerHTML)"""
    )
    assert unnamed == []
