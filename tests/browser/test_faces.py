"""The viewer for everyone: without a pointer, in the dark, on a phone, and what it says when things go wrong."""

import json
import re
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.browser.chromium import PATIENCE_MS, Sight
from tests.browser.conftest import QUESTION, Bench
from worker.errors import TileFailed

expect.set_options(timeout=PATIENCE_MS)

AXE = Path(__file__).parent / "vendor" / "axe-core" / "axe.min.js"
PHONE = {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2, "has_touch": True}
PURE = "async ([module, code]) => new Function('it', `return ${code}`)(await import(`/viewer/${module}`))"


def faults(page: Page) -> list[str]:
    """What axe-core finds, from `moderate` on: the rule and where."""
    page.evaluate(AXE.read_text(encoding="utf-8"))
    found = page.evaluate("() => axe.run(document, {resultTypes: ['violations']})")
    wanted = ("moderate", "serious", "critical")
    return [
        f"{fault['id']} ({fault['impact']}): {fault['nodes'][0]['html'][:160]}"
        for fault in found["violations"]
        if fault["impact"] in wanted
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("phone", [False, True])
def test_axe_finds_no_fault(look, finished: str, scheme: str, phone: bool) -> None:
    seen = look(color_scheme=scheme, **(PHONE if phone else {}))
    page = seen.page
    seen.go("/")
    expect(page.get_by_role("link", name="tissue.tif")).to_be_visible()
    assert faults(page) == []
    seen.go(f"/#job={finished}")
    expect(page.locator(".tally")).to_contain_text("region")
    seen.shot(f"slide-{scheme}{'-phone' if phone else ''}")
    assert faults(page) == []
    if phone:
        page.get_by_role("button", name="Ask", exact=True).click()
        assert faults(page) == []
        page.get_by_role("button", name="Answer").click()
    page.get_by_text("Downloads").click()
    page.locator(".controls summary").click()
    assert faults(page) == []
    page.locator(".region").first.click()
    expect(page.locator(".conclusion")).to_be_visible()
    seen.shot(f"region-{scheme}{'-phone' if phone else ''}")
    assert faults(page) == []
    if not phone:
        page.get_by_role("button", name="Keys").click()
        assert faults(page) == []


def test_a_phone_shows_one_panel_at_a_time_and_nothing_beside_the_screen(look, finished: str) -> None:
    seen = look(**PHONE)
    page = seen.page
    seen.go(f"/#job={finished}")
    expect(page.locator("#ask-panel")).to_be_hidden()
    page.get_by_role("button", name="Ask", exact=True).click()
    expect(page.locator("#ask-panel")).to_be_visible()
    expect(page.locator("#result-panel")).to_be_hidden()
    page.get_by_role("button", name="Answer").click()
    expect(page.locator("#result-panel")).to_be_visible()
    expect(page.locator("#view")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_the_slide_is_moved_by_keys_and_the_scale_bar_follows(look, finished: str) -> None:
    seen = look()
    page = seen.page
    seen.go(f"/#job={finished}")
    expect(page.locator("#scale-text")).to_have_text(re.compile("µm|mm"))
    before = page.locator("#magnification").inner_text()
    for _ in range(3):
        page.keyboard.press("+")
    expect(page.locator("#magnification")).not_to_have_text(before)
    line, text = page.evaluate(
        "[document.getElementById('scale-line').getBoundingClientRect().width, "
        "document.getElementById('scale-text').textContent]"
    )
    page.keyboard.press("0")
    expect(page.locator("#magnification")).to_have_text(before)
    assert line > 20 and re.fullmatch(r"[125]0*(\.\d)? (µm|mm)", text), (line, text)


def test_dark_and_light_by_the_system_or_by_hand(look) -> None:
    colour = "getComputedStyle(document.body).backgroundColor"
    seen = look(color_scheme="dark")
    seen.go("/")
    dark = seen.page.evaluate(colour)
    seen.page.get_by_role("button", name="light and dark").click()
    light = seen.page.evaluate(colour)
    assert dark != light
    seen.go("/")
    assert seen.page.evaluate(colour) == light, "kept for the next visit"


# Asking


def test_what_is_refused_is_said_at_its_field(look) -> None:
    seen = look()
    page = seen.page
    seen.go("/")
    page.get_by_role("link", name="tissue.tif").click()
    page.get_by_role("button", name="Ask the slide").click()
    expect(page.get_by_role("alert")).to_contain_text("Write a question first")
    question = page.get_by_role("textbox", name="Question")
    expect(question).to_be_focused()
    question.fill("Where?")
    page.get_by_text("More settings").click()
    page.get_by_label("Resolution").fill("1000")
    page.get_by_role("button", name="Ask the slide").click()
    expect(page.get_by_role("alert")).to_contain_text("mpp")
    expect(page.get_by_label("Resolution")).to_have_attribute("aria-invalid", "true")
    assert [status for status, _ in seen.refused] == [422]


def asked(seen: Sight) -> dict:
    """Press the button; the body that is sent. The job is dismissed, so that no worker has to do it."""
    with seen.page.expect_response(lambda answer: answer.url.endswith("/v1/jobs") and answer.status == 202) as answer:
        seen.page.get_by_role("button", name="Ask the slide").click()
    seen.page.get_by_role("button", name="Stop").click()
    expect(seen.page.locator(".state")).to_have_text("Dismissed")
    return json.loads(answer.value.request.post_data)


def test_a_rectangle_and_a_polygon_become_the_area(look) -> None:
    seen = look()
    page = seen.page
    seen.go("/")
    page.get_by_role("link", name="tissue.tif").click()
    page.get_by_role("textbox", name="Question").fill(QUESTION)
    expect(page.locator("#scale-text")).to_have_text(re.compile("µm|mm"))
    box = page.locator(".pane").bounding_box()
    left, top = box["x"] + box["width"] / 2 - 60, box["y"] + box["height"] / 2 - 50

    page.get_by_role("button", name="Rectangle").click()
    page.mouse.move(left, top)
    page.mouse.down()
    page.mouse.move(left + 120, top + 80, steps=4)
    page.mouse.up()
    expect(page.locator("#area-note")).to_contain_text("Only inside")
    ring = asked(seen)["roi"]["coordinates"][0]
    assert len(ring) == 5 and ring[0] == ring[-1]
    (x0, y0), (x1, y1) = ring[0], ring[2]
    assert (x1 - x0) / (y1 - y0) == pytest.approx(120 / 80, rel=0.02)

    page.get_by_role("button", name="Polygon").click()
    for x, y in ((0, 0), (100, 10), (120, 90), (30, 110)):
        page.mouse.click(left + x, top + y)
    page.keyboard.press("Enter")
    expect(page.locator("#area-polygon")).to_have_attribute("aria-pressed", "true")
    assert len(asked(seen)["roi"]["coordinates"][0]) == 5

    page.get_by_role("button", name="In view").click()
    page.get_by_role("button", name="All tissue").click()
    assert "roi" not in asked(seen)


def test_several_questions_go_into_one_job(look) -> None:
    seen = look()
    page = seen.page
    seen.go("/")
    page.get_by_role("link", name="tissue.tif").click()
    page.get_by_role("button", name="nuclei", exact=True).click()
    page.get_by_role("button", name="Another question").click()
    page.get_by_role("textbox", name="Question 2").fill("Is there a gland?")
    assert asked(seen)["queries"] == ["Where is the nuclei?", "Is there a gland?"]


# What was not looked at


def test_what_failed_and_what_was_left_out_is_seen(look, bench: Bench) -> None:
    job = bench.post(mpp=0.5, min_coverage=0)
    assert bench.step(), "the plan"
    ledger = bench.live.rooms.ledger
    from tests.segmenters import hue_segmenter

    ledger.fail(ledger.claim("tests", ["hue"], hue_segmenter().card), TileFailed("made to fail"), True, final=True)
    bench.run()
    seen = look()
    page = seen.page
    seen.go(f"/#job={job}")
    expect(page.get_by_role("note").filter(has_text="failed")).to_contain_text("nothing is known")
    expect(page.locator("#legend")).to_contain_text("failed")
    seen.wait("document.querySelector('.marks') && !document.querySelector('.marks').hidden")
    page.keyboard.press("c")
    expect(page.locator("#legend")).to_contain_text("left out")
    seen.shot("failed")


def test_an_address_that_leads_nowhere_leads_to_the_slides(look) -> None:
    seen = look()
    seen.go(f"/#job={'0' * 32}")
    expect(seen.page.locator("#library-note")).to_contain_text("no job")
    expect(seen.page.get_by_role("link", name="tissue.tif")).to_be_visible()


# The pure parts


@pytest.mark.parametrize(
    ("module", "code", "expected"),
    [
        ("geometry.js", "it.inside([[0,0,10,0,10,10,0,10,0,0],[4,4,6,4,6,6,4,6,4,4]], 2, 2)", True),
        ("geometry.js", "it.inside([[0,0,10,0,10,10,0,10,0,0],[4,4,6,4,6,6,4,6,4,4]], 5, 5)", False),
        ("geometry.js", "it.thinned([0,0,1,0,2,0,10,0,10,10,0,10,0,0], 3)", [0, 0, 10, 0, 10, 10, 0, 10]),
        ("geometry.js", "it.boxOf([[3,4,9,1,5,8]])", [3, 1, 9, 8]),
        ("geometry.js", "[0.01, 1, 3.9, 4].map(it.octaveOf)", [-3, 0, 1, 2]),
        ("scale_bar.js", "[0.25, 0.5, 1, 7].map((mpp) => it.roundLength(mpp))", [20, 50, 100, 1000]),
        ("format.js", "[0, 0.001, 0.5, 0.999, 1].map(it.percent)", ["0 %", "< 1 %", "50 %", "> 99 %", "100 %"]),
        ("format.js", "[512, 12345].map(it.area)", ["512 µm²", "0.0123 mm²"]),
        ("format.js", "[0.25, 0.5, 8].map(it.magnification)", ["40×", "20×", "1.3×"]),
        ("chain.js", "it.parts('<think>A. B.</think> It <SEG>.')", {"thought": "A. B.", "conclusion": "It <SEG>."}),
        ("drawing.js", "it.toGeoJson([-5,0,50,0,50,20], {width_px0: 40, height_px0: 30}).coordinates",
         [[[0, 0], [40, 0], [40, 20], [0, 0]]]),
    ],
)  # fmt: skip
def test_pure_functions(look, module: str, code: str, expected: object) -> None:
    seen = look(bypass_csp=True)
    seen.go("/")
    assert seen.page.evaluate(PURE, [module, code]) == expected
