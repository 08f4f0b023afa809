// The list of regions, of which only the rows in view exist. A listbox: arrows move the choice, as in every other list.

import { el, swatch } from "./dom.js";
import { queryColor } from "./colors.js";
import { area, probability } from "./format.js";

const ROW_PX = 44;
const SPARE = 6;
const ORDERS = {
  area: (a, b) => b.area - a.area,
  confidence: (a, b) => b.confidence - a.confidence,
  agreement: (a, b) => (b.agreement ?? -1) - (a.agreement ?? -1),
};

/** The regions of the shown job. */
export class RegionList {
  /** @param {HTMLElement} element scrolls @param {(id: string) => void} choose */
  constructor(element, choose) {
    this.element = element;
    this.choose = choose;
    this.order = "area";
    this.regions = [];
    this.places = new Map();
    this.chosen = null;
    this.rows = el("div", { class: "rows" });
    element.append(this.rows);
    element.addEventListener("scroll", () => this.draw());
    element.addEventListener("keydown", (event) => this.key(event));
    new ResizeObserver(() => this.draw()).observe(element);
  }

  /** Show these, in the chosen order. */
  set(regions) {
    this.regions = [...regions].sort(ORDERS[this.order]);
    this.places = new Map(this.regions.map((region, place) => [region.id, place]));
    this.rows.style.height = `${this.regions.length * ROW_PX}px`;
    this.draw(true);
  }

  /** @param {"area"|"confidence"|"agreement"} order */
  sort(order) {
    this.order = order;
    this.set(this.regions);
    this.reveal();
  }

  /** Mark a region as chosen; null: none. */
  select(id) {
    this.chosen = id;
    this.reveal();
    this.draw(true);
  }

  reveal() {
    const place = this.places.get(this.chosen);
    if (place === undefined) return;
    const top = place * ROW_PX;
    const { scrollTop, clientHeight } = this.element;
    if (top < scrollTop) this.element.scrollTop = top;
    else if (top + ROW_PX > scrollTop + clientHeight) this.element.scrollTop = top + ROW_PX - clientHeight;
  }

  /** The region so many places further; its id. */
  step(by) {
    if (!this.regions.length) return null;
    const place = this.places.get(this.chosen);
    const next = place === undefined ? (by > 0 ? 0 : this.regions.length - 1) : place + by;
    return this.regions[Math.min(Math.max(next, 0), this.regions.length - 1)].id;
  }

  key(event) {
    const page = Math.max(1, Math.floor(this.element.clientHeight / ROW_PX) - 1);
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity };
    if (!(event.key in steps)) return;
    event.preventDefault();
    event.stopPropagation();
    const by = Math.max(-this.regions.length, Math.min(this.regions.length, steps[event.key]));
    const id = this.step(by);
    if (id && id !== this.chosen) this.choose(id);
  }

  draw(anew = false) {
    const first = Math.max(0, Math.floor(this.element.scrollTop / ROW_PX) - SPARE);
    const last = Math.min(
      this.regions.length,
      Math.ceil((this.element.scrollTop + this.element.clientHeight) / ROW_PX) + SPARE,
    );
    const shown = `${first}-${last}`;
    if (!anew && shown === this.shown) return;
    this.shown = shown;
    this.rows.replaceChildren(...this.regions.slice(first, last).map((region, at) => this.row(region, first + at)));
    const active = this.chosen && this.places.has(this.chosen) ? `row-${this.chosen}` : null;
    if (active && this.rows.querySelector(`[id="${active}"]`))
      this.element.setAttribute("aria-activedescendant", active);
    else this.element.removeAttribute("aria-activedescendant");
  }

  row(region, place) {
    const chosen = region.id === this.chosen;
    const sure = probability(region.confidence);
    const row = el(
      "div",
      {
        role: "option",
        id: `row-${region.id}`,
        class: "region",
        "aria-selected": String(chosen),
        "aria-posinset": place + 1,
        "aria-setsize": this.regions.length,
        onclick: () => this.choose(region.id),
      },
      swatch(queryColor(region.query)),
      el("span", { class: "name", text: region.name }),
      el("span", { class: "figure", text: area(region.area) }),
      el(
        "span",
        { class: "figure sure" },
        el("span", {}, el("span", { class: "visually-hidden", text: "confidence " }), sure),
      ),
    );
    row.style.transform = `translateY(${place * ROW_PX}px)`;
    row.querySelector(".sure").style.setProperty("--share", region.confidence);
    return row;
  }
}
