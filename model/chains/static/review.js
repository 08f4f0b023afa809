// The review page: one sample at a time, decisions sent at once; everything it shows comes from this machine.
"use strict";

const byId = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
let queue = { states: [], location_words: [] };
let sample = null;
let busy = false;
let checking = 0;

function element(tag, text = "", className = "") {
  const made = document.createElement(tag);
  if (text) made.textContent = text;
  if (className) made.className = className;
  return made;
}

async function call(path, body) {
  const options = body === undefined ? {} : {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body),
  };
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Error("The review server does not answer. Start it again: what was decided is kept.");
  }
  const told = await response.json().catch(() => ({}));
  if (!response.ok) {
    throw new Error(typeof told.detail === "string" ? told.detail : `not accepted (${response.status})`);
  }
  return told;
}

let quiet;
function say(text, bad = false) {
  const status = byId("status");
  status.className = bad ? "bad" : "";
  status.textContent = text;
  clearTimeout(quiet);
  quiet = setTimeout(() => { status.textContent = ""; }, bad ? 9000 : 2500);
}

async function safely(work) {
  if (busy) return;
  busy = true;
  try {
    await work();
  } catch (error) {
    say(error.message, true);
  } finally {
    busy = false;
  }
}

function showProgress(progress) {
  const done = progress.total - progress.unreviewed;
  for (const state of ["accepted", "edited", "rejected"]) {
    byId("bar").querySelector(`.${state}`).style.width = `${(100 * progress[state]) / progress.total}%`;
  }
  byId("bar").setAttribute("aria-valuemax", progress.total);
  byId("bar").setAttribute("aria-valuenow", done);
  byId("counts").textContent = `${done} of ${progress.total} reviewed`;
  byId("bar").title = `${progress.accepted} accepted, ${progress.edited} edited, ${progress.rejected} rejected`;
}

// The chain as paragraphs: thought and conclusion, location words marked, <SEG> as a chip, problems underlined.
function showChain(text, problems) {
  const parts = text.match(/^\s*<think>([\s\S]*)<\/think>([\s\S]*)$/);
  const box = byId("chain");
  box.replaceChildren();
  const paragraphs = parts ? [["Thought", parts[1]], ["Conclusion", parts[2]]] : [["Not in the form of an answer", text]];
  for (const [name, words] of paragraphs) {
    const paragraph = element("p");
    paragraph.append(element("small", name), ...marked(words.trim(), problems));
    box.append(paragraph);
  }
}

function marked(text, problems) {
  const wrong = ranges(text, problems.map((problem) => problem.quote).filter(Boolean));
  const token = new RegExp(`(<SEG>|\\b(?:${queue.location_words.join("|")})\\b)`, "i");
  const cuts = new Set([0, text.length, ...wrong.flat()]);
  let at = 0;
  for (const piece of text.split(token)) {
    cuts.add(at);
    at += piece.length;
  }
  const places = [...cuts].sort((a, b) => a - b);
  return places.slice(1).map((end, i) => {
    const start = places[i];
    const words = text.slice(start, end);
    const tag = words === "<SEG>" ? "span" : token.test(words) && !/\s/.test(words.trim()) ? "mark" : "span";
    const node = element(tag, words, words === "<SEG>" ? "seg" : "");
    if (wrong.some(([from, to]) => from <= start && end <= to)) node.classList.add("wrong");
    return node;
  });
}

function ranges(text, quotes) {
  const low = text.toLowerCase();
  return quotes.map((quote) => [low.indexOf(quote.toLowerCase()), quote.length])
    .filter(([at]) => at >= 0).map(([at, length]) => [at, at + length]);
}

function showProblems(problems) {
  const list = byId("problems");
  list.replaceChildren();
  for (const problem of problems) {
    const item = element("li");
    item.append(element("b", problem.code), problem.message);
    if (problem.blocking) item.append(element("i", " – must be corrected"));
    list.append(item);
  }
  if (!problems.length) list.append(element("li", "✓ Nothing found that picture or mask contradict.", "good"));
}

function showPicture() {
  const { width, height, outlines, targets } = sample;
  const frame = document.querySelector(".frame");
  frame.style.aspectRatio = `${width} / ${height}`;
  const image = byId("image");
  image.src = `/api/samples/${sample.index}/image.png`;
  image.alt = `Histology picture, ${width} by ${height} pixels. ` +
    (targets.length ? `Outlined: ${targets.join(", ")}.` : "The target is not in it.");
  const svg = byId("outline");
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.replaceChildren(...outlines.map((outline) => {
    const group = document.createElementNS(SVG, "g");
    if (!outline.target) group.setAttribute("class", "other");
    for (const name of ["halo", "line"]) {
      const path = document.createElementNS(SVG, "path");
      path.setAttribute("class", name);
      path.setAttribute("d", outline.path);
      group.append(path);
    }
    return group;
  }));
  const legend = byId("legend");
  legend.replaceChildren();
  for (const outline of outlines) {
    legend.append(element("b", "", outline.target ? "" : "other"), outline.name + (outline.target ? "" : " (not asked for)"));
  }
  if (!outlines.length) legend.textContent = "nothing outlined";
}

function showFacts() {
  byId("about").replaceChildren(...Object.entries(sample.about).map(([name, value]) => {
    const pair = element("div");
    const told = name === "mpp" ? `${value} µm/px` : name === "magnification" ? `${value}×` : String(value);
    pair.append(element("dt", name === "mpp" ? "resolution" : name), element("dd", told));
    return pair;
  }));
  byId("measured").replaceChildren(...sample.measured.map((structure) => {
    const table = element("table");
    const caption = element("caption", structure.name);
    caption.append(element("span", structure.target ? " – target" : " – also there"));
    table.append(caption);
    for (const [name, value] of structure.rows) {
      const row = element("tr");
      const head = element("th", name);
      head.scope = "row";
      row.append(head, element("td", value));
      table.append(row);
    }
    return table;
  }));
  if (!sample.measured.length) byId("measured").append(element("p", "No structure is known in this picture."));
}

function showSample() {
  byId("place").textContent = `${sample.index + 1} of ${queue.states.length}`;
  byId("state").textContent = sample.stale ? "written anew since it was reviewed" : sample.state;
  byId("state").className = `state ${sample.state}`;
  const when = sample.time ? new Date(sample.time).toLocaleString() : "";
  byId("who").textContent = sample.state === "unreviewed" ? `written by ${sample.generator || "unknown"}`
    : `by ${sample.reviewer}, ${when}`;
  byId("query").textContent = sample.query;
  byId("due").textContent = sample.targets.length ? `Expected: ${sample.targets.map((name) => `${name} <SEG>`).join(", ")}`
    : sample.kind === "unknown" ? "Expected: never taught, so it declines without <SEG>" : "Expected: the target is absent, so no <SEG>";
  byId("note").value = sample.note;
  byId("editor").hidden = true;
  byId("chain").hidden = false;
  showPicture();
  showFacts();
  showChain(sample.chain, sample.problems);
  showProblems(sample.problems);
  byId("accept").disabled = sample.blocked;
  byId("accept").title = sample.blocked ? "Training could not read this chain: edit or reject it" : "";
  byId("edit").disabled = byId("reject").disabled = byId("undo").disabled = false;
  byId("previous").disabled = sample.index === 0;
  byId("next").disabled = sample.index === queue.states.length - 1;
}

async function open(index) {
  byId("main").setAttribute("aria-busy", "true");
  try {
    sample = await call(`/api/samples/${index}`);
    showSample();
    history.replaceState(null, "", `#${index + 1}`);
    window.scrollTo({ top: 0 });
  } finally {
    byId("main").setAttribute("aria-busy", "false");
  }
}

async function decide(state, chain) {
  const body = { state, note: byId("note").value };
  if (chain !== undefined) body.chain = chain;
  const told = await call(`/api/samples/${sample.index}/decision`, body);
  queue.states[sample.index] = told.state;
  showProgress(told.progress);
  const after = queue.states.indexOf("unreviewed", sample.index + 1);
  const next = after >= 0 ? after : queue.states.indexOf("unreviewed");
  say(next < 0 ? `${told.state} – all are reviewed` : told.state);
  await open(next >= 0 ? next : sample.index);
  byId("chain").focus({ preventScroll: true });
}

async function undo() {
  const told = await call("/api/undo", {});
  showProgress(told.progress);
  say("taken back");
  if (told.index !== null) {
    queue.states[told.index] = told.state;
    await open(told.index);
  }
}

function edit() {
  if (!sample || !byId("editor").hidden) return;
  byId("chain").hidden = true;
  byId("editor").hidden = false;
  byId("draft").value = sample.chain;
  for (const id of ["accept", "edit", "reject", "previous", "next", "undo"]) byId(id).disabled = true;
  byId("draft").focus();
  check();
}

let pause;
function checkSoon() {
  byId("save").disabled = true;
  clearTimeout(pause);
  pause = setTimeout(check, 250);
}

async function check() {
  const turn = ++checking;
  try {
    const told = await call(`/api/samples/${sample.index}/check`, { chain: byId("draft").value });
    if (turn !== checking || byId("editor").hidden) return;
    showProblems(told.problems);
    byId("save").disabled = told.blocked;
    byId("save").title = told.blocked ? "Training could not read this chain" : "";
  } catch (error) {
    say(error.message, true);
  }
}

const step = (by) => {
  const index = sample.index + by;
  if (index >= 0 && index < queue.states.length) safely(() => open(index));
};
const toggle = () => { byId("outline").style.visibility = byId("outlined").checked ? "" : "hidden"; };
const editing = () => !byId("editor").hidden;

byId("accept").onclick = () => safely(() => decide("accepted"));
byId("reject").onclick = () => safely(() => decide("rejected"));
byId("edit").onclick = edit;
byId("undo").onclick = () => safely(undo);
byId("previous").onclick = () => step(-1);
byId("next").onclick = () => step(1);
byId("cancel").onclick = () => { checking += 1; showSample(); byId("edit").focus(); };
byId("restore").onclick = () => { byId("draft").value = sample.written; check(); };
byId("draft").oninput = checkSoon;
byId("outlined").onchange = toggle;
byId("editor").onsubmit = (event) => {
  event.preventDefault();
  if (!byId("save").disabled) safely(() => decide("edited", byId("draft").value));
};

document.addEventListener("keydown", (event) => {
  if (!sample) return;
  if (event.key === "Escape" && editing()) return byId("cancel").click();
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && editing()) return byId("editor").requestSubmit();
  if (event.ctrlKey || event.metaKey || event.altKey || editing() || event.target.matches("textarea, input[type=text]")) return;
  const buttons = {
    a: "accept", e: "edit", r: "reject", u: "undo", ArrowLeft: "previous", p: "previous", ArrowRight: "next", n: "next",
  };
  if (event.key === "o") {
    byId("outlined").checked = !byId("outlined").checked;
    toggle();
  } else if (buttons[event.key]) {
    event.preventDefault();
    byId(buttons[event.key]).click();
  }
});

const asked = () => {
  const index = Number(location.hash.slice(1)) - 1;
  return index >= 0 && index < queue.states.length ? index : -1;
};
window.onhashchange = () => { if (asked() >= 0 && !editing()) safely(() => open(asked())); };

safely(async () => {
  queue = await call("/api/queue");
  byId("title").textContent = queue.title;
  showProgress(queue.progress);
  await open(asked() >= 0 ? asked() : queue.first);
});
