// What can be taken away: files that are there, and forms that a worker makes when they are first asked for.

import { ask, getJson } from "./api.js";
import { announce, el } from "./dom.js";

const PATIENCE_MS = 10 * 60 * 1000;

/** The downloads of a finished job as elements. */
export async function downloadsElement(job) {
  const here = `/v1/jobs/${job}`;
  const { exports } = await getJson(`${here}/exports`).catch(() => ({ exports: [] }));
  const files = [
    link(`${here}/report`, "Report", "HTML", { target: "_blank", rel: "noopener" }),
    link(`${here}/overlay.zip`, "Overlay", "OME-Zarr, zip", { download: "" }),
    link(`${here}/regions.geojson.gz`, "Regions", "GeoJSON for QuPath, gzip", { download: "" }),
  ];
  return el(
    "details",
    { class: "downloads" },
    el("summary", { text: "Downloads" }),
    el("ul", {}, ...files, ...exports.map((form) => made(form))),
  );
}

function link(href, name, what, more) {
  return el(
    "li",
    {},
    el("a", { href, ...more }, el("span", { text: name }), el("span", { class: "soft small", text: what })),
  );
}

/** A form that may have to be made first. */
function made(form) {
  const state = el("span", { class: "soft small", text: form.file_name });
  const button = el("button", { type: "button", class: "as-link" }, el("span", { text: form.title }), state);
  button.addEventListener("click", async () => {
    button.disabled = true;
    state.textContent = "being made …";
    try {
      await fetchMade(form);
      state.textContent = form.file_name;
      announce(`${form.title} is there.`);
    } catch (problem) {
      state.textContent = problem.shown ?? problem.message;
    } finally {
      button.disabled = false;
    }
  });
  return el("li", {}, button);
}

/** Wait until a form is there, and hand it to the browser. */
async function fetchMade(form) {
  const until = Date.now() + PATIENCE_MS;
  for (let again = form.state === "failed" ? "?again=true" : ""; ; again = "") {
    const answer = await ask(`${form.href}${again}`, { headers: { Range: "bytes=0-0" } });
    if (answer.status !== 202) break;
    if (Date.now() > until) throw new Error("it takes very long; try again later");
    await new Promise((resolve) => setTimeout(resolve, (Number(answer.headers.get("retry-after")) || 2) * 1000));
  }
  const anchor = el("a", { href: form.href, download: form.file_name });
  document.body.append(anchor);
  anchor.click();
  anchor.remove();
}
