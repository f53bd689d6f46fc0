// Taking a file in: choose, drop, paste; and the choice of the network.
import { byId, bytes, count, h, percent } from "./dom.js";
import { get } from "./api.js";

const MIB = 2 ** 20;
let limits = null;
export let catalogue = { models: [], default: "", version: "" };

/** Show limits, networks and samples; call `onFile` for a file that is given, `onSeveral` for more at once. */
export async function prepare(onFile, onSeveral) {
  listen(onFile, onSeveral);
  [limits, catalogue] = await Promise.all([get("/limits"), get("/models")]);
  showLimits();
  showModels();
  const samples = await get("/samples");
  byId("samples").replaceChildren(...samples.map((sample) => sampleCard(sample, onFile)));
}

export const chosenModel = () =>
  document.querySelector("#choices input:checked")?.value ?? catalogue.default;

export function chooseModel(name) {
  for (const input of document.querySelectorAll("#choices input")) input.checked = input.value === name;
}

/** Say why a file is refused before it is sent, or null where the server may judge. */
export function refusalOf(file) {
  if (file.size === 0) return "The file is empty.";
  const video = file.type.startsWith("video/");
  const most = limits && (video ? limits.video_bytes : file.type.startsWith("image/") ? limits.image_bytes : limits.video_bytes);
  if (most && file.size > most) {
    const what = video ? "Videos" : "Pictures";
    return `${what} may have ${most / MIB} MB; this one has ${(file.size / MIB).toFixed(1)} MB.`;
  }
  return null;
}

function listen(onFile, onSeveral) {
  const input = byId("file");
  input.addEventListener("change", () => {
    if (input.files.length) onFile(input.files[0]);
    input.value = "";
  });
  const drop = byId("drop");
  const holdsFile = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
  let depth = 0;
  for (const type of ["dragenter", "dragover", "dragleave", "drop"]) {
    addEventListener(type, (event) => {
      if (!holdsFile(event)) return;
      event.preventDefault();
      if (type === "dragenter") depth += 1;
      if (type === "dragleave") depth -= 1;
      if (type === "drop") depth = 0;
      drop.classList.toggle("over", depth > 0);
      const files = type === "drop" ? event.dataTransfer.files : [];
      if (files.length > 1) onSeveral(files.length);
      else if (files.length) onFile(files[0]);
    });
  }
  addEventListener("paste", (event) => {
    const [file] = event.clipboardData?.files ?? [];
    if (file) onFile(file);
  });
}

function showLimits() {
  const { image_bytes: image, image_pixels: pixels, video_bytes: video, video_seconds: time, frames, types } = limits;
  const cut = types.indexOf("MP4");
  byId("limits").replaceChildren(
    h("span", {}, `Pictures: ${types.slice(0, cut).join(", ")}, up to ${image / MIB} MB and ${pixels / 1e6} megapixels.`),
    h("span", {}, `Videos: ${types.slice(cut).join(", ")}, up to ${video / MIB} MB; ${frames} frames of the first ${time} seconds are looked at.`),
  );
  byId("keep").textContent = Math.round(limits.keep_seconds / 60);
}

function showModels() {
  const largest = Math.max(...catalogue.models.map((model) => model.bytes));
  byId("choices").replaceChildren(...catalogue.models.map((model) =>
    h("label", { class: "choice" },
      h("input", { type: "radio", name: "model", value: model.name, checked: model.name === catalogue.default }),
      h("span", { class: "face" },
        h("span", { class: "dot" }),
        h("span", {}, h("strong", {}, model.title), h("br"),
          h("span", { class: "muted small" }, `${count(model.params)} parameters, ${count(model.macs)} multiply-adds`)),
        h("span", { class: "nums" }, h("strong", {}, bytes(model.bytes)), h("br"), time(model)),
        h("span", { class: "track", "aria-hidden": "true" }, h("i", { style: { width: percent(model.bytes / largest) } })),
      ))));
}

const time = (model) => (model.ms == null ? "time not measured" : `${Number(model.ms).toFixed(1)} ms a face`);

function sampleCard(sample, onFile) {
  const picture = sample.kind === "image"
    ? h("img", { src: sample.url, alt: "", loading: "lazy" })
    : h("video", { src: sample.url, muted: true, preload: "metadata", "aria-hidden": "true", tabindex: "-1" });
  const use = async () => {
    const response = await fetch(sample.url);
    if (response.ok) onFile(new File([await response.blob()], sample.name, { type: sample.type }));
  };
  const kind = sample.kind === "video" ? "Video" : "Picture";
  return h("li", {}, h("button", { type: "button", onclick: use }, picture,
    h("span", { class: "what" }, h("span", { class: "muted" }, kind), sample.title)));
}
