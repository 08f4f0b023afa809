// The outlines of all regions on a stage; the worker thread paints them.

import { queryColor } from "./colors.js";
import { Floating } from "./floating.js";

/** Outlines of some queries' regions. */
export class OutlineLayer extends Floating {
  /** @param {Stage} stage @param {RegionStore} store @param {number[]} queries */
  constructor(stage, store, queries) {
    super(stage, "outlines");
    this.store = store;
    this.queries = queries;
  }

  /** Which queries are shown. */
  show(queries) {
    this.queries = queries;
    this.repaint();
  }

  async paint(view) {
    if (!this.queries.length || !this.store.facts.size) return null;
    const colors = this.queries.reduce((all, query) => ({ ...all, [query]: queryColor(query) }), {});
    return (await this.store.paint({ ...view, queries: this.queries, colors })).bitmap;
  }
}
