// The timeline of a video: thumbnails, one row of bars per person, gaps where there is no face.
import { clock, h, percent, score } from "./dom.js";

/** Which band a row of a person falls into: over, band, below, weak (not used) or gap (no face). */
export function band(row, thresholds) {
  if (!row) return "gap";
  if (row.usable === false) return "weak";
  const reach = (edge) => ["swap", "generated"].some((claim) => row[claim] != null && thresholds[claim] && row[claim] >= thresholds[claim][edge]);
  if (reach("high")) return "over";
  return reach("low") ? "band" : "below";
}

const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);
const WORDS = { gap: "no face", weak: "face not usable", over: "over the threshold", band: "in the grey band", below: "below the threshold" };

export class Timeline {
  constructor(view, onIndex) {
    this.view = view;
    this.onIndex = onIndex;
    const last = view.times.length - 1;
    this.range = h("input", { type: "range", min: 0, max: last, step: 1, value: 0, "aria-label": "Frame", oninput: () => onIndex(Number(this.range.value)) });
    this.line = h("p", { class: "now-line" });
    this.thumbs = view.times.map((time, index) => view.thumbnails[index]
      ? h("img", { src: view.thumbnails[index], alt: "", onclick: () => onIndex(index) }) : h("span", {}));
    this.rows = view.persons.map((person) => view.times.map((_, index) => this.#cell(person, index)));
    this.node = h("div", {},
      h("div", { class: "timeline", tabindex: "0", role: "group", "aria-label": "Timeline, scrolls sideways on narrow screens" },
        h("div", { class: "grid" },
          h("span", { class: "name" }, "Frames"), h("div", { class: "cells thumbs" }, this.thumbs),
          view.persons.flatMap((person, index) => [
            h("span", { class: "name" }, `Person ${person.id}`),
            h("div", { class: "cells bars", role: "img", "aria-label": this.#summary(person) }, this.rows[index]),
          ]),
          h("span", { class: "name" }, "Time"),
          h("div", {}, h("div", { class: "no-print" }, this.range),
            h("div", { class: "times", "aria-hidden": "true" }, ...[0, 0.25, 0.5, 0.75, 1].map((part) => h("span", {}, clock(view.times[Math.round(part * last)]))))),
        )),
      this.line,
      h("p", { class: "key" }, ...[["k-bar-over", "over the threshold"], ["k-bar-band", "grey band"], ["k-bar-clear", "below"], ["k-weak", "face not usable"], ["k-gap", "no face"]]
        .map(([name, word]) => h("span", { class: name }, word))),
    );
  }

  #cell(person, index) {
    const row = person.at(index);
    const kind = band(row, this.view.report.model.thresholds);
    const height = row ? percent(Math.max(0.03, row.score ?? 0.1)) : "0";
    return h("span", { class: `cell ${kind}`, onclick: () => this.onIndex(index), title: `${clock(this.view.times[index])}: ${row ? score(row.score) : ""} ${WORDS[kind]}` },
      h("i", { style: kind === "gap" ? {} : { height } }));
  }

  #summary(person) {
    const kinds = this.view.times.map((_, index) => band(person.at(index), this.view.report.model.thresholds));
    const counted = Object.keys(WORDS).map((kind) => [kinds.filter((k) => k === kind).length, WORDS[kind]]);
    return `Person ${person.id}, ${kinds.length} frames: ${counted.filter(([n]) => n).map(([n, word]) => `${n} ${word}`).join(", ")}`;
  }

  show(index) {
    this.range.value = index;
    const time = clock(this.view.times[index]);
    const found = this.view.persons.map((person) => {
      const row = person.at(index);
      const kind = band(row, this.view.report.model.thresholds);
      return `person ${person.id}: ${row ? `${score(row.score)}, ` : ""}${kind === "weak" && row.reason ? row.reason : WORDS[kind]}`;
    });
    const text = `Frame ${index + 1} of ${this.view.times.length}, at ${time}. ${capital(found.join("; ") || "no face")}.`;
    this.line.textContent = text;
    this.range.setAttribute("aria-valuetext", text);
    const scroller = this.node.firstChild;
    scroller.scrollLeft = this.thumbs[index].offsetLeft - scroller.clientWidth / 2;
    for (const line of [this.thumbs, ...this.rows]) line.forEach((cell, i) => cell.classList.toggle("now", i === index));
  }
}
