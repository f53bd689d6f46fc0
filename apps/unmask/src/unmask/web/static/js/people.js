// One card per person: the verdict, both scores on their scale, and where the network looked.
import { h, percent, score, tone } from "./dom.js";
import { square } from "./stage.js";

const CLAIMS = {
  swap: ["Blended", "traces of one face painted over another"],
  generated: ["Generated", "traces of a face made by a generator"],
};

/** A score on its scale from 0 to 1, with the grey band between the two thresholds. */
export function meter(claim, value, { low, high }) {
  const [name, meaning] = CLAIMS[claim];
  const where = value == null ? "no score" : value >= high ? "over the threshold" : value >= low ? "in the grey band" : "below the threshold";
  return h("div", { class: "meter" },
    h("div", { class: "line" }, h("span", { title: meaning }, name), h("span", {}, h("b", {}, score(value)), h("span", { class: "muted" }, ` ${where}`))),
    h("div", { class: "scale", "aria-hidden": "true" },
      h("i", { class: "band", style: { left: percent(low), width: percent(high - low) } }),
      h("i", { class: "over", style: { left: percent(high), width: percent(1 - high) } }),
      value != null && h("i", { class: "pin", style: { left: percent(value) } })));
}

export function personCard(person, view, onChoose) {
  const thresholds = view.report.model.thresholds;
  const looks = h("div", { class: "looks" });
  const caption = h("figcaption", {}, person.heatSource
    ? "Left: the face as it was cut out. Right: where the network looked for a seam. This is not proof: it also lights up at hair, glasses and sharp shadows."
    : "The face as it was cut out.");
  const card = h("article", { class: "person", id: `person-${person.id}`, "aria-labelledby": `person-${person.id}-name` },
    h("header", {}, h("h3", { id: `person-${person.id}-name` }, `Person ${person.id}`), h("span", { class: `badge ${tone(person.verdict)}` }, person.verdict)),
    ...Object.keys(CLAIMS).filter((claim) => thresholds[claim]).map((claim) => meter(claim, person[claim], thresholds[claim])),
    person.reasons?.length ? h("ul", {}, person.reasons.map((reason) => h("li", {}, reason))) : null,
    h("figure", {}, looks, caption),
  );
  card.addEventListener("click", () => onChoose(person.id));
  return { card, looks };
}

/** Cut the face out of what the browser shows, as the network got it; null where that is not possible. */
export function cutFace(media, box, file, size = 256) {
  const canvas = h("canvas", { width: size, height: size, role: "img", "aria-label": "The face" });
  const context = canvas.getContext("2d");
  const natural = media.videoWidth ?? media.naturalWidth;
  const scale = natural / file.width;
  if (!natural) return null;
  const [left, top, side] = square(box).map((value) => value * scale);
  context.drawImage(media, left, top, side, side, 0, 0, size, size);
  return canvas;
}

/** The map in colour: nothing where it is dark, from red to white where the network looked. */
export function heatOf(image) {
  const canvas = h("canvas", { width: image.naturalWidth, height: image.naturalHeight, role: "img", "aria-label": "Where the network looked" });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0);
  const data = context.getImageData(0, 0, canvas.width, canvas.height);
  for (let i = 0; i < data.data.length; i += 4) {
    const v = data.data[i] / 255;
    data.data[i] = 255 * Math.min(1, 1.6 * v);
    data.data[i + 1] = 255 * Math.max(0, Math.min(1, 2 * v - 0.6));
    data.data[i + 2] = 255 * Math.max(0, Math.min(1, 3 * v - 2));
    data.data[i + 3] = 255 * Math.min(1, 1.8 * v);
  }
  context.putImageData(data, 0, 0);
  return canvas;
}
