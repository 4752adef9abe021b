"""The page of other models in headless Chromium: the served page with changed settings."""

import numpy as np
import pytest

from tests.hub.page.conftest import CLASSES, drawn_classes, needs_browser

pytestmark = needs_browser


def opened(browser, address, width: int = 1280, script: tuple[str, str] = ("", ""), **settings):
    """A tab of the page with other settings, and with text of its script replaced."""
    tab = browser.new_page(viewport={"width": width, "height": 800})

    def change_settings(route):
        route.fulfill(json=route.fetch().json() | settings)

    def change_script(route):
        text = route.fetch().text()
        assert script[0] in text
        route.fulfill(body=text.replace(*script, 1), content_type="text/javascript")

    tab.route("**/page.json", change_settings)
    tab.route("**/page.js", change_script)
    tab.goto(address)
    return tab


def wait_until_ready(tab) -> None:
    tab.locator("#status").get_by_text("Ready.").wait_for(timeout=60_000)


def test_many_classes_are_drawn_in_several_batches(browser, address):
    images = []
    for together in (16, 2):
        script = ("TOGETHER = 16", f"TOGETHER = {together}")
        tab = opened(browser, address, script=script)
        wait_until_ready(tab)
        images.append(drawn_classes(tab))
    assert len(images[0]) == len(CLASSES)
    np.testing.assert_allclose(*images, atol=1)


def test_a_model_without_classes_has_no_controls_of_classes(browser, address):
    tab = opened(browser, address, classes=None)
    tab.wait_for_function("document.title !== 'Latent diffusion'")
    for name in ("class", "guidance", "draw-classes"):
        assert not tab.locator(f"#{name}").is_visible()
    assert tab.locator("#seed").is_visible()


def test_a_distilled_model_has_no_control_of_guidance(browser, address):
    tab = opened(browser, address, distilled=True, guidance_scale=1)
    wait_until_ready(tab)
    assert not tab.locator("#guidance").is_visible()
    assert tab.locator("#class").is_visible()
    assert len(drawn_classes(tab)) == len(CLASSES)


def test_long_names_of_classes_fit_a_hand(browser, address):
    names = ["long name, " * 20, "x" * 90, "owl"]
    tab = opened(browser, address, 390, classes=names)
    wait_until_ready(tab)
    drawn_classes(tab)
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390


@pytest.mark.parametrize("scale", [0.5, 2.1, 7.5])
def test_the_guidance_is_the_models_own(browser, address, scale):
    tab = opened(browser, address, guidance_scale=scale)
    tab.locator("#guidance-shown").get_by_text(str(scale), exact=True).wait_for()
    assert tab.locator("#guidance").input_value() == str(scale)


def test_an_error_of_what_follows_is_shown(browser, address):
    tab = opened(browser, address, script=("const [level, ...weights]", "const [level, ...others]"))
    wait_until_ready(tab)
    tab.get_by_role("slider", name="Pixel noise").fill("0.3")
    tab.get_by_role("alert").get_by_text("weights").wait_for()
