// Small helpers: elements without markup in strings, and numbers as people read them.

/** Make an element; `on…` are listeners, `style` an object, true/false attributes are set or left out. */
export function h(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === false || value == null) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "style") for (const [key, v] of Object.entries(value)) node.style.setProperty(key, v);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child != null && child !== false));
  return node;
}

const SVG = "http://www.w3.org/2000/svg";
const ICONS = {
  signs: "M24 6 45 42H3L24 6Zm0 13v10m0 6v.1",
  clear: "M21 5a16 16 0 1 1 0 32 16 16 0 0 1 0-32Zm12 28 10 10M14 21h14",
  unsure: "M24 4a20 20 0 1 1 0 40 20 20 0 0 1 0-40Zm-6 14c0-8 12-8 12 0 0 5-6 5-6 10m0 6v.1",
};

export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 48 48");
  svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", ICONS[name]);
  if (name === "unsure") path.setAttribute("stroke-dasharray", "126 0");
  svg.append(path);
  return svg;
}

export const byId = (id) => document.getElementById(id);
export const score = (value) => (value == null ? "–" : Number(value).toFixed(2));
export function seconds(value) {
  if (value == null) return "–";
  if (value < 0.01) return `${(1000 * value).toFixed(1)} ms`;
  return value < 1 ? `${Math.round(1000 * value)} ms` : `${value.toFixed(1)} s`;
}
export const clock = (value) => `${Math.floor(value / 60)}:${(value % 60).toFixed(1).padStart(4, "0")}`;
export const percent = (value) => `${Math.min(100, Math.max(0, 100 * value))}%`;

export function bytes(value) {
  if (value >= 1e6) return `${(value / 1e6).toFixed(value < 1e7 ? 1 : 0)} MB`;
  return value >= 1e3 ? `${(value / 1e3).toFixed(0)} kB` : `${value} bytes`;
}

export function count(value) {
  if (value >= 1e9) return `${(value / 1e9).toFixed(2)} G`;
  if (value >= 1e6) return `${(value / 1e6).toFixed(value < 1e7 ? 1 : 0)} M`;
  return value >= 1e3 ? `${(value / 1e3).toFixed(0)} k` : `${value}`;
}

/** The class that a verdict is coloured by; colour never stands alone. */
export function tone(verdict) {
  return { "signs of manipulation": "signs", "no sign found": "clear" }[verdict] ?? "unsure";
}
