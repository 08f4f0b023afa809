// The slides there are, each with its picture.

import { getJson } from "./api.js";
import { $, el } from "./dom.js";
import { bytes, count, slideName } from "./format.js";

const PAGE = 48;

/** The list of slides. */
export class Library {
  /** @param {(slideId: string) => void} open what a click does */
  constructor(open) {
    this.open = open;
    this.cursor = null;
    $("more-slides").addEventListener("click", () => this.more());
  }

  /** Show the first page. */
  async show() {
    if ($("slides").childElementCount) return;
    await this.more();
  }

  /** Show another page. */
  async more() {
    const after = this.cursor ? `&cursor=${encodeURIComponent(this.cursor)}` : "";
    try {
      const page = await getJson(`/v1/slides?limit=${PAGE}${after}`);
      this.cursor = page.next_cursor;
      $("slides").append(...page.slides.map((slide) => this.card(slide)));
    } catch (problem) {
      $("library-note").textContent = problem.shown || problem.message;
      return;
    }
    $("more-slides").hidden = !this.cursor;
    if (!$("slides").childElementCount) {
      $("library-note").textContent =
        "There is no slide yet. Start the service with --slides FOLDER, or upload one over POST /v1/slides.";
    }
  }

  card(slide) {
    const size = slide.width_px0 ? `${count(slide.width_px0)} × ${count(slide.height_px0)} px · ` : "";
    const picture = el("img", { alt: "", loading: "lazy", decoding: "async", width: 320, height: 240 });
    const frame = el("span", { class: "picture" }, picture);
    picture.addEventListener("error", () => {
      const coming = slide.fetch && slide.fetch.state === "fetching";
      frame.replaceChildren(el("span", { class: "soft small", text: coming ? "being fetched" : "cannot be read" }));
      frame.classList.add("unreadable");
    });
    picture.src = `/v1/slides/${slide.slide_id}/thumbnail.jpeg?size=480`;
    return el(
      "li",
      {},
      el(
        "a",
        { href: `#slide=${slide.slide_id}`, class: "card", onclick: (event) => this.clicked(event, slide) },
        frame,
        el("span", { class: "name", text: slideName(slide) }),
        el("span", { class: "soft small", text: `${size}${slide.format.toUpperCase()} · ${bytes(slide.size_bytes)}` }),
      ),
    );
  }

  clicked(event, slide) {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    this.open(slide.slide_id);
  }
}
