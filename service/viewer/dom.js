// Elements, made and found. Text always goes in as text: nothing that came from a server is ever parsed as markup.

/** The element with an id. */
export const $ = (id) => document.getElementById(id);

/**
 * A new element.
 * @param {string} tag
 * @param {object} [given] attributes; `on…` are listeners, `class`, `data` and `text` what their names say
 * @param {...(Node|string|null)} children
 */
export function el(tag, given = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(given)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name === "text") made.textContent = value;
    else if (name === "data") Object.assign(made.dataset, value);
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/** A patch of a query's colour. */
export function swatch([red, green, blue]) {
  const made = el("i", { class: "swatch", "aria-hidden": "true" });
  made.style.backgroundColor = `rgb(${red} ${green} ${blue})`;
  return made;
}

/** Tell people who listen instead of looking. */
export function announce(text) {
  $("announcer").textContent = text;
}

/** Press one button of a group. */
export function press(buttons, pressed) {
  for (const button of buttons) button.setAttribute("aria-pressed", String(button === pressed));
}
