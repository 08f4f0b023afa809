// The panel beside the slide: how the job stands, what it answers, how it is shown, its regions, and one of them.

import { dismiss } from "./api.js";
import { queryColor } from "./colors.js";
import { $, announce, el, swatch } from "./dom.js";
import { downloadsElement } from "./downloads.js";
import { area, count, counted, duration, percent } from "./format.js";
import { RegionList } from "./region_list.js";
import { detailElement, readRegion, tilesOf } from "./region_detail.js";
import { isOpen } from "./watch.js";

const WORDS = { accepted: "Waiting", running: "Looking", successful: "Done", failed: "Failed", dismissed: "Dismissed" };
const ORDERS = [
  ["area", "largest first"],
  ["confidence", "surest first"],
  ["agreement", "tiles agree most"],
];

/** The panel of one job. */
export class Results {
  /**
   * @param {object} status the job's document @param {RegionStore} store
   * @param {object} settings of `Panes.showJob`
   * @param {{choose: Function, chosen: Function, changed: (what: string) => void, show: (box: number[]) => void}} page
   */
  constructor(status, store, settings, page) {
    Object.assign(this, { job: status.jobID, queries: status.queries, store, settings, page });
    this.report = null;
    this.bar = el("progress", { max: 100, "aria-label": "Tiles looked at" });
    this.state = el("h2", { class: "state" });
    this.facts = el("p", { class: "soft small" });
    this.gaps = el("p", { class: "gaps", role: "note", hidden: true });
    this.stop = el("button", { type: "button", class: "quiet small", text: "Stop", onclick: () => this.dismiss() });
    this.answers = el("ol", { class: "answers" });
    this.tally = el("p", { class: "tally" });
    this.listElement = el("div", { class: "list", role: "listbox", tabindex: "0", "aria-label": "Regions" });
    this.all = el("section", { class: "all" }, this.listHead(), this.listElement);
    this.one = el("div", { class: "one", hidden: true });
    this.foot = el("div", { class: "foot" });
    delete $("result").dataset.region;
    $("result").replaceChildren(
      el(
        "div",
        { class: "job-head" },
        el("div", { class: "row" }, this.state, this.stop),
        this.bar,
        this.facts,
        this.gaps,
      ),
      this.answers,
      this.controls(),
      this.all,
      this.one,
      this.foot,
    );
    this.list = new RegionList(this.listElement, (id) => page.choose(id));
    this.showAnswers();
    this.status(status);
  }

  listHead() {
    const order = el("select", { "aria-label": "Order of regions", onchange: () => this.list.sort(order.value) });
    order.append(...ORDERS.map(([value, text]) => el("option", { value, text })));
    return el("div", { class: "row list-head" }, this.tally, order);
  }

  controls() {
    const { settings, page } = this;
    const slider = (name, given, shown, changed) => {
      const output = el("output", { text: shown(given.value) });
      const input = el("input", { type: "range", ...given, "aria-label": name });
      input.addEventListener("input", () => {
        output.textContent = shown(Number(input.value));
        changed(Number(input.value));
      });
      return el("label", { class: "slider" }, el("span", { text: name }), input, output);
    };
    let waiting = 0;
    const later = (act) => {
      clearTimeout(waiting);
      waiting = setTimeout(act, 200);
    };
    this.uncovered = el("input", { type: "checkbox", onchange: () => page.changed("uncovered") });
    return el(
      "div",
      { class: "controls" },
      slider("Opacity", { min: 0, max: 1, step: 0.05, value: settings.opacity }, percent, (value) => {
        settings.opacity = value;
        page.changed("opacity");
      }),
      slider(
        "Threshold",
        { min: 0, max: 0.95, step: 0.05, value: 0 },
        (value) => (Number(value) ? Number(value).toFixed(2) : "regions"),
        (value) => {
          settings.threshold = value || null;
          later(() => page.changed("threshold"));
        },
      ),
      el(
        "details",
        {},
        el("summary", { text: "More" }),
        slider(
          "Least confidence",
          { min: 0, max: 0.95, step: 0.05, value: 0 },
          (value) => Number(value).toFixed(2),
          (value) => {
            this.least = value;
            later(() => this.store.filter(value));
          },
        ),
        el("label", { class: "check" }, this.uncovered, "Veil what was not looked at"),
        this.queries.length > 1
          ? el(
              "label",
              { class: "check" },
              (this.beside = el("input", { type: "checkbox", onchange: () => page.changed("beside") })),
              "Questions side by side",
            )
          : null,
      ),
    );
  }

  /** The job as it stands now. */
  status(document) {
    const { tiles } = document;
    const open = (this.running = isOpen(document));
    this.state.textContent = WORDS[document.status];
    this.state.dataset.status = document.status;
    this.stop.hidden = !open;
    this.bar.hidden = !open;
    if (document.status === "accepted") this.bar.removeAttribute("value");
    else this.bar.value = document.progress;
    const left = open && document.eta_s ? ` · about ${duration(document.eta_s)} left` : "";
    const wait =
      document.status === "accepted" && document.queue_position
        ? ` · ${counted(document.queue_position, "job")} before it`
        : "";
    this.facts.textContent = tiles.total
      ? `${count(tiles.done)} of ${counted(tiles.total, "tile")} looked at · ${count(tiles.skipped)} left out${left}`
      : `${document.message}${wait}`;
    if (document.status === "failed") this.facts.textContent = document.error?.detail ?? document.message;
    this.gaps.hidden = !tiles.failed;
    if (tiles.failed) {
      const lost = `${counted(tiles.failed, "tile")} failed`;
      this.gaps.textContent = `${lost}; nothing is known of what lies in the hatched squares.`;
    }
    this.regionsChanged();
  }

  async dismiss() {
    this.stop.disabled = true;
    await dismiss(this.job).catch((problem) => announce(problem.shown));
  }

  /** The finished job's report. */
  async finished(report) {
    this.report = report;
    this.showAnswers();
    const { coverage } = report;
    const whys = coverage.failed_reasons.map(({ reason, tiles }) => `${counted(tiles, "tile")}: ${reason}`);
    const seen = coverage.slide_um2 ? ` · ${area(coverage.looked_at_um2)} of ${area(coverage.slide_um2)} seen` : "";
    this.facts.textContent =
      `${count(coverage.looked_at)} of ${counted(coverage.tiles, "tile")} looked at ` +
      `(${percent(coverage.coverage)}) · ` +
      `${count(coverage.skipped)} left out as glass or outside the area${seen}`;
    if (whys.length) this.gaps.append(el("br"), whys.join("; "));
    this.foot.replaceChildren(
      await downloadsElement(this.job),
      el("p", {
        class: "soft small",
        text: `Model ${report.model.name}, revision ${report.model.revision}. ${report.use}`,
      }),
    );
  }

  showAnswers() {
    const rows = this.queries.map((query, index) => {
      const said = this.report?.queries[index];
      const shown = el("input", {
        type: "checkbox",
        checked: !this.settings.hidden.has(index),
        "aria-label": `Show ${query}`,
      });
      shown.addEventListener("change", () => {
        if (shown.checked) this.settings.hidden.delete(index);
        else this.settings.hidden.add(index);
        this.page.changed("queries");
        this.regionsChanged();
      });
      return el(
        "li",
        {},
        el("label", { class: "query" }, shown, swatch(queryColor(index)), el("span", { text: query })),
        said ? el("p", { class: "answer", text: said.answer }) : null,
      );
    });
    this.answers.replaceChildren(...rows);
  }

  /** There are more regions, or others are shown. */
  regionsChanged() {
    const { store, settings } = this;
    const shown = [...store.facts.values()].filter(
      (region) => !settings.hidden.has(region.query) && region.confidence >= (this.least ?? 0),
    );
    this.list.set(shown);
    const more = store.facts.size > shown.length ? ` of ${count(store.facts.size)}` : "";
    const coming = store.provisional ? " so far" : store.complete || !shown.length ? "" : " …";
    this.tally.textContent = store.problem
      ? `Regions cannot be read: ${store.problem}`
      : `${counted(shown.length, "region")}${more}${coming}`;
    if (!store.facts.size && this.running) this.tally.textContent = "Regions are named when all tiles are in";
    this.listElement.hidden = !shown.length;
  }

  /** Show one region, or, with null, the list. */
  async select(id) {
    this.list.select(id);
    this.wanted = id;
    if (id === null || this.report === null) {
      const piece = id && this.store.facts.get(id);
      this.one.hidden = !piece?.chain;
      this.one.replaceChildren(
        el("p", { class: "conclusion", text: piece?.chain ?? "" }),
        el("p", { class: "soft small", text: "So far; pieces of neighbouring blocks become one region in the end." }),
      );
      delete $("result").dataset.region;
      return null;
    }
    let region;
    try {
      region = await readRegion(this.job, id);
    } catch (problem) {
      announce(problem.shown);
      return null;
    }
    if (this.wanted !== id) return null;
    const tiles = tilesOf(region, this.report);
    this.one.replaceChildren(
      detailElement(region, tiles, {
        close: () => this.page.choose(null),
        show: this.page.show,
        step: (by) => this.step(by),
      }),
    );
    const listHadFocus =
      this.listElement.contains(document.activeElement) || this.listElement === document.activeElement;
    this.one.hidden = false;
    $("result").dataset.region = id;
    this.list.reveal();
    if (!listHadFocus) announce(`${region.feature.properties.name}. ${region.conclusion}`);
    return { region, tiles };
  }

  /** Choose the next region of the list, or the one before. */
  step(by) {
    const id = this.list.step(by);
    if (id) this.page.choose(id);
  }
}
