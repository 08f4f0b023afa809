// Drawing the area to ask about: a rectangle by dragging, a polygon by clicking.
// Without a pointer the view can be taken.

const CLOSE_PX = 10;
const LEAST_PX = 4;

/** Draws on one stage at a time. */
export class Drawing {
  /** @param {(area: number[]|null) => void} done gets the ring [x, y, …], or null where it was given up */
  constructor(done) {
    this.done = done;
    this.mode = null;
    this.points = [];
  }

  /**
   * Begin on a pane.
   * @param {{stage: Stage, marks: Marks}} pane
   * @param {"rectangle"|"polygon"} mode
   */
  begin(pane, mode) {
    this.end();
    this.pane = pane;
    this.mode = mode;
    this.points = [];
    this.closing = new AbortController();
    const { signal } = this.closing;
    const { element } = pane.stage;
    pane.stage.draggable = false;
    element.classList.add("drawing");
    element.addEventListener("pointerdown", (event) => this.down(event), { signal, capture: true });
    element.addEventListener("pointermove", (event) => this.move(event), { signal, capture: true });
    element.addEventListener("pointerup", (event) => this.up(event), { signal, capture: true });
    element.addEventListener("dblclick", () => this.finish(), { signal, capture: true });
    addEventListener("keydown", (event) => this.key(event), { signal, capture: true });
  }

  /** Where an event happened, on the slide. */
  point(event) {
    const box = this.pane.stage.element.getBoundingClientRect();
    return this.pane.stage.toSlide(event.clientX - box.left, event.clientY - box.top);
  }

  /** Whether two points of the slide are near each other on screen. */
  near([x0, y0], [x1, y1], px) {
    return Math.hypot(x0 - x1, y0 - y1) < px * this.pane.stage.view.step;
  }

  down(event) {
    if (event.button !== 0) return;
    const point = this.point(event);
    if (this.mode === "rectangle") {
      this.points = [point];
      this.pane.stage.element.setPointerCapture?.(event.pointerId);
      return;
    }
    if (this.points.length > 2 && this.near(point, this.points[0], CLOSE_PX)) {
      this.finish();
    } else if (!this.points.length || !this.near(point, this.points.at(-1), LEAST_PX)) {
      this.points.push(point);
      this.show(point);
    }
  }

  move(event) {
    if (this.points.length) this.show(this.point(event));
  }

  up(event) {
    if (this.mode !== "rectangle" || !this.points.length) return;
    const point = this.point(event);
    if (this.near(point, this.points[0], LEAST_PX)) return;
    this.points = rectangle(this.points[0], point);
    this.finish();
  }

  key(event) {
    if (event.key === "Escape") {
      this.end();
      this.done(null);
    } else if (event.key === "Enter" && this.mode === "polygon") {
      this.finish();
    } else if (event.key === "Backspace" && this.mode === "polygon") {
      this.points.pop();
      this.show(this.points.at(-1));
    } else {
      return;
    }
    event.preventDefault();
    event.stopPropagation();
  }

  show(point) {
    const open = this.mode === "rectangle" ? rectangle(this.points[0], point) : [...this.points, point ?? []];
    const ring = open.flat();
    if (this.mode === "rectangle") ring.push(ring[0], ring[1]);
    this.pane.marks.mark({ open: ring });
  }

  finish() {
    if (this.points.length < 3) return;
    const ring = this.points.flat();
    this.end();
    this.done(ring);
  }

  /** Stop drawing; what was begun is forgotten. */
  end() {
    if (!this.mode) return;
    this.mode = null;
    this.closing.abort();
    this.pane.stage.element.classList.remove("drawing");
    this.pane.stage.draggable = true;
    this.pane.marks.mark({ open: null });
  }
}

/** The corners of a rectangle between two points. */
const rectangle = ([x0, y0], [x1, y1]) => [
  [x0, y0],
  [x1, y0],
  [x1, y1],
  [x0, y1],
];

/** A ring as the GeoJSON that `POST /v1/jobs` takes, kept on the slide. */
export function toGeoJson(ring, slide) {
  const points = [];
  for (let at = 0; at < ring.length; at += 2) {
    const x = Math.min(Math.max(ring[at], 0), slide.width_px0);
    const y = Math.min(Math.max(ring[at + 1], 0), slide.height_px0);
    points.push([Math.round(x * 10) / 10, Math.round(y * 10) / 10]);
  }
  return { type: "Polygon", coordinates: [[...points, points[0]]] };
}
