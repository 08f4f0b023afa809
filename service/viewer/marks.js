// What is marked on a slide beside the outlines: the chosen region, the tiles it came from, the area to ask about, and
// what was not looked at.

import { Floating } from "./floating.js";

const AREA = "rgb(255 196 0)";
const FAILED = "rgb(214 40 57)";
const MOST_LINES = 600;
const LEFT_OUT = "rgb(20 24 28 / 0.45)";
const PENDING = "rgb(64 120 200 / 0.32)";

/** Marks on one stage. */
export class Marks extends Floating {
  constructor(stage) {
    super(stage, "marks");
    /** @type {{rings: Float32Array[], color: number[]}|null} */
    this.region = null;
    /** @type {{box: number[], kind: "chain"|"support"|"dissent"}[]} */
    this.tiles = [];
    /** @type {number[][]} rings of [x, y, x, y, …] */
    this.areas = [];
    this.open = null;
    /** @type {Coverage|null} */
    this.coverage = null;
    this.uncovered = false;
  }

  /** Change what is marked; the names are this object's. */
  mark(given) {
    Object.assign(this, given);
    this.repaint();
  }

  get empty() {
    return !this.region && !this.tiles.length && !this.areas.length && !this.open && !this.coverage;
  }

  async paint({ x, y, step, width, height, ratio }) {
    if (this.empty) return null;
    const canvas = new OffscreenCanvas(Math.round(width * ratio), Math.round(height * ratio));
    const pen = canvas.getContext("2d");
    pen.setTransform(ratio / step, 0, 0, ratio / step, (-x * ratio) / step, (-y * ratio) / step);
    pen.lineJoin = "round";
    if (this.coverage) this.paintCoverage(pen, step);
    for (const area of this.areas) this.line(pen, area, true, AREA, 2 * step, [7 * step, 5 * step]);
    if (this.open) this.line(pen, this.open, false, AREA, 2 * step, []);
    for (const tile of this.tiles) this.paintTile(pen, tile, step);
    if (this.region) this.paintRegion(pen, step);
    return canvas.transferToImageBitmap();
  }

  paintCoverage(pen, step) {
    const { coverage } = this;
    if (this.uncovered) coverage.paint(pen, LEFT_OUT, PENDING);
    if (coverage.failed.length) hatch(pen, coverage.failed, step);
  }

  paintTile(pen, { box: [x0, y0, x1, y1], kind }, step) {
    pen.setLineDash(kind === "dissent" ? [3 * step, 4 * step] : kind === "support" ? [10 * step, 4 * step] : []);
    for (const [color, px] of kind === "chain"
      ? [
          ["rgb(255 255 255)", 4],
          ["rgb(20 24 28)", 2],
        ]
      : [["rgb(255 255 255 / 0.75)", 1.2]]) {
      pen.strokeStyle = color;
      pen.lineWidth = px * step;
      pen.strokeRect(x0, y0, x1 - x0, y1 - y0);
    }
    pen.setLineDash([]);
  }

  paintRegion(pen, step) {
    for (const [color, px] of [
      ["rgb(255 255 255)", 6],
      [`rgb(${this.region.color.join(" ")})`, 3],
    ]) {
      for (const ring of this.region.rings) this.line(pen, ring, true, color, px * step, []);
    }
  }

  line(pen, ring, closed, color, px, dash) {
    pen.beginPath();
    pen.moveTo(ring[0], ring[1]);
    for (let at = 2; at < ring.length; at += 2) pen.lineTo(ring[at], ring[at + 1]);
    if (closed) pen.closePath();
    pen.strokeStyle = color;
    pen.lineWidth = px;
    pen.setLineDash(dash);
    pen.stroke();
    pen.setLineDash([]);
  }
}

/** Hatch boxes as one shape, however they overlap. */
function hatch(pen, boxes, step) {
  const shape = new Path2D();
  for (const [x0, y0, x1, y1] of boxes) shape.rect(x0, y0, x1 - x0, y1 - y0);
  const [left, top, right, bottom] = boxes.reduce(
    (all, box) => [
      Math.min(all[0], box[0]),
      Math.min(all[1], box[1]),
      Math.max(all[2], box[2]),
      Math.max(all[3], box[3]),
    ],
    [Infinity, Infinity, -Infinity, -Infinity],
  );
  pen.fillStyle = "rgb(214 40 57 / 0.12)";
  pen.fill(shape);
  pen.save();
  pen.clip(shape);
  pen.beginPath();
  const [width, height] = [right - left, bottom - top];
  const gap = Math.max(9 * step, (width + height) / MOST_LINES);
  for (let at = left - height; at < right; at += gap) {
    pen.moveTo(at, bottom);
    pen.lineTo(at + height, top);
  }
  pen.strokeStyle = FAILED;
  pen.lineWidth = 1.2 * step;
  pen.stroke();
  pen.restore();
  pen.strokeStyle = "rgb(214 40 57 / 0.6)";
  pen.lineWidth = step;
  pen.stroke(shape);
}
