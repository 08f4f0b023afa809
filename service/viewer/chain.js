// A reasoning chain as the model wrote it, made readable: the thought, the conclusion, and where the mask is meant.

import { el } from "./dom.js";

const PARTS = /<think>([\s\S]*?)<\/think>/g;
const SEG = /<SEG>/g;

/** @returns {{thought: string, conclusion: string}} */
export function parts(chain) {
  const thoughts = [...chain.matchAll(PARTS)].map((found) => found[1].trim());
  return {
    thought: thoughts.join("\n"),
    conclusion: chain
      .replace(PARTS, "")
      .replace(/<\/?answer>/g, "")
      .trim(),
  };
}

/**
 * A chain as elements.
 * @param {string} chain
 * @param {number[]} color of its query; what the mask shows is marked with it
 */
export function chainElement(chain, color) {
  if (!chain.trim()) return el("p", { class: "soft", text: "No chain is on record for this region." });
  const { thought, conclusion } = parts(chain);
  const made = el("div", { class: "chain" });
  if (thought) {
    const steps = thought.split(/(?<=[.!?])\s+(?=[A-Z])/).filter(Boolean);
    made.append(el("h4", { text: "What was seen" }), el("ol", {}, ...steps.map((step) => el("li", { text: step }))));
  }
  if (conclusion)
    made.append(el("h4", { text: "Conclusion" }), el("p", { class: "conclusion" }, ...marked(conclusion, color)));
  return made;
}

/** Text with a patch of colour wherever the model pointed. */
function marked(text, color) {
  return text.split(SEG).flatMap((piece, at) => {
    if (!at) return [piece];
    const seg = el("span", { class: "seg", title: "Here the model points at the region", text: "region" });
    seg.style.setProperty("--query", `rgb(${color.join(" ")})`);
    return [seg, piece];
  });
}
