// The measured figures of every network, from the list that ships with the weights.
import { get } from "./api.js";
import { byId, bytes, count, h } from "./dom.js";

const NAMES = {
  frame_auc: "AUC, single pictures", video_auc: "AUC, whole videos", auc: "AUC", found: "Found at the threshold",
  brier_uncalibrated: "Brier score before calibration", ece_uncalibrated: "Calibration error before calibration",
  eer: "Equal error rate", ap: "Average precision", recall_at_1: "Found at 1 % false alarms", recall_at_5: "Found at 5 % false alarms",
  brier: "Brier score", ece: "Calibration error", undecided: "Share of “cannot say”", false_alarm_rate: "False alarms on untouched faces", false_alarms: "False alarms on untouched faces",
};
const CLAIMS = { swap: "Blended faces", generated: "Wholly generated faces" };
const isFigure = (value) => (Array.isArray(value) && value.length === 3 && value.every((v) => typeof v === "number")) || typeof value === "number";
const pretty = (key) => NAMES[key] ?? key.replaceAll("_", " ").replace(/^./, (c) => c.toUpperCase());
const number = (value) => (Number.isInteger(value) && value > 1 ? String(value) : value.toFixed(3));

/** Figures may be grouped: {"auc": [...]} or {"swap": {"auc": [...]}}; give flat rows per group. */
function grouped(models) {
  const groups = new Map();
  const put = (group, key, model, value) => {
    if (!groups.has(group)) groups.set(group, new Map());
    const rows = groups.get(group);
    if (!rows.has(key)) rows.set(key, {});
    rows.get(key)[model] = value;
  };
  const walk = (path, value, model) => {
    for (const [key, inner] of Object.entries(value ?? {})) {
      const [, claim, rest] = key.match(/^(swap|generated)_(.+)$/) ?? [];
      if (isFigure(inner)) put(claim ? CLAIMS[claim] : path || "Verdicts", rest ?? key, model, inner);
      else if (inner && typeof inner === "object" && !Array.isArray(inner)) walk(path ? `${path}, ${pretty(key).toLowerCase()}` : pretty(key), inner, model);
    }
  };
  for (const model of models) walk("", model.figures, model.name);
  return groups;
}

const cell = (value) => value == null ? "–" : Array.isArray(value)
  ? [number(value[0]), " ", h("span", { class: "range" }, `[${number(value[1])}, ${number(value[2])}]`)] : number(value);

function table(models, caption, rows) {
  return h("div", { class: "card", style: { "margin-bottom": "1.25rem" } }, h("h3", {}, caption),
    h("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": caption }, h("table", {},
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, h("span", { class: "visually-hidden" }, "Figure")), models.map((model) => h("th", { scope: "col", class: "n" }, model.title)))),
      h("tbody", {}, rows.map(([name, values]) => h("tr", {}, h("th", { scope: "row" }, name), values.map((value) => h("td", { class: "n" }, value))))))));
}

const { models, version } = await get("/models");
const size = [
  ["Size", models.map((model) => bytes(model.bytes))],
  ["Parameters", models.map((model) => count(model.params))],
  ["Multiply-adds a face", models.map((model) => count(model.macs))],
  ["Time a face, one thread", models.map((model) => (model.ms == null ? "–" : `${Number(model.ms).toFixed(1)} ms`))],
  ...["swap", "generated"].map((claim) => [`Thresholds, ${claim === "swap" ? "blended" : "generated"}`,
    models.map((model) => (model.thresholds?.[claim] ? `${model.thresholds[claim].low.toFixed(2)} to ${model.thresholds[claim].high.toFixed(2)}` : "–"))]),
];
const found = [...grouped(models)];
byId("figures").replaceChildren(
  ...found.map(([group, rows]) => table(models, group, [...rows].map(([key, values]) => [pretty(key), models.map((model) => cell(values[model.name]))]))),
  found.length ? "" : h("p", { class: "notice" }, "No figures ship with these weights, so nothing may be claimed for them."),
  table(models, `What it costs (weights ${version})`, size),
);
