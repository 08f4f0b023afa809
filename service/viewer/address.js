// What is looked at, in the address: #slide=…, #job=…&region=…, and where: &at=x,y,px0 per screen pixel.

/** Read the address. */
export function readAddress() {
  const given = new URLSearchParams(location.hash.slice(1));
  const at = (given.get("at") || "").split(",").map(Number);
  return {
    slide: given.get("slide"),
    job: given.get("job"),
    region: given.get("region"),
    at: at.length === 3 && at.every(Number.isFinite) && at[2] > 0 ? at : null,
  };
}

/**
 * Write the address.
 * @param {{slide?: string, job?: string, region?: string, at?: number[]}} wanted
 * @param {boolean} [step] whether the back button should lead to what was there before
 */
export function writeAddress({ slide, job, region, at }, step = false) {
  const parts = [];
  if (job) parts.push(`job=${job}`);
  else if (slide) parts.push(`slide=${slide}`);
  if (job && region) parts.push(`region=${region}`);
  if (at)
    parts.push(
      `at=${at.map((value, index) => (index < 2 ? Math.round(value) : Number(value.toPrecision(4)))).join(",")}`,
    );
  const url = parts.length ? `#${parts.join("&")}` : location.pathname;
  if (step) history.pushState(null, "", url);
  else history.replaceState(null, "", url);
}
