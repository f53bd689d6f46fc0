// The picture or video with a box and a score on every face.
import { h, score, tone } from "./dom.js";

/** The square around a box that the network is given: a twentieth of the longer side more at each end. */
export function square([x0, y0, x1, y1]) {
  const side = Math.max(x1 - x0, y1 - y0) * 1.1;
  return [(x0 + x1 - side) / 2, (y0 + y1 - side) / 2, side];
}

export class Stage {
  /** `view` is what result.js makes of a report; `onPerson` hears which face was chosen. */
  constructor(view, address, onPerson, onTime) {
    this.view = view;
    this.boxes = h("div", { class: "boxes" });
    this.media = this.#media(address, onTime);
    this.node = h("div", { class: "stage" }, this.media, this.boxes);
    this.onPerson = onPerson;
    this.heat = false;
    this.marks = true;
    this.index = 0;
  }

  #media(address, onTime) {
    const { file } = this.view.report;
    if (file.kind === "image") {
      const image = h("img", { src: address, alt: `The picture that was looked at, ${file.name}`, width: file.width, height: file.height });
      image.addEventListener("error", () => this.#fallBack(image), { once: true });
      return image;
    }
    const video = h("video", { src: address, controls: true, muted: true, playsinline: true, preload: "auto",
      width: file.width, height: file.height, "aria-label": `The video that was looked at, ${file.name}` });
    video.muted = true;
    video.addEventListener("error", () => this.#fallBack(video), { once: true });
    video.addEventListener("timeupdate", () => video.paused || onTime(video.currentTime));
    return video;
  }

  /** Where the browser cannot show the file, the thumbnails that the server made stand in. */
  #fallBack(media) {
    const src = this.view.thumbnails[this.index];
    if (!src) return;
    this.media = h("img", { src, alt: "A frame that was looked at", class: "enlarged",
      width: this.view.report.file.width, height: this.view.report.file.height });
    media.replaceWith(this.media);
    this.still = true;
  }

  /** Show a sampled frame; `seek` moves the video there too. */
  show(index, seek = true) {
    this.index = index;
    if (this.still) this.media.src = this.view.thumbnails[index] ?? "";
    else if (seek && this.media instanceof HTMLVideoElement) {
      this.media.pause();
      this.media.currentTime = this.view.times[index] + 0.001;
    }
    this.draw();
  }

  draw() {
    const { width, height } = this.view.report.file;
    const at = (x, y, w, tall) => ({ left: percent(x / width), top: percent(y / height), width: percent(w / width), height: percent(tall / height) });
    const nodes = [];
    for (const person of this.view.persons) {
      const row = person.at(this.index);
      if (!row) continue;
      const [x0, y0, x1, y1] = row.box;
      if (this.heat && person.heat && person.heatAt === this.index) {
        const [left, top, side] = square(row.box);
        person.heat.className = "heat";
        for (const [key, value] of Object.entries(at(left, top, side, side))) person.heat.style[key] = value;
        nodes.push(person.heat);
      }
      if (!this.marks) continue;
      const label = `Person ${person.id}, score ${score(row.score)}, ${row.usable === false ? `not used: ${row.reason}` : person.verdict}`;
      nodes.push(h("button", {
        type: "button", class: `box ${row.usable === false ? "unsure" : tone(person.verdict)} ${y0 / height < 0.12 ? "low" : ""}`,
        style: at(x0, y0, x1 - x0, y1 - y0), "aria-label": label, title: label,
        "aria-pressed": String(person.id === this.chosen), onclick: () => this.onPerson(person.id),
      }, h("b", {}, `${person.id} · ${score(row.score)}`)));
    }
    this.boxes.replaceChildren(...nodes);
  }

  choose(id) {
    this.chosen = id;
    this.draw();
  }
}

const percent = (value) => `${(100 * value).toFixed(3)}%`;
