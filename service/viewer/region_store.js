// The regions of a job: short facts here, outlines in the worker thread. Tells its listeners when there are more.

/** Regions of the job that is shown. */
export class RegionStore {
  constructor() {
    this.worker = new Worker(new URL("./region_worker.js", import.meta.url), { type: "module" });
    this.worker.addEventListener("message", ({ data }) => this.heard(data));
    this.waiting = new Map();
    this.asked = 0;
    this.listeners = new Set();
    this.reset();
  }

  reset() {
    /** @type {Map<string, object>} facts by id */
    this.facts = new Map();
    this.complete = false;
    this.provisional = false;
    this.problem = null;
  }

  /** Call `tell()` when regions came or went. */
  onChange(tell) {
    this.listeners.add(tell);
  }

  tell() {
    this.listeners.forEach((tell) => tell());
  }

  heard(data) {
    if (data.type === "answer") {
      this.waiting.get(data.id)?.(data);
      this.waiting.delete(data.id);
    } else if (data.type === "failed") {
      this.problem = data.detail;
      this.tell();
    } else if (data.provisional === this.provisional) {
      for (const region of data.regions) this.facts.set(region.id, region);
      this.complete = !data.more;
      this.tell();
    }
  }

  request(task, given) {
    const id = ++this.asked;
    this.worker.postMessage({ task, id, ...given });
    return new Promise((resolve) => this.waiting.set(id, resolve));
  }

  /** Read a finished job's regions; what was provisional goes. */
  read(job) {
    this.reset();
    this.worker.postMessage({ task: "read", url: `/v1/jobs/${job}/regions` });
    this.tell();
  }

  /** Take GeoJSON features that a running job has found so far. */
  add(features) {
    if (!this.provisional) {
      this.reset();
      this.worker.postMessage({ task: "clear" });
    }
    this.provisional = true;
    this.worker.postMessage({ task: "add", features });
  }

  /** Forget everything. */
  clear() {
    this.reset();
    this.worker.postMessage({ task: "clear" });
    this.tell();
  }

  /** Leave out outlines less sure than this. */
  filter(least) {
    this.worker.postMessage({ task: "filter", least });
    this.tell();
  }

  /** A bitmap of the outlines in a view; see `region_worker.js`. */
  paint(view) {
    return this.request("paint", view);
  }

  /** Id of the smallest region around a point of these queries, or null. */
  async hit(x, y, queries) {
    return (await this.request("hit", { x, y, queries })).region;
  }

  /** A region's rings, or null. */
  async rings(region) {
    return (await this.request("rings", { region })).rings;
  }
}
