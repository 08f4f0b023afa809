// The overlay's tiles, a layer for each query. While the job runs a newer picture is laid over the older one, which is
// taken away once the newer has come, so that nothing flickers.

const REFRESH_MS = 1500;
const SETTLED_MS = 8000;

/** The overlay of one job on one stage. */
export class Overlay {
  /** @param {Stage} stage @param {string} job @param {number[]} queries indices that may be shown here */
  constructor(stage, job, queries) {
    this.stage = stage;
    this.job = job;
    this.layers = new Map(queries.map((query) => [query, { item: null, version: -1, shown: true }]));
    this.opacity = 0.45;
    this.threshold = null;
    this.version = 0;
    this.last = 0;
    this.timer = 0;
    this.closed = false;
  }

  /** Show more when there is more; called as often as one likes. */
  refresh(now = false) {
    clearTimeout(this.timer);
    const wait = now ? 0 : Math.max(0, this.last + REFRESH_MS - performance.now());
    this.timer = setTimeout(() => this.renew(), wait);
  }

  async renew() {
    this.last = performance.now();
    this.version += 1;
    await Promise.all([...this.layers].map(([query, layer]) => this.renewLayer(query, layer, this.version)));
  }

  async renewLayer(query, layer, version) {
    const asked = this.threshold === null ? "" : `&threshold=${this.threshold}`;
    const url = (level, x, y) =>
      `/v1/jobs/${this.job}/tiles_files/${level}/${x}_${y}.png?query=${query}&opacity=1${asked}&t=${version}`;
    const item = await this.stage.lay(url, layer.shown ? this.opacity : 0).catch(() => null);
    if (item === null) return;
    const older = layer.item;
    if (this.closed || layer.version > version) {
      this.stage.remove(item);
      return;
    }
    layer.item = item;
    layer.version = version;
    if (older === null) return;
    await loaded(item);
    this.stage.remove(older);
  }

  /** @param {number} value 0 to 1 */
  setOpacity(value) {
    this.opacity = value;
    for (const layer of this.layers.values()) layer.item?.setOpacity(layer.shown ? value : 0);
  }

  /** Show the pixels from this probability on; null: the regions as they were found. */
  setThreshold(value) {
    this.threshold = value;
    this.refresh(true);
  }

  /** Show one query, or do not. */
  setShown(query, shown) {
    const layer = this.layers.get(query);
    if (!layer) return;
    layer.shown = shown;
    layer.item?.setOpacity(shown ? this.opacity : 0);
  }

  /** Take everything away. */
  close() {
    this.closed = true;
    clearTimeout(this.timer);
    for (const layer of this.layers.values()) if (layer.item) this.stage.remove(layer.item);
  }
}

/** Wait until all of a layer's tiles in view are there, or long enough. */
function loaded(item) {
  if (item.getFullyLoaded()) return Promise.resolve();
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, SETTLED_MS);
    item.addHandler("fully-loaded-change", (event) => {
      if (!event.fullyLoaded) return;
      clearTimeout(timer);
      resolve();
    });
  });
}
