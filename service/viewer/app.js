// The viewer: puts its parts together, and keeps the address, the slide and the job in step. Research use only.

import { readAddress, writeAddress } from "./address.js";
import { getJson } from "./api.js";
import { AskForm } from "./ask.js";
import { queryColor } from "./colors.js";
import { readCoverage } from "./coverage.js";
import { $, announce, el, press } from "./dom.js";
import { Drawing } from "./drawing.js";
import { slideName, when } from "./format.js";
import { listenForKeys } from "./keys.js";
import { showLegend } from "./legend.js";
import { Panes } from "./panes.js";
import { RegionStore } from "./region_store.js";
import { Results } from "./results.js";
import { showScale } from "./scale_bar.js";
import { Library } from "./slides.js";
import { Watch, isOpen, readReport } from "./watch.js";

const ADDRESS_MS = 250;
const COVERAGE_MS = 3000;
const LATE_MS = 2500;

class Viewer {
  constructor() {
    this.slide = null;
    this.job = null;
    this.region = null;
    this.results = null;
    this.store = new RegionStore();
    this.panes = new Panes($("panes"), this.store, {
      moved: (stage) => this.moved(stage),
      clicked: (x, y, queries) => this.clicked(x, y, queries),
    });
    this.store.onChange(() => this.results?.regionsChanged());
    this.drawing = new Drawing((ring) => this.drawn(ring));
    this.form = new AskForm({
      draw: (mode) => this.draw(mode),
      stopDrawing: () => this.stopDrawing(),
      viewed: () => this.viewed(),
      marked: (ring) => this.panes.mark({ areas: ring ? [ring] : [] }),
      asked: (job) => this.showJob(job, true),
    });
    this.library = new Library((slide) => this.openSlide(slide, { step: true }));
    this.watch = new Watch({
      status: (document) => this.status(document),
      found: (features) => this.store.add(features),
      problem: (problem) => announce(problem.message),
    });
    this.listen();
  }

  listen() {
    $("home").addEventListener("click", (event) => {
      event.preventDefault();
      writeAddress({}, true);
      this.follow();
    });
    $("zoom-in").addEventListener("click", () => this.panes.first.stage.zoom(1.6));
    $("zoom-out").addEventListener("click", () => this.panes.first.stage.zoom(1 / 1.6));
    $("zoom-home").addEventListener("click", () => this.panes.first.stage.home());
    const tabs = [...document.querySelectorAll(".tabs button")];
    for (const tab of tabs) tab.addEventListener("click", () => this.showTab(tab.dataset.tab));
    addEventListener("popstate", () => this.follow());
    addEventListener("hashchange", () => this.follow());
    listenForKeys({
      open: () => this.slide !== null,
      move: (right, down) => this.lead().move(right, down),
      zoom: (factor) => this.lead().zoom(factor),
      home: () => this.lead().home(),
      act: (name) => this.act(name),
    });
  }

  /** The stage that keys and buttons move. */
  lead() {
    this.panes.leading = this.panes.first;
    return this.panes.first.stage;
  }

  act(name) {
    const toggles = { uncovered: this.results?.uncovered, beside: this.results?.beside };
    if (name === "next" || name === "previous") this.results?.step(name === "next" ? 1 : -1);
    else if (name === "rectangle" || name === "polygon") this.form.chooseArea(name);
    else if (name === "question") this.focusQuestion();
    else if (name === "leave") this.choose(null);
    else if (name === "overlay" && this.results) {
      this.settings.on = !this.settings.on;
      this.changed("opacity");
      this.changed("queries");
      announce(this.settings.on ? "Overlay shown" : "Overlay hidden");
    } else toggles[name]?.click();
  }

  focusQuestion() {
    this.showTab("ask");
    this.form.fields[0].focus();
  }

  showTab(name) {
    document.body.dataset.tab = name;
    const tabs = [...document.querySelectorAll(".tabs button")];
    press(
      tabs,
      tabs.find((tab) => tab.dataset.tab === name),
    );
  }

  // ---- where we are

  /** Show what the address says. */
  async follow() {
    const wanted = readAddress();
    try {
      if (wanted.job) {
        if (wanted.job === this.job) await this.choose(wanted.region, false);
        else await this.openJob(wanted);
      } else if (wanted.slide) {
        await this.openSlide(wanted.slide, wanted);
      } else {
        await this.showLibrary();
      }
    } catch (problem) {
      await this.showLibrary();
      $("library-note").textContent = problem.shown ?? problem.message;
      announce(problem.shown ?? problem.message);
    }
  }

  async showLibrary() {
    this.leaveJob();
    this.panes.close();
    this.slide = null;
    document.body.dataset.place = "library";
    $("library").hidden = false;
    $("workspace").hidden = true;
    $("place").textContent = "";
    document.title = "SlideReason";
    await this.library.show();
  }

  async openSlide(id, { step = false, at = null } = {}) {
    if (this.slide?.slide_id === id) {
      if (this.job) this.leaveJob();
      if (at) this.panes.first.stage.goTo(at);
      return;
    }
    this.leaveJob();
    const slide = await getJson(`/v1/slides/${id}`);
    this.slide = slide;
    document.body.dataset.place = "slide";
    $("library").hidden = true;
    $("workspace").hidden = false;
    this.showTab("slide");
    $("place").textContent = slideName(slide);
    $("slide-title").textContent = slideName(slide);
    document.title = `${slideName(slide)} · SlideReason`;
    if (step) writeAddress({ slide: id }, true);
    await this.panes.open(slide);
    if (at) this.panes.first.stage.goTo(at, true);
    await Promise.all([this.form.open(slide), this.listJobs()]);
  }

  async openJob({ job, region, at }) {
    const document = await getJson(`/v1/jobs/${job}`);
    await this.openSlide(document.slide, { at });
    await this.showJob(document, false, region, at);
  }

  async listJobs() {
    const { jobs } = await getJson(`/v1/jobs?slide=${this.slide.slide_id}&limit=50`).catch(() => ({ jobs: [] }));
    $("asked-none").hidden = jobs.length > 0;
    $("asked").replaceChildren(
      ...jobs.map((job) =>
        el(
          "li",
          {},
          el(
            "button",
            {
              type: "button",
              class: "past",
              "aria-current": job.jobID === this.job ? "true" : null,
              onclick: () => this.showJob(job, true),
            },
            el("span", { text: job.queries.join(" · ") }),
            el("span", {
              class: "soft small",
              text: `${when(job.created)} · ${job.status}`,
            }),
          ),
        ),
      ),
    );
  }

  // ---- a job

  async showJob(document, step, region = null, at = null) {
    this.leaveJob(false);
    this.job = document.jobID;
    this.settings = { opacity: 0.45, threshold: null, on: true, hidden: new Set() };
    $("result-empty").hidden = true;
    $("result").hidden = false;
    this.results = new Results(document, this.store, this.settings, {
      choose: (id) => this.choose(id),
      changed: (what) => this.changed(what),
      show: (box) => this.panes.first.stage.show(box, 0.4),
    });
    this.panes.showJob(this.job, document.queries, this.settings);
    writeAddress({ job: this.job, region, at }, step);
    this.listJobs();
    if (step) this.showTab(isOpen(document) ? "slide" : "result");
    if (isOpen(document)) {
      this.watch.follow(this.job);
    } else {
      await this.status(document);
      if (region) await this.choose(region, !at);
    }
  }

  leaveJob(address = true) {
    this.watch.stop();
    this.drawing.end();
    clearTimeout(this.coverageTimer);
    clearTimeout(this.lateTimer);
    this.coverageTimer = 0;
    this.seen = null;
    this.coverage = null;
    this.store.clear();
    this.job = this.region = this.results = null;
    this.ended = null;
    $("result").replaceChildren();
    $("result").hidden = true;
    $("result-empty").hidden = false;
    $("legend").hidden = true;
    if (this.slide && this.panes.first) {
      this.panes.clearJob();
      if (address) this.listJobs();
    }
  }

  /** The job as it stands: called for every event. */
  async status(document) {
    if (document.jobID !== this.job || !this.results) return;
    this.results.status(document);
    const { total, done, failed } = document.tiles;
    if (isOpen(document)) {
      if (total && done + failed !== this.seen) {
        this.seen = done + failed;
        this.panes.refresh();
        // a block's files can be seen a moment after it is counted
        clearTimeout(this.lateTimer);
        this.lateTimer = setTimeout(() => this.panes.refresh(), LATE_MS);
        this.coverSoon();
      }
      return;
    }
    if (this.ended === document.jobID) return;
    this.ended = document.jobID;
    await this.end(document);
  }

  async end(document) {
    const { jobID: job } = document;
    let report = null;
    if (document.status === "successful") {
      this.store.read(job);
      this.panes.refresh(true);
      report = await readReport(job);
      if (job !== this.job) return;
      await this.results.finished(report);
      announce(`Done. ${report.queries.map((query) => query.answer).join(" ")}`);
    } else {
      announce(`The job was ${document.status}. ${document.error?.detail ?? ""}`);
    }
    await this.cover(report);
    this.listJobs();
  }

  coverSoon() {
    if (this.coverageTimer) return;
    this.coverageTimer = setTimeout(() => {
      this.coverageTimer = 0;
      this.cover(null);
    }, COVERAGE_MS);
  }

  async cover(report) {
    const { job } = this;
    const coverage = job && (await readCoverage(job, report));
    if (job !== this.job || !this.results) return;
    this.panes.mark({ coverage, uncovered: this.results.uncovered.checked });
    this.legend(coverage);
  }

  legend(coverage) {
    this.coverage = coverage;
    showLegend(coverage, this.results.uncovered.checked, this.region !== null);
  }

  changed(what) {
    if (what === "opacity") this.panes.showOpacity();
    else if (what === "threshold") this.panes.showThreshold();
    else if (what === "queries") this.panes.showQueries();
    else if (what === "beside") this.panes.compare(this.results.beside.checked);
    else if (what === "uncovered") {
      this.panes.mark({ uncovered: this.results.uncovered.checked });
      this.legend(this.coverage);
    }
  }

  // ---- a region

  async clicked(x, y, queries) {
    if (this.drawing.mode || !this.results) return;
    const found = await this.store.hit(x, y, queries);
    this.choose(found, false);
    if (found) this.showTab("result");
  }

  /** Choose a region: the list, its chain and its tiles; null: none. */
  async choose(id, move = true) {
    if (!this.results || (id === null && this.region === null)) return;
    this.region = id;
    const { job } = this;
    writeAddress({ job, region: id, at: move ? null : this.at });
    const [chosen, rings] = await Promise.all([this.results.select(id), id && this.store.rings(id)]);
    if (this.region !== id || this.job !== job) return;
    if (!id) {
      this.panes.mark({ region: null, tiles: [] });
    } else {
      const facts = this.store.facts.get(id);
      const box = facts?.box ?? chosen?.region.bbox;
      const shape = rings ?? (chosen && outlineOf(chosen.region.feature.geometry));
      const query = facts?.query ?? chosen?.region.query_index ?? 0;
      this.panes.mark({ region: shape && { rings: shape, color: queryColor(query) }, tiles: chosen?.tiles ?? [] });
      if (move && box) this.panes.first.stage.show(box, 1.2);
    }
    this.legend(this.coverage);
  }

  // ---- the view and the area

  moved(stage) {
    showScale(stage);
    clearTimeout(this.addressTimer);
    this.addressTimer = setTimeout(() => {
      if (!this.slide) return;
      const { x, y, step } = stage.view;
      if (!Number.isFinite(step)) return;
      this.at = [x, y, step];
      writeAddress({ slide: this.slide.slide_id, job: this.job, region: this.region, at: this.at });
    }, ADDRESS_MS);
  }

  draw(mode) {
    this.showTab("slide");
    this.drawing.begin(this.panes.first, mode);
    this.form.drawn = mode;
    $("hint").hidden = false;
    $("hint").textContent = $("area-note").textContent;
  }

  stopDrawing() {
    this.drawing.end();
    $("hint").hidden = true;
  }

  drawn(ring) {
    $("hint").hidden = true;
    this.form.setArea(ring);
    if (ring) this.showTab("ask");
  }

  viewed() {
    const { x, y, step } = this.panes.first.stage.view;
    const { width, height } = this.panes.first.stage.size;
    const [right, bottom] = [
      Math.min(x + width * step, this.slide.width_px0),
      Math.min(y + height * step, this.slide.height_px0),
    ];
    const [left, top] = [Math.max(0, x), Math.max(0, y)];
    return [left, top, right, top, right, bottom, left, bottom];
  }
}

/** A GeoJSON outline as rings, where the store does not have it yet. */
const outlineOf = (geometry) =>
  (geometry.type === "Polygon" ? [geometry.coordinates] : geometry.coordinates)
    .flat()
    .map((ring) => Float32Array.from(ring.flat()));

new Viewer().follow();
