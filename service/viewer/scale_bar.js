// Scale bar and magnification; honest where the slide does not say how large a pixel is.

import { $ } from "./dom.js";
import { length, magnification } from "./format.js";

const LONGEST_PX = 150;
const STEPS = [1, 2, 5];

/** The longest round length in µm that fits. */
export function roundLength(mpp, longestPx = LONGEST_PX) {
  const most = mpp * longestPx;
  const power = 10 ** Math.floor(Math.log10(most));
  const step = STEPS.findLast((each) => each * power <= most * (1 + 1e-9)) ?? 1;
  return step * power;
}

/** Show what the view of a stage means. */
export function showScale(stage) {
  const { step } = stage.view;
  if (!Number.isFinite(step)) return;
  if (!stage.mpp) {
    $("scale-text").textContent = "no scale known";
    $("scale-line").style.width = "0";
    $("scale").setAttribute("aria-label", "The slide does not say how large a pixel is");
    $("magnification").textContent = `${Math.round(100 / step)} %`;
    return;
  }
  const mpp = stage.mpp * step;
  const um = roundLength(mpp, Math.min(LONGEST_PX, stage.size.width / 4));
  const text = length(um);
  if ($("scale-text").textContent !== text) {
    $("scale-text").textContent = text;
    $("scale").setAttribute("aria-label", `Scale bar, ${text}`);
  }
  $("scale-line").style.width = `${um / mpp}px`;
  const power = magnification(mpp);
  if ($("magnification").textContent !== power) $("magnification").textContent = power;
}
