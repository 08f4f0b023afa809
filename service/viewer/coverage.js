// What of a slide a job looks at, and how far it has come: the tile grid, its blocks, and the tiles that failed.

import { getJson } from "./api.js";

/** Read a job's coverage; null before it is planned. Failed tiles are named by the report once there is one. */
export async function readCoverage(job, report) {
  const known = await getJson(`/v1/jobs/${job}/coverage`).catch(() => null);
  return known && new Coverage(known, report?.coverage?.failed_tiles ?? []);
}

/** Coverage of one job, in level-0 pixels. */
export class Coverage {
  constructor(known, failedTiles) {
    this.known = known;
    const lost = known.blocks.filter((block) => block.state === "failed").map((block) => block.bbox_px0);
    this.failed = [...lost, ...failedTiles.map((tile) => tile.bbox_px0)];
    this.leftOut = this.grid();
  }

  /** A canvas with a pixel for each step of the grid: opaque where no tile is planned. */
  grid() {
    const { rows, cols, wanted, tile_px0: tile, stride_px0: stride } = this.known;
    const reach = [Math.ceil(tile[0] / stride[0] - 1e-6), Math.ceil(tile[1] / stride[1] - 1e-6)];
    const [width, height] = [cols + reach[0] - 1, rows + reach[1] - 1];
    const alpha = new Uint8Array(width * height).fill(255);
    const bits = atob(wanted);
    for (let row = 0; row < rows; row += 1) {
      for (let col = 0; col < cols; col += 1) {
        const at = row * cols + col;
        if (!((bits.charCodeAt(at >> 3) >> (7 - (at & 7))) & 1)) continue;
        for (let dy = 0; dy < reach[1]; dy += 1)
          alpha.fill(0, (row + dy) * width + col, (row + dy) * width + col + reach[0]);
      }
    }
    const canvas = new OffscreenCanvas(width, height);
    const pixels = new ImageData(width, height);
    alpha.forEach((value, at) => (pixels.data[at * 4 + 3] = value));
    canvas.getContext("2d").putImageData(pixels, 0, 0);
    return canvas;
  }

  /** Whether something is still to be looked at. */
  get pending() {
    return this.known.blocks.some(({ state }) => state === "waiting" || state === "running");
  }

  /** Veil what is left out, and what is still to be looked at. */
  paint(pen, leftOut, pending) {
    const { offset_px0: offset, stride_px0: stride, size_px0: size } = this.known;
    const veil = new OffscreenCanvas(this.leftOut.width, this.leftOut.height);
    const ink = veil.getContext("2d");
    ink.drawImage(this.leftOut, 0, 0);
    ink.globalCompositeOperation = "source-in";
    ink.fillStyle = leftOut;
    ink.fillRect(0, 0, veil.width, veil.height);
    pen.save();
    pen.beginPath();
    pen.rect(0, 0, size[0], size[1]);
    pen.clip();
    pen.imageSmoothingEnabled = false;
    pen.drawImage(veil, offset[0], offset[1], veil.width * stride[0], veil.height * stride[1]);
    pen.fillStyle = pending;
    for (const {
      state,
      bbox_px0: [x0, y0, x1, y1],
    } of this.known.blocks) {
      if (state === "waiting" || state === "running") pen.fillRect(x0, y0, x1 - x0, y1 - y0);
    }
    pen.restore();
  }
}
