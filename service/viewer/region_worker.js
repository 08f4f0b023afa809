// Reads, indexes and paints outlines in a thread of its own, so that the page's thread is left to the slide.

import { Outlines, boxOf, octaveOf, ringsOf } from "./geometry.js";

const PAGE = 500;
const LINE_PX = 1.6;
const THINNEST_PX = 0.8; // of a slide seen whole, where regions are specks

const outlines = new Outlines();
let provisional = false;
let reading = 0;

/** What the list shows of a GeoJSON feature, of a finished job or of one that runs; its outline stays here. */
function taken(feature) {
  const said = feature.properties;
  const { measurements = {}, metadata = {} } = said;
  const rings = ringsOf(feature.geometry);
  const box = boxOf(rings);
  const query = metadata.query_index ?? said.query ?? 0;
  const confidence = measurements.Confidence ?? said.confidence ?? 1;
  outlines.add({ id: feature.id, query, confidence, rings, box });
  return {
    id: feature.id,
    query,
    box,
    confidence,
    name: said.name ?? `Piece ${outlines.regions.size}`,
    area: measurements["Area µm^2"] ?? said.area_um2 ?? 0,
    chain: said.chain ?? "",
    agreement: measurements.Agreement ?? null,
  };
}

/** Read a job's regions page by page, each shown as it comes. */
async function read(url) {
  const mine = ++reading;
  outlines.clear();
  provisional = false;
  let next = `${url}?limit=${PAGE}`;
  while (next && mine === reading) {
    const answer = await fetch(next);
    if (!answer.ok)
      throw new Error((await answer.json().catch(() => ({}))).detail || `regions answered ${answer.status}`);
    const page = await answer.json();
    if (mine !== reading) return;
    const links = page.links || page.slidereason?.links || [];
    next = links.find((link) => link.rel === "next")?.href || null;
    postMessage({ type: "regions", regions: page.features.map(taken), more: Boolean(next), provisional: false });
  }
}

/** A view's outlines as a bitmap. */
function paint({ x, y, step, width, height, ratio, queries, colors }) {
  const canvas = new OffscreenCanvas(Math.max(1, Math.round(width * ratio)), Math.max(1, Math.round(height * ratio)));
  const pen = canvas.getContext("2d");
  pen.setTransform(ratio / step, 0, 0, ratio / step, (-x * ratio) / step, (-y * ratio) / step);
  pen.lineWidth = Math.max(THINNEST_PX, LINE_PX - 0.2 * Math.max(0, octaveOf(step))) * step;
  pen.lineJoin = "round";
  if (provisional) pen.setLineDash([5 * step, 3 * step]);
  const octave = octaveOf(step);
  const box = [x, y, x + width * step, y + height * step];
  for (const query of queries) {
    pen.strokeStyle = `rgb(${colors[query].join(" ")})`;
    for (const path of outlines.paths(octave, box, query)) pen.stroke(path);
  }
  return canvas.transferToImageBitmap();
}

const tasks = {
  read: ({ url }) => read(url).catch((error) => postMessage({ type: "failed", detail: error.message })),
  add({ features }) {
    provisional = true;
    const known = features.filter((feature) => feature.geometry);
    postMessage({ type: "regions", regions: known.map(taken), more: true, provisional: true });
  },
  clear() {
    reading += 1;
    outlines.clear();
  },
  filter: ({ least }) => outlines.filter(least),
  paint(request) {
    const began = performance.now();
    const bitmap = paint(request);
    postMessage({ type: "answer", id: request.id, bitmap, tookMs: performance.now() - began }, [bitmap]);
  },
  hit({ id, x, y, queries }) {
    postMessage({ type: "answer", id, region: outlines.at(x, y, queries)?.id ?? null });
  },
  rings({ id, region }) {
    postMessage({ type: "answer", id, rings: outlines.regions.get(region)?.rings ?? null });
  },
};

addEventListener("message", ({ data }) => tasks[data.task](data));
