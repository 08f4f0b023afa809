// A picture over the slide that is painted with a margin and then only shifted and scaled while the slide moves; it is
// painted anew at rest, or when the margin is used up. So a frame of panning costs a style, whatever is in the picture.

const MARGIN = 0.35;
const SCALE_LIMIT = 1.35;
const REST_MS = 90;

/** Base of what is painted over a stage; `paint(view)` gives a bitmap or null. */
export class Floating {
  /** @param {Stage} stage @param {string} name the canvas's class */
  constructor(stage, name) {
    this.stage = stage;
    this.canvas = document.createElement("canvas");
    this.canvas.className = `floating ${name}`;
    this.canvas.setAttribute("aria-hidden", "true");
    this.context = this.canvas.getContext("bitmaprenderer");
    stage.viewer.canvas.append(this.canvas);
    this.painted = null;
    this.painting = false;
    this.again = false;
    this.rest = 0;
    this.closed = false;
    stage.onView(() => this.moved());
  }

  /** Paint anew. */
  async repaint() {
    if (this.closed || !this.stage.size.width) return;
    if (this.painting) {
      this.again = true;
      return;
    }
    this.painting = true;
    this.again = false;
    const view = this.wide(this.stage.view);
    const bitmap = await this.paint(view);
    this.painting = false;
    if (this.closed) return;
    this.canvas.hidden = bitmap === null;
    if (bitmap !== null) {
      this.canvas.width = bitmap.width;
      this.canvas.height = bitmap.height;
      this.canvas.style.width = `${view.width}px`;
      this.canvas.style.height = `${view.height}px`;
      this.context.transferFromImageBitmap(bitmap);
    }
    this.painted = view;
    this.place(this.stage.view);
    if (this.again) this.repaint();
  }

  /** A view with the margin around it. */
  wide(view) {
    const { width, height } = this.stage.size;
    const ratio = Math.min(2, window.devicePixelRatio || 1);
    return {
      x: view.x - width * MARGIN * view.step,
      y: view.y - height * MARGIN * view.step,
      step: view.step,
      width: Math.round(width * (1 + 2 * MARGIN)),
      height: Math.round(height * (1 + 2 * MARGIN)),
      ratio,
    };
  }

  moved() {
    const view = this.stage.view;
    if (this.painted) this.place(view);
    if (!this.painted || this.used(view)) this.repaint();
    clearTimeout(this.rest);
    this.rest = setTimeout(() => {
      if (this.painted && (this.painted.step !== view.step || this.used(view))) this.repaint();
    }, REST_MS);
  }

  place(view) {
    const { painted } = this;
    const scale = painted.step / view.step;
    const x = (painted.x - view.x) / view.step;
    const y = (painted.y - view.y) / view.step;
    this.canvas.style.transform = `translate(${x}px, ${y}px) scale(${scale})`;
  }

  /** Whether the view shows, or soon will, what the picture does not. */
  used(view) {
    const { painted } = this;
    const { width, height } = this.stage.size;
    const scale = painted.step / view.step;
    const spare = 0.1;
    return (
      scale > SCALE_LIMIT ||
      scale < 1 / SCALE_LIMIT ||
      view.x - width * spare * view.step < painted.x ||
      view.y - height * spare * view.step < painted.y ||
      view.x + width * (1 + spare) * view.step > painted.x + painted.width * painted.step ||
      view.y + height * (1 + spare) * view.step > painted.y + painted.height * painted.step
    );
  }

  /** Take it away. */
  close() {
    this.closed = true;
    clearTimeout(this.rest);
    this.canvas.remove();
  }
}
