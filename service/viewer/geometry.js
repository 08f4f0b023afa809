// Outlines of regions, thousands of them: which are in view, and paths no finer than the screen can show. Pure, and
// without a page: a worker runs it. Everything is level-0 pixels (px0).

const CELL_PX = 640; // edge of a cell of the index on screen
const TOLERANCE_PX = 0.6; // points nearer to the one before, on screen, are left out
const FINEST = -3; // octave from which a view is only magnified

/** The octave of a view: 2^octave level-0 pixels are about a pixel on screen. */
export const octaveOf = (step) => Math.max(FINEST, Math.floor(Math.log2(step)));

/**
 * The points of a ring that are further than a tolerance from the one kept before.
 * @param {Float32Array} ring x, y, x, y, …; closed
 * @param {number} tolerance
 * @returns {number[]} x, y, …; at least three points, or two where the ring is a speck
 */
export function thinned(ring, tolerance) {
  const kept = [ring[0], ring[1]];
  const least = tolerance * tolerance;
  let x = ring[0];
  let y = ring[1];
  for (let at = 2; at < ring.length - 2; at += 2) {
    const dx = ring[at] - x;
    const dy = ring[at + 1] - y;
    if (dx * dx + dy * dy >= least) {
      x = ring[at];
      y = ring[at + 1];
      kept.push(x, y);
    }
  }
  return kept;
}

/** Whether a point lies inside rings, by the even-odd rule, so that holes are outside. */
export function inside(rings, x, y) {
  let within = false;
  for (const ring of rings) {
    for (let at = 0; at < ring.length - 2; at += 2) {
      const [x0, y0, x1, y1] = [ring[at], ring[at + 1], ring[at + 2], ring[at + 3]];
      if (y0 > y !== y1 > y && x < ((x1 - x0) * (y - y0)) / (y1 - y0) + x0) within = !within;
    }
  }
  return within;
}

/** A GeoJSON geometry's rings as arrays of x, y. */
export function ringsOf(geometry) {
  const polygons = geometry.type === "Polygon" ? [geometry.coordinates] : geometry.coordinates;
  return polygons.flat().map((ring) => Float32Array.from(ring.flat()));
}

/** The box (x0, y0, x1, y1) around rings. */
export function boxOf(rings) {
  const box = [Infinity, Infinity, -Infinity, -Infinity];
  for (const ring of rings) {
    for (let at = 0; at < ring.length; at += 2) {
      box[0] = Math.min(box[0], ring[at]);
      box[1] = Math.min(box[1], ring[at + 1]);
      box[2] = Math.max(box[2], ring[at]);
      box[3] = Math.max(box[3], ring[at + 1]);
    }
  }
  return box;
}

const touches = (a, b) => a[0] <= b[2] && a[2] >= b[0] && a[1] <= b[3] && a[3] >= b[1];

/** Regions with an index by place for every octave. */
export class Outlines {
  constructor() {
    this.regions = new Map();
    this.octaves = new Map();
    this.least = 0;
  }

  /** @param {{id: string, query: number, confidence: number, rings: Float32Array[], box: number[]}} region */
  add(region) {
    this.regions.set(region.id, region);
    this.octaves.clear();
  }

  /** Forget every region. */
  clear() {
    this.regions.clear();
    this.octaves.clear();
  }

  /** Show only regions at least so sure. */
  filter(least) {
    this.least = least;
    this.octaves.clear();
  }

  /**
   * The cells that a box touches.
   * @returns {{box: number[], members: object[], paths: Map}[]}
   */
  cells(octave, box) {
    if (!this.octaves.has(octave)) this.octaves.set(octave, this.index(octave));
    return [...this.octaves.get(octave).values()].filter((cell) => touches(cell.box, box));
  }

  index(octave) {
    const edge = CELL_PX * 2 ** octave;
    const cells = new Map();
    for (const region of this.regions.values()) {
      if (region.confidence < this.least) continue;
      const { box } = region;
      const place = `${Math.floor((box[0] + box[2]) / 2 / edge)},${Math.floor((box[1] + box[3]) / 2 / edge)}`;
      const cell = cells.get(place);
      if (cell) {
        cell.members.push(region);
        cell.box = [
          Math.min(cell.box[0], box[0]),
          Math.min(cell.box[1], box[1]),
          Math.max(cell.box[2], box[2]),
          Math.max(cell.box[3], box[3]),
        ];
      } else {
        cells.set(place, { box: [...box], members: [region], paths: new Map() });
      }
    }
    return cells;
  }

  /**
   * The paths to stroke for a query in a view; kept for the next view of the same octave.
   * @param {number} octave
   * @param {number[]} box of the view
   * @param {number} query
   * @returns {Path2D[]} one for each cell
   */
  paths(octave, box, query) {
    return this.cells(octave, box).map((cell) => {
      if (!cell.paths.has(query)) cell.paths.set(query, drawn(cell.members, query, TOLERANCE_PX * 2 ** octave));
      return cell.paths.get(query);
    });
  }

  /** The smallest shown region around a point, or null. */
  at(x, y, queries) {
    let found = null;
    const size = (box) => (box[2] - box[0]) * (box[3] - box[1]);
    for (const region of this.regions.values()) {
      const { box } = region;
      if (region.confidence < this.least || !queries.includes(region.query)) continue;
      if (x < box[0] || x > box[2] || y < box[1] || y > box[3]) continue;
      if ((found === null || size(box) < size(found.box)) && inside(region.rings, x, y)) found = region;
    }
    return found;
  }
}

/** One path of all of a query's regions among these. */
function drawn(regions, query, tolerance) {
  const path = new Path2D();
  for (const region of regions) {
    if (region.query !== query) continue;
    for (const ring of region.rings) {
      const points = thinned(ring, tolerance);
      if (points.length < 6) {
        path.rect(points[0], points[1], tolerance, tolerance);
        continue;
      }
      path.moveTo(points[0], points[1]);
      for (let at = 2; at < points.length; at += 2) path.lineTo(points[at], points[at + 1]);
      path.closePath();
    }
  }
  return path;
}
