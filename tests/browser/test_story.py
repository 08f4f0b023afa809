"""From a question to its chain, as a person does it: in a real browser, on a real gateway, with the job under way."""

import re

from playwright.sync_api import expect

from tests.browser.chromium import PATIENCE_MS, Sight
from tests.browser.conftest import QUESTION, Bench

expect.set_options(timeout=PATIENCE_MS)

DRAWN = "document.querySelector('.outlines') && !document.querySelector('.outlines').hidden"
GREEN_SHARE = """
() => {
  const canvas = document.querySelector(".pane .openseadragon-canvas canvas:not(.floating)");
  if (!canvas?.width) return 0;
  const { width, height } = canvas;
  const pixels = canvas.getContext("2d").getImageData(0, 0, width, height).data;
  let green = 0;
  for (let at = 0; at < pixels.length; at += 4) {
    if (pixels[at + 1] > pixels[at] + 10) green += 1;
  }
  return green / (width * height);
}
"""
SHOWN, GONE = f"({GREEN_SHARE.strip()})() > 0.001", f"({GREEN_SHARE.strip()})() < 0.0001"


def open_slide(seen: Sight) -> None:
    """From the list of slides to the slide."""
    seen.go("/")
    seen.page.get_by_role("link", name="tissue.tif").click()
    expect(seen.page.locator("#magnification")).to_contain_text("×")


def share(seen: Sight) -> float:
    """Of the picture on screen that an overlay covers: no haematoxylin and eosin has more green than red."""
    return seen.page.evaluate(GREEN_SHARE)


def test_from_the_question_to_the_chain(look, bench: Bench) -> None:
    bench.run()  # what other tests may have left
    seen = look()
    page = seen.page
    open_slide(seen)
    page.get_by_role("textbox", name="Question").fill(QUESTION)
    page.get_by_text("More settings").click()
    page.get_by_label("Resolution").fill("0.5")
    page.get_by_role("button", name="Ask the slide").click()
    expect(page.locator(".state")).to_have_text("Waiting")
    assert share(seen) < 0.0001

    assert bench.step(), "the plan"
    assert bench.step(), "the first block"
    expect(page.locator(".state")).to_have_text("Looking")
    expect(page.get_by_text(re.compile(r"[1-9]\d* of \d+ tiles looked at"))).to_be_visible()
    seen.wait(SHOWN)
    expect(page.locator(".tally")).to_contain_text("so far")
    expect(page.locator(".state")).to_have_text("Looking")  # the overlay was there while the job ran
    seen.shot("running")
    early = share(seen)

    bench.run()
    expect(page.locator(".state")).to_have_text("Done")
    expect(page.locator(".answer")).to_contain_text("Found")
    seen.wait(f"({GREEN_SHARE.strip()})() >= {early}")
    rows = page.locator(".region")
    expect(rows.first).to_contain_text("m²")
    seen.wait(DRAWN)

    rows.first.click()
    expect(page.locator(".conclusion")).to_contain_text("dark and purple")
    expect(page.locator(".measures")).to_contain_text("Confidence")
    expect(page.locator(".tiles")).to_contain_text("wrote the chain")
    assert re.search(r"#job=[0-9a-f]{32}&region=[0-9a-f-]{36}", page.url)
    seen.shot("region")


def test_a_deep_link_shows_the_region(look, bench: Bench, finished: str) -> None:
    region = bench.live.client.get(f"/v1/jobs/{finished}/regions?limit=1").json()["features"][0]
    seen = look()
    seen.go(f"/#job={finished}&region={region['id']}")
    expect(seen.page.locator("#detail-title")).to_have_text(region["properties"]["name"])
    seen.wait("location.hash.includes('&at=')")
    x, y, step = map(float, re.search(r"at=(.*)", seen.page.url)[1].split(","))
    box = seen.page.locator(".pane").bounding_box()
    centre = [region["properties"]["measurements"][f"Centroid {axis} px"] for axis in "XY"]
    assert x < centre[0] < x + box["width"] * step and y < centre[1] < y + box["height"] * step


def test_a_click_on_the_slide_chooses_the_region_there(look, bench: Bench, finished: str) -> None:
    features = bench.live.client.get(f"/v1/jobs/{finished}/regions").json()["features"]
    small = min(features, key=lambda feature: feature["properties"]["measurements"]["Area µm^2"])
    seen = look()
    seen.go(f"/#job={finished}")
    seen.wait(DRAWN)
    seen.wait("location.hash.includes('&at=')")
    x, y, step = map(float, re.search(r"at=([^&]*)", seen.page.url)[1].split(","))
    centre = [small["properties"]["measurements"][f"Centroid {axis} px"] for axis in "XY"]
    box = seen.page.locator(".pane").bounding_box()
    seen.page.mouse.click(box["x"] + (centre[0] - x) / step, box["y"] + (centre[1] - y) / step)
    expect(seen.page.locator("#detail-title")).to_have_text(small["properties"]["name"])
    chosen = seen.page.locator(".region[aria-selected=true]")
    expect(chosen).to_contain_text(small["properties"]["name"])


def test_the_list_is_walked_by_keys_and_sorted(look, finished: str) -> None:
    seen = look()
    page = seen.page
    seen.go(f"/#job={finished}")
    chosen = page.locator(".region[aria-selected=true]")
    expect(page.locator(".region").first).to_be_visible()
    page.get_by_role("listbox", name="Regions").focus()
    page.keyboard.press("ArrowDown")
    expect(chosen).to_have_attribute("aria-posinset", "1")
    page.keyboard.press("End")
    last = page.locator(".region").first.get_attribute("aria-setsize")
    expect(chosen).to_have_attribute("aria-posinset", last)
    expect(page.get_by_role("listbox")).to_have_attribute("aria-activedescendant", chosen.get_attribute("id"))
    page.keyboard.press("p")
    expect(chosen).to_have_attribute("aria-posinset", str(int(last) - 1))
    page.get_by_role("combobox", name="Order of regions").select_option("confidence")
    page.get_by_role("listbox").evaluate("list => (list.scrollTop = 0)")
    sure = [float(text.split()[-1]) for text in page.locator(".region .sure").all_inner_texts()]
    assert sure == sorted(sure, reverse=True)
    page.keyboard.press("Escape")
    expect(page.locator(".detail")).to_be_hidden()


def test_opacity_threshold_and_queries_change_the_overlay(look, finished: str) -> None:
    seen = look()
    page = seen.page
    seen.go(f"/#job={finished}")
    page.get_by_role("checkbox", name="Show Is there a gland?").uncheck()
    seen.wait(SHOWN)
    page.get_by_role("slider", name="Opacity").fill("0")
    seen.wait(GONE)
    page.get_by_role("slider", name="Opacity").fill("0.6")
    seen.wait(SHOWN)
    with page.expect_response(lambda answer: "threshold=0.9" in answer.url and answer.status == 200):
        page.get_by_role("slider", name="Threshold").fill("0.9")
    seen.wait(SHOWN)
    page.get_by_role("checkbox", name=f"Show {QUESTION}").uncheck()
    seen.wait(GONE)
    expect(page.locator(".tally")).to_contain_text("0 regions of")


def test_least_confidence_leaves_regions_out(look, bench: Bench, finished: str) -> None:
    features = bench.live.client.get(f"/v1/jobs/{finished}/regions").json()["features"]
    least = 0.95
    sure = [f for f in features if f["properties"]["measurements"]["Confidence"] >= least]
    seen = look()
    seen.go(f"/#job={finished}")
    expect(seen.page.locator(".tally")).to_contain_text(f"{len(features)} regions")
    seen.page.locator(".controls summary").click()
    seen.page.get_by_role("slider", name="Least confidence").fill(str(least))
    expect(seen.page.locator(".tally")).to_have_text(re.compile(rf"^{len(sure)} regions? of {len(features)}$"))


def test_questions_side_by_side_move_together(look, finished: str) -> None:
    seen = look()
    page = seen.page
    seen.go(f"/#job={finished}")
    expect(page.locator(".tally")).to_contain_text("region")
    page.keyboard.press("s")
    expect(page.locator(".pane")).to_have_count(2)
    expect(page.locator(".pane-title").nth(1)).to_have_text("Is there a gland?")
    seen.shot("side-by-side")
    bounds = (
        "pane => pane.querySelector('.marks, .outlines') && getComputedStyle(pane.querySelector('.outlines')).transform"
    )
    before = [pane.evaluate(bounds) for pane in page.locator(".pane").all()]
    first = page.locator(".pane").first.bounding_box()
    page.mouse.move(first["x"] + 200, first["y"] + 300)
    page.mouse.down()
    page.mouse.move(first["x"] + 260, first["y"] + 340, steps=5)
    page.mouse.up()
    seen.wait(
        "before => [...document.querySelectorAll('.pane')].every((pane, at) => "
        "getComputedStyle(pane.querySelector('.outlines')).transform !== before[at])",
        before,
    )
    page.keyboard.press("s")
    expect(page.locator(".pane")).to_have_count(1)


def test_an_export_is_made_and_handed_over(look, bench: Bench, finished: str) -> None:
    seen = look()
    page = seen.page
    seen.go(f"/#job={finished}")
    page.get_by_text("Downloads").click()
    with page.expect_response(lambda answer: answer.url.endswith("/exports/csv") and answer.status == 202):
        page.get_by_role("button", name="Measurements").click()
    expect(page.locator(".downloads")).to_contain_text("being made")
    with page.expect_download(timeout=PATIENCE_MS) as download:
        bench.run()
    assert download.value.path().read_text().count("\n") > 2
