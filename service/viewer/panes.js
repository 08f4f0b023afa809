// The panes that show the slide: one with every question, or one for each question side by side, moving together.

import { el, swatch } from "./dom.js";
import { queryColor } from "./colors.js";
import { Marks } from "./marks.js";
import { OutlineLayer } from "./outlines.js";
import { Overlay } from "./overlay.js";
import { Stage } from "./stage.js";

const MOST_PANES = 4;

/** A stage with everything that lies on it. */
class Pane {
  constructor(frame, slide, store) {
    this.frame = frame;
    this.store = store;
    this.stage = new Stage(frame, slide);
    this.outlines = null;
    this.overlay = null;
    this.marks = new Marks(this.stage);
  }

  /** Show a job's results, or those of some of its queries. */
  showJob(job, queries, shown, settings) {
    this.clearJob();
    this.queries = queries;
    this.overlay = new Overlay(this.stage, job, queries);
    this.overlay.opacity = settings.on ? settings.opacity : 0;
    this.overlay.threshold = settings.threshold;
    this.outlines = new OutlineLayer(this.stage, this.store, shown);
    this.stage.viewer.canvas.append(this.marks.canvas); // the chosen region above the outlines
  }

  clearJob() {
    this.overlay?.close();
    this.outlines?.close();
    this.overlay = this.outlines = null;
  }

  close() {
    this.clearJob();
    this.marks.close();
    this.stage.close();
    this.frame.remove();
  }
}

/** All panes of the slide that is open. */
export class Panes {
  /**
   * @param {HTMLElement} element @param {RegionStore} store
   * @param {{moved: (stage: Stage) => void, clicked: (x: number, y: number, queries: number[]) => void}} page
   */
  constructor(element, store, page) {
    this.element = element;
    this.store = store;
    this.page = page;
    this.panes = [];
    this.job = null;
    this.sideBySide = false;
    this.leading = null;
    store.onChange(() => this.panes.forEach((pane) => pane.outlines?.repaint()));
  }

  /** The pane that speaks for all: where the view is read. */
  get first() {
    return this.panes[0];
  }

  /** Show a slide, nothing on it. */
  async open(slide) {
    this.slide = slide;
    this.job = null;
    this.sideBySide = false;
    await this.build(1, null);
  }

  /** Leave the slide. */
  close() {
    this.panes.forEach((pane) => pane.close());
    this.panes = [];
    this.job = null;
  }

  async build(number, view) {
    this.panes.forEach((pane) => pane.close());
    this.element.replaceChildren();
    this.element.dataset.panes = String(number);
    const frames = Array.from({ length: number }, () => el("div", { class: "pane" }));
    this.element.append(...frames);
    this.panes = frames.map((frame) => new Pane(frame, this.slide, this.store));
    await Promise.all(this.panes.map((pane) => pane.stage.ready));
    for (const pane of this.panes) {
      if (view) pane.stage.centre(view, true);
      pane.stage.onView((stage) => this.moved(pane, stage));
      pane.stage.viewer.addHandler("canvas-click", (event) => this.clicked(pane, event));
      for (const name of ["canvas-press", "canvas-scroll", "canvas-drag"]) {
        pane.stage.viewer.addHandler(name, () => (this.leading = pane));
      }
    }
    this.leading = this.first;
    this.page.moved(this.first.stage);
  }

  /** The pane that a hand is on leads; the others follow. */
  moved(pane, stage) {
    if (pane !== (this.leading ?? this.first)) return;
    const bounds = stage.viewer.viewport.getBounds(true);
    for (const other of this.panes) {
      if (other !== pane) other.stage.viewer.viewport.fitBounds(bounds, true);
    }
    this.page.moved(stage);
  }

  clicked(pane, event) {
    if (!event.quick) return;
    const [x, y] = pane.stage.toSlide(event.position.x, event.position.y);
    this.page.clicked(x, y, pane.outlines?.queries ?? []);
  }

  /**
   * Show a job.
   * @param {string} job @param {string[]} queries its questions
   * @param {{opacity: number, threshold: number|null, on: boolean, hidden: Set<number>}} settings
   */
  showJob(job, queries, settings) {
    this.job = job;
    this.queries = queries;
    this.settings = settings;
    this.fill();
  }

  fill() {
    const all = this.queries.map((_, index) => index);
    this.panes.forEach((pane, at) => {
      const mine = this.sideBySide ? [at] : all;
      pane.showJob(
        this.job,
        mine,
        mine.filter((query) => this.sideBySide || !this.settings.hidden.has(query)),
        this.settings,
      );
      if (this.sideBySide)
        pane.frame.append(el("p", { class: "pane-title" }, swatch(queryColor(at)), this.queries[at]));
    });
    this.showQueries();
  }

  /** Show nothing but the slide. */
  async clearJob() {
    this.job = null;
    if (this.sideBySide) await this.compare(false);
    this.panes.forEach((pane) => {
      pane.clearJob();
      pane.marks.mark({ region: null, tiles: [], coverage: null });
    });
  }

  /** One pane for each question, or one for all. */
  async compare(sideBySide) {
    const { stage, marks } = this.first;
    const kept = {
      region: marks.region,
      tiles: marks.tiles,
      areas: marks.areas,
      coverage: marks.coverage,
      uncovered: marks.uncovered,
    };
    this.sideBySide = sideBySide && this.job !== null && this.queries.length > 1;
    await this.build(this.sideBySide ? Math.min(MOST_PANES, this.queries.length) : 1, stage.middle);
    this.mark(kept);
    if (this.job === null) return;
    this.fill();
    this.refresh(true);
  }

  /** Ask for the overlay's tiles again. */
  refresh(now = false) {
    this.panes.forEach((pane) => pane.overlay?.refresh(now));
  }

  /** Change what is marked, on every pane. */
  mark(given) {
    this.panes.forEach((pane) => pane.marks.mark(given));
  }

  /** Opacity as the settings say. */
  showOpacity() {
    this.panes.forEach((pane) => pane.overlay?.setOpacity(this.settings.on ? this.settings.opacity : 0));
  }

  /** Threshold as the settings say. */
  showThreshold() {
    this.panes.forEach((pane) => pane.overlay?.setThreshold(this.settings.threshold));
  }

  /** Queries as the settings say; side by side each pane shows its own. */
  showQueries() {
    const { hidden, on } = this.settings;
    for (const pane of this.panes) {
      const shown = pane.queries.filter((query) => this.sideBySide || !hidden.has(query));
      pane.queries.forEach((query) => pane.overlay.setShown(query, shown.includes(query)));
      pane.outlines.show(on ? shown : []);
    }
  }
}
