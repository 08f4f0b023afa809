// Keys that work wherever nobody is typing; a list or a slider that has the focus keeps its own.

import { $ } from "./dom.js";

const MOVE = { ArrowLeft: [-0.12, 0], ArrowRight: [0.12, 0], ArrowUp: [0, -0.12], ArrowDown: [0, 0.12] };
const TYPING = "input:not([type=checkbox]), textarea, select";

/**
 * Listen for keys.
 * @param {{open: () => boolean, move: Function, zoom: (factor: number) => void, home: () => void,
 *   act: (name: string) => void}} page
 */
export function listenForKeys(page) {
  const acts = {
    n: "next",
    p: "previous",
    o: "overlay",
    c: "uncovered",
    s: "beside",
    r: "rectangle",
    g: "polygon",
    Escape: "leave",
    "/": "question",
  };
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || $("help").open) return;
    if (event.key === "?") {
      if (!event.target.matches(TYPING)) $("help").showModal();
      return;
    }
    const typing = event.target.matches(TYPING) && event.key !== "Escape";
    if (!page.open() || typing) return;
    if (event.key in MOVE) page.move(...MOVE[event.key]);
    else if (event.key === "+" || event.key === "=") page.zoom(1.4);
    else if (event.key === "-") page.zoom(1 / 1.4);
    else if (event.key === "0") page.home();
    else if (event.key in acts) page.act(acts[event.key]);
    else return;
    event.preventDefault();
  });
  $("help-button").addEventListener("click", () => $("help").showModal());
}
