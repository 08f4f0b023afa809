// One region: measurements, chain, and the tiles it came from.

import { getJson } from "./api.js";
import { chainElement } from "./chain.js";
import { queryColor } from "./colors.js";
import { el, swatch } from "./dom.js";
import { area, counted, length, percent, probability } from "./format.js";

const WEAK = {
  agreement: "overlapping tiles disagree",
  stain: "stain far from what the model was trained on",
  contradiction: "the chain contradicts its own mask",
};

/** The tiles of a region as boxes in level-0 pixels. */
export function tilesOf(region, report) {
  const { scale, stride_px: stride, tile_px: size, grid_offset_px: offset } = report.parameters;
  const { chain_tile: chain } = region;
  // the grid may start elsewhere than the report's shift says; the chain's own tile tells where
  const [row, col] = (chain.key ?? "0_0").split("_").map(Number);
  const start = chain.key ? [chain.x_px - col * stride, chain.y_px - row * stride] : offset;
  const box = (key) => {
    const [r, c] = key.split("_").map(Number);
    const [x, y] = [start[0] + c * stride, start[1] + r * stride];
    return [x * scale[0], y * scale[1], (x + size) * scale[0], (y + size) * scale[1]];
  };
  return [
    ...region.dissent.map((key) => ({ key, kind: "dissent", box: box(key) })),
    ...region.support.map((key) => ({ key, kind: "support", box: box(key) })),
    ...(chain.key ? [{ key: chain.key, kind: "chain", box: chain.bbox_px0 }] : []),
  ];
}

/** Read a region with its chain and tiles. */
export const readRegion = (job, id) => getJson(`/v1/jobs/${job}/regions/${id}`);

/**
 * A region as elements.
 * @param {object} region as `readRegion` gives it
 * @param {object[]} tiles as `tilesOf` gives them
 * @param {{close: () => void, show: (box: number[]) => void, step: (by: number) => void}} page
 */
export function detailElement(region, tiles, page) {
  const color = queryColor(region.query_index);
  const rows = [
    ["Area", area(region.area_um2)],
    ["Perimeter", length(region.perimeter_um)],
    ["Confidence", probability(region.confidence)],
    ["Agreement of tiles", region.agreement === null ? "one tile saw it" : percent(region.agreement)],
    ["Place", region.place],
  ];
  return el(
    "article",
    { class: "detail", "aria-labelledby": "detail-title" },
    el(
      "header",
      {},
      el("button", { type: "button", class: "quiet small", text: "← All regions", onclick: page.close }),
      el(
        "span",
        { class: "steps" },
        el("button", {
          type: "button",
          class: "quiet small",
          text: "‹",
          "aria-label": "Previous region",
          onclick: () => page.step(-1),
        }),
        el("button", {
          type: "button",
          class: "quiet small",
          text: "›",
          "aria-label": "Next region",
          onclick: () => page.step(1),
        }),
      ),
    ),
    el("h3", { id: "detail-title", tabindex: "-1" }, swatch(color), region.feature.properties.name),
    el("p", { class: "soft", text: region.query }),
    el(
      "dl",
      { class: "measures" },
      ...rows.flatMap(([name, value]) => [el("dt", { text: name }), el("dd", { text: value })]),
    ),
    weakElement(region.weak ?? []),
    chainElement(region.chain, color),
    tilesElement(region, tiles, page),
  );
}

/** What speaks against a region, where the report says that something does. */
function weakElement(weak) {
  if (!weak.length) return null;
  return el("p", {
    class: "gaps",
    role: "note",
    text: `Weak evidence: ${weak.map((name) => WEAK[name] ?? name).join("; ")}.`,
  });
}

function tilesElement(region, tiles, page) {
  const kinds = [
    ["chain", "wrote the chain"],
    ["support", "also found it"],
    ["dissent", "saw it and stayed silent"],
  ];
  const lines = kinds.flatMap(([kind, what]) => {
    const some = tiles.filter((tile) => tile.kind === kind);
    if (!some.length) return [];
    const buttons = some.slice(0, 12).map((tile) =>
      el("button", {
        type: "button",
        class: "chip tile",
        text: tile.key.replace("_", " · "),
        "aria-label": `Show tile ${tile.key}`,
        onclick: () => page.show(tile.box),
      }),
    );
    const more = some.length > 12 ? el("span", { class: "soft small", text: `and ${some.length - 12} more` }) : null;
    return [
      el(
        "li",
        {},
        el("i", { class: `line ${kind}`, "aria-hidden": "true" }),
        el("span", { text: `${counted(some.length, "tile")} ${what}` }),
        el("span", { class: "chips" }, ...buttons, more),
      ),
    ];
  });
  const again = region.chain_tile?.second_look
    ? el("p", { class: "soft small", text: "The tile pointed only when it was asked again." })
    : null;
  return el("section", { class: "tiles" }, el("h4", { text: "The tiles it came from" }), el("ul", {}, ...lines), again);
}
