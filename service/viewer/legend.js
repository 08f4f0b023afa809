// What the marks on the slide mean; only those that are there are told.

import { $, el } from "./dom.js";

const TILES = [
  ["chain", "tile that wrote the chain"],
  ["support", "tile that also found it"],
  ["dissent", "tile that stayed silent"],
];

/**
 * Show the legend.
 * @param {Coverage|null} coverage
 * @param {boolean} veiled whether what was not looked at is veiled
 * @param {boolean} chosen whether a region is
 */
export function showLegend(coverage, veiled, chosen) {
  const rows = [];
  if (veiled) {
    rows.push(["left-out", "left out: glass, or outside the area"]);
    if (coverage?.pending) rows.push(["pending", "still to be looked at"]);
  }
  if (coverage?.failed.length) rows.push(["failed", "failed: nothing is known of it"]);
  if (chosen) rows.push(...TILES);
  $("legend").hidden = !rows.length;
  $("legend").replaceChildren(
    ...rows.map(([kind, text]) => el("li", {}, el("i", { class: `line ${kind}`, "aria-hidden": "true" }), text)),
  );
}
