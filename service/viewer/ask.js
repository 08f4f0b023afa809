// The form that asks: questions in words, where to look, and the few numbers one may want to set.

import { askSlide, getJson } from "./api.js";
import { $, announce, el, press } from "./dom.js";
import { toGeoJson } from "./drawing.js";
import { queryColor } from "./colors.js";
import { swatch } from "./dom.js";
import { area as shownArea } from "./format.js";

const NUMBERS = ["mpp", "threshold", "min_region_um2", "mpp_override"];
const MOST_QUESTIONS = 8;
const MODELS_MS = 5000;
const AREAS = {
  all: "Everything but clear glass.",
  rectangle: "Drag over the slide; Esc gives up.",
  polygon: "Click point by point; Enter or a double click closes, Backspace takes the last point back, Esc gives up.",
};

/** The form of the slide that is open. */
export class AskForm {
  /**
   * @param {{draw: (mode: string) => void, stopDrawing: () => void, viewed: () => number[],
   *   marked: (ring: number[]|null) => void,
   *   asked: (job: object) => void}} page what the form needs of the page around it
   */
  constructor(page) {
    this.page = page;
    this.slide = null;
    this.ring = null;
    $("ask").addEventListener("submit", (event) => {
      event.preventDefault();
      this.send();
    });
    $("add-question").addEventListener("click", () => this.addQuestion().focus());
    for (const name of ["all", "rectangle", "polygon", "view"]) {
      $(`area-${name}`).addEventListener("click", () => this.chooseArea(name));
    }
    this.addQuestion();
  }

  /** Ask about this slide from now on. */
  async open(slide) {
    this.slide = slide;
    this.setArea(null);
    this.complain(null);
    await this.showTargets();
  }

  /** What the model was taught. A worker that is still starting is not known yet: asked for again. */
  async showTargets() {
    const { models, default: name } = await getJson("/v1/models").catch(() => ({ models: [] }));
    clearTimeout(this.later);
    if (!models.length) this.later = setTimeout(() => this.showTargets(), MODELS_MS);
    const model = models.find((each) => each.names.includes(name));
    const chips = (model?.targets ?? []).map((target) =>
      el("button", { type: "button", class: "chip", text: target, onclick: () => this.suggest(target) }),
    );
    $("targets").replaceChildren(...chips);
    $("targets").hidden = !chips.length;
  }

  suggest(target) {
    const fields = [...this.fields];
    const field =
      fields.find((each) => !each.value.trim()) ??
      (fields.length < MOST_QUESTIONS ? this.addQuestion() : fields.at(-1));
    field.value = `Where is the ${target}?`;
    field.focus();
  }

  get fields() {
    return $("questions").querySelectorAll("textarea");
  }

  addQuestion() {
    const number = this.fields.length;
    const field = el("textarea", {
      rows: 2,
      maxlength: 1000,
      "aria-label": number ? `Question ${number + 1}` : "Question",
      placeholder: number ? "And …" : "Where is the tumour?",
      onkeydown: (event) => {
        if (event.key === "Enter" && !event.shiftKey) {
          event.preventDefault();
          this.send();
        }
      },
    });
    const row = el("div", { class: "question" }, swatch(queryColor(number)), field);
    if (number) {
      row.append(
        el("button", {
          type: "button",
          class: "quiet remove",
          text: "×",
          "aria-label": `Leave question ${number + 1} out`,
          onclick: () => this.removeQuestion(row),
        }),
      );
    }
    $("questions").append(row);
    $("add-question").hidden = this.fields.length >= MOST_QUESTIONS;
    return field;
  }

  removeQuestion(row) {
    const kept = [...this.fields].filter((field) => !row.contains(field)).map((field) => field.value);
    $("questions").replaceChildren();
    for (const text of kept) this.addQuestion().value = text;
    this.fields[this.fields.length - 1].focus();
  }

  chooseArea(name) {
    this.page.stopDrawing();
    if (name === "rectangle" || name === "polygon") {
      this.press(name);
      $("area-note").textContent = AREAS[name];
      this.page.draw(name);
    } else {
      this.setArea(name === "view" ? this.page.viewed() : null, name);
    }
  }

  press(name) {
    press($("area-all").parentElement.children, $(`area-${name}`));
  }

  /** Look only inside a ring; null: all tissue. */
  setArea(ring, name = null) {
    this.ring = ring;
    this.press(ring ? (name ?? this.drawn ?? "rectangle") : "all");
    $("area-note").textContent = ring ? this.describe(ring) : AREAS.all;
    this.page.marked(ring);
  }

  describe(ring) {
    const mpp = this.slide?.mpp_x;
    let twice = 0;
    for (let at = 0; at < ring.length; at += 2) {
      const next = (at + 2) % ring.length;
      twice += ring[at] * ring[next + 1] - ring[next] * ring[at + 1];
    }
    const um2 = (Math.abs(twice) / 2) * (mpp ?? 0) * (this.slide?.mpp_y ?? mpp ?? 0);
    return um2 ? `Only inside the dashed line, ${shownArea(um2)}.` : "Only inside the dashed line.";
  }

  complain(problem) {
    $("ask-problem").hidden = problem === null;
    $("ask-problem").textContent = problem?.shown ?? problem?.message ?? "";
    for (const field of $("ask").querySelectorAll("[aria-invalid]")) field.removeAttribute("aria-invalid");
    if (problem === null) return;
    const wrong = this.fieldOf(problem.field ?? "");
    wrong?.setAttribute("aria-invalid", "true");
    if (wrong?.closest("details")) wrong.closest("details").open = true;
    wrong?.focus();
  }

  fieldOf(name) {
    if (name.startsWith("quer")) {
      const index = Number(/\d+/.exec(name)?.[0] ?? 0);
      return this.fields[index] ?? this.fields[0];
    }
    return $("ask").querySelector(`[name="${CSS.escape(name)}"]`);
  }

  /** The body of `POST /v1/jobs`. */
  body() {
    const queries = [...this.fields].map((field) => field.value.trim()).filter(Boolean);
    const body = { slide: this.slide.slide_id, ...(queries.length === 1 ? { query: queries[0] } : { queries }) };
    if (this.ring) body.roi = toGeoJson(this.ring, this.slide);
    for (const name of NUMBERS) {
      const text = $("ask").querySelector(`[name="${name}"]`).value.trim().replace(",", ".");
      if (text) body[name] = Number.isFinite(Number(text)) ? Number(text) : text;
    }
    return body;
  }

  async send() {
    if ($("send").disabled) return;
    const body = this.body();
    if (!body.query && !body.queries.length) {
      this.complain({ field: "query", message: "Write a question first, for example “Where is the tumour?”" });
      return;
    }
    this.complain(null);
    $("send").disabled = true;
    try {
      const job = await askSlide(body);
      announce("Asked. Regions appear while tiles are looked at.");
      this.page.asked(job);
    } catch (problem) {
      this.complain(problem);
    } finally {
      $("send").disabled = false;
    }
  }
}
