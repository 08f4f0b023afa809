// Numbers as people read them; every one carries its unit.

const number = (digits) => new Intl.NumberFormat("en-GB", { maximumSignificantDigits: digits });
const THREE = number(3);
const WHOLE = new Intl.NumberFormat("en-GB", { maximumFractionDigits: 0 });

/** A whole number, with thousands apart. */
export const count = (value) => WHOLE.format(value);

/** A count with its noun. */
export const counted = (value, noun) => `${count(value)} ${noun}${value === 1 ? "" : "s"}`;

/** A share in [0, 1] as per cent; never rounded to all or nothing where it is not. */
export function percent(share) {
  if (share > 0 && share < 0.01) return "< 1 %";
  if (share < 1 && share > 0.99) return "> 99 %";
  return `${Math.round(share * 100)} %`;
}

/** An area in µm², as mm² from a hundredth of one on. */
export const area = (um2) => (um2 >= 10000 ? `${THREE.format(um2 / 1e6)} mm²` : `${THREE.format(um2)} µm²`);

/** A length in µm, as mm from one on. */
export const length = (um) => (um >= 1000 ? `${THREE.format(um / 1000)} mm` : `${THREE.format(um)} µm`);

/** Probability with two digits. */
export const probability = (value) => value.toFixed(2);

/** Bytes. */
export function bytes(value) {
  for (const [unit, size] of [
    ["GB", 1e9],
    ["MB", 1e6],
    ["kB", 1e3],
  ]) {
    if (value >= size) return `${THREE.format(value / size)} ${unit}`;
  }
  return `${value} B`;
}

/** Seconds left, roughly. */
export function duration(seconds) {
  if (seconds < 90) return `${Math.max(1, Math.round(seconds))} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return `${THREE.format(seconds / 3600)} h`;
}

/** Objective power that shows a slide at this resolution on screen: 10 / µm per pixel. */
export function magnification(mpp) {
  const power = 10 / mpp;
  return `${power >= 10 ? Math.round(power) : THREE.format(Number(power.toPrecision(2)))}×`;
}

/** A moment, as people here write it. */
export const when = (moment) => new Date(moment).toLocaleString([], { dateStyle: "medium", timeStyle: "short" });

/** How to name a slide that may have no name: a file name can hold a patient's number, so most have none. */
export const slideName = (slide) => slide.name || `Slide ${slide.slide_id.slice(0, 6)}`;
