// The result page: verdict, picture, timeline, persons, facts; on screen and on paper.
import { byId, bytes, clock, h, icon, score, seconds, tone } from "./dom.js";
import { catalogue } from "./intake.js";
import { cutFace, heatOf, personCard } from "./people.js";
import { Stage } from "./stage.js";
import { Timeline } from "./timeline.js";

const MEANING = {
  "signs of manipulation": "At least one face carries traces that the network learnt to tell from untouched faces. Now and then it flags an untouched face too.",
  "no sign found": "The network found none of the traces it knows. It does not know all: this does not make the file authentic.",
  "cannot say": "There is not enough to go by for an answer either way.",
};

/** What the page needs of a report: frames by index, and each person's row at a frame. */
export function viewOf({ report, pictures }) {
  const times = report.frames.map((frame) => frame.time ?? 0);
  const indexOf = (time) => times.reduce((best, t, i) => (Math.abs(t - time) < Math.abs(times[best] - time) ? i : best), 0);
  const thumbnails = [];
  const maps = {};
  for (const picture of pictures) {
    if (picture.kind === "thumbnail") thumbnails[picture.index] = picture.url;
    else maps[picture.person] = picture.url;
  }
  const persons = report.persons.map((person) => {
    const rows = new Map(person.frames.map((row) => [indexOf(row.time ?? 0), row]));
    const best = [...rows].filter(([, row]) => row.usable !== false).sort((a, b) => b[1].score - a[1].score)[0] ?? [...rows][0];
    return { ...person, at: (index) => rows.get(index), heatAt: best?.[0] ?? 0, heatSource: maps[person.id], heat: null };
  });
  return { report, times, thumbnails, persons, indexOf };
}

/** Show a result in `#result`; `actions` are again(model), forget() and another(). */
export function showResult(result, file, runs, actions) {
  const view = viewOf(result);
  const { report } = view;
  const address = URL.createObjectURL(file);
  const go = (index, seek = true) => { stage.show(index, seek); timeline?.show(index); };
  const choose = (id) => {
    stage.choose(id);
    for (const { card } of cards) card.classList.toggle("chosen", card.id === `person-${id}`);
  };
  const stage = new Stage(view, address, choose, (time) => go(view.indexOf(time), false));
  const timeline = report.file.kind === "video" && view.times.length ? new Timeline(view, go) : null;
  const cards = view.persons.map((person) => personCard(person, view, (id) => { choose(id); if (timeline && !view.persons.find((p) => p.id === id).at(stage.index)) go(person.heatAt); }));
  byId("result").replaceChildren(
    printHead(report),
    h("div", { class: "bar-row no-print" },
      h("p", { class: "filename" }, report.file.name),
      h("button", { type: "button", class: "button", onclick: actions.another }, "Look at another file")),
    verdictBox(report),
    h("div", { class: "columns" },
      h("div", {},
        h("div", { class: "card" },
          h("figure", {}, stage.node, h("figcaption", {}, caption(view)), tools(view, stage, go)),
        ),
        timeline && h("section", { class: "card", style: { "margin-top": "1.25rem" }, "aria-labelledby": "timeline-title" },
          h("h2", { id: "timeline-title" }, "Timeline"), timeline.node)),
      h("div", {},
        h("section", { class: "card", "aria-labelledby": "people-title" },
          h("h2", { id: "people-title" }, view.persons.length === 1 ? "The face" : "The faces"),
          view.persons.length ? h("p", { class: "key" }, ...[["k-clear", "below"], ["k-band", "grey band: cannot say"], ["k-over", "over the threshold"]].map(([name, word]) => h("span", { class: name }, word)))
            : h("p", { class: "muted" }, "No face was found."),
          cards.map(({ card }) => card)))),
    h("div", { class: "columns" },
      h("section", { class: "card", "aria-labelledby": "facts-title" }, h("h2", { id: "facts-title" }, "Report"), facts(report, file), numbers(view),
        h("p", { class: "actions no-print", style: { margin: "1.25rem 0 0" } },
          h("button", { type: "button", class: "button", id: "download", onclick: () => download(report) }, "Download JSON"),
          h("button", { type: "button", class: "button", onclick: () => print() }, "Print or save as PDF"),
          h("button", { type: "button", class: "button", id: "forget", onclick: actions.forget }, "Forget it now"))),
      h("section", { class: `card ${runs.length < 2 ? "no-print" : ""}`, "aria-labelledby": "more-title" }, h("h2", { id: "more-title" }, "Other networks"), switcher(report, actions), runsTable(runs))),
    h("p", { class: "only-print" }, "A verdict is a hint for a person who weighs it with other evidence, and no proof. “No sign found” does not mean that a file is authentic."),
  );
  const first = [...view.persons].sort((a, b) => (b.score ?? 0) - (a.score ?? 0))[0];
  if (view.times.length) go(first?.heatAt ?? 0);
  fillFaces(view, stage, cards);
  return () => URL.revokeObjectURL(address);
}

/** What the figures of the network say about a verdict, in whole faces of a hundred. */
function measured(verdict, name) {
  const figures = catalogue.models.find((known) => known.name === name)?.figures ?? {};
  const share = (key) => [figures[key]].flat()[0];
  const hundred = (value) => (value > 0 && value < 0.005 ? "fewer than 1" : String(Math.round(100 * value)));
  const alarms = share("false_alarm_rate");
  if (verdict === "signs of manipulation" && alarms != null) return ` When it was measured, it flagged ${hundred(alarms)} of 100 untouched faces.`;
  const [blended, generated] = [share("swap_found"), share("generated_found")];
  if (verdict !== "no sign found" || blended == null || generated == null) return "";
  return ` When it was measured, it found ${hundred(blended)} of 100 blended and ${hundred(generated)} of 100 generated faces, and missed the others.`;
}

function verdictBox({ verdict, reasons, model }) {
  return h("div", { class: `verdict ${tone(verdict)}` }, icon(tone(verdict)),
    h("div", {}, h("h1", { id: "verdict", tabindex: "-1" }, verdict), h("p", {}, MEANING[verdict] ?? "", measured(verdict, model.name)),
      reasons?.length ? h("ul", {}, reasons.map((reason) => h("li", {}, reason))) : null));
}

function caption({ report, persons, times }) {
  const faces = `${persons.length} ${report.file.kind === "video" ? (persons.length === 1 ? "person" : "persons") : (persons.length === 1 ? "face" : "faces")}`;
  const frames = report.file.kind === "video" ? ` in ${times.length} sampled frames` : "";
  return `${faces}${frames}. The number on a face is its score: the higher of the two below.`;
}

function tools(view, stage, go) {
  if (!view.persons.length) return null;
  const heat = h("input", { type: "checkbox", onchange: () => {
    stage.heat = heat.checked;
    const first = view.persons.find((person) => person.heatSource);
    if (heat.checked && first && !view.persons.some((person) => person.heatAt === stage.index)) go(first.heatAt);
    stage.draw();
  } });
  const marks = h("input", { type: "checkbox", checked: true, onchange: () => { stage.marks = marks.checked; stage.draw(); } });
  return h("div", { class: "tools no-print" }, h("label", {}, marks, "Boxes"),
    view.persons.some((person) => person.heatSource) && h("label", {}, heat, "Where the network looked (not proof)"));
}

/** Fill the small pictures of each person once the big one can be drawn from. */
async function fillFaces(view, stage, cards) {
  await Promise.all(view.persons.map(async (person, index) => {
    const row = person.at(person.heatAt);
    const source = await still(view, stage, person.heatAt);
    const face = source && row && cutFace(source, row.box, view.report.file);
    if (face) cards[index].looks.append(face);
    if (!person.heatSource) return;
    const map = await load(person.heatSource).catch(() => null);
    if (!map) return;
    person.heat = heatOf(map);
    const both = h("canvas", { width: 256, height: 256, role: "img", "aria-label": "The face with the places where the network looked" });
    const context = both.getContext("2d");
    if (face) { context.drawImage(face, 0, 0); context.fillStyle = "rgb(0 0 0 / 45%)"; context.fillRect(0, 0, 256, 256); }
    context.globalCompositeOperation = "screen";
    context.drawImage(person.heat, 0, 0, 256, 256);
    cards[index].looks.append(both);
  }));
  stage.draw();
}

async function still(view, stage, index) {
  if (view.report.file.kind === "image" && !stage.still) {
    const ready = await load(stage.media.src).catch(() => null);
    if (ready) return ready;
  }
  return view.thumbnails[index] ? load(view.thumbnails[index]).catch(() => null) : null;
}

async function load(src) {
  const image = new Image();
  image.src = src;
  await image.decode();
  return image;
}

function facts(report, file) {
  const { model, file: about, seconds: took = {}, limits } = report;
  const limit = (claim, word) => model.thresholds[claim] && `${word}: cannot say from ${score(model.thresholds[claim].low)}, signs from ${score(model.thresholds[claim].high)}`;
  const rows = [
    ["File", about.name],
    ["SHA-256", h("code", { class: "hash" }, about.sha256)],
    ["Kind", `${about.kind === "video" ? "Video" : "Picture"}, ${about.width} × ${about.height} pixels${about.seconds ? `, ${about.seconds.toFixed(1)} s` : ""}, ${bytes(file.size)}`],
    ["Network", `${titleOf(model.name)}, version ${model.version}`],
    ["Thresholds", [limit("swap", "blended"), h("br"), limit("generated", "generated")]],
    ["Time", `${seconds(took.total)}: decoding ${seconds(took.decode)}, finding faces ${seconds(took.detect)}, network ${seconds(took.classify)}`],
    ...(limits?.notes?.length ? [["Notes", limits.notes.join("; ")]] : []),
    ["Looked at", new Date().toLocaleString(undefined, { dateStyle: "long", timeStyle: "short" })],
  ];
  return h("dl", { class: "facts" }, rows.flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));
}

function numbers(view) {
  const rows = view.times.flatMap((time, index) => view.persons.map((person) => [time, person, person.at(index)])).filter(([, , row]) => row);
  if (!rows.length) return null;
  return h("details", {}, h("summary", {}, `All scores (${rows.length})`),
    h("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": "All scores" }, h("table", {},
      h("thead", {}, h("tr", {}, ["Time", "Person", "Blended", "Generated", "Used"].map((name, i) => h("th", { scope: "col", class: i > 1 && i < 4 ? "n" : "" }, name)))),
      h("tbody", {}, rows.map(([time, person, row]) => h("tr", {}, h("td", {}, clock(time)), h("td", {}, String(person.id)), h("td", { class: "n" }, score(row.swap)), h("td", { class: "n" }, score(row.generated)),
        h("td", {}, row.usable === false ? `no: ${row.reason ?? ""}` : "yes")))))));
}

const costOf = (name) => {
  const model = catalogue.models.find((known) => known.name === name);
  return model ? `${bytes(model.bytes)}${model.ms == null ? "" : `, ${Number(model.ms).toFixed(1)} ms a face`}` : "";
};

const titleOf = (name) => catalogue.models.find((model) => model.name === name)?.title ?? name;

function switcher(report, actions) {
  const select = h("select", { id: "switch" }, catalogue.models.map((model) =>
    h("option", { value: model.name, selected: model.name === report.model.name }, `${model.title} (${bytes(model.bytes)})`)));
  return h("form", { class: "switch no-print", onsubmit: (event) => { event.preventDefault(); actions.again(select.value); } },
    h("label", {}, "Look at this file with", select), h("button", { type: "submit", class: "button primary", id: "again" }, "Look again"));
}

/** Every look at this file so far, one line each: what a lighter network changes, and what not. */
function runsTable(runs) {
  return h("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": "Looks at this file" }, h("table", { id: "runs" },
    h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Network"), h("th", { scope: "col" }, "Verdict"), h("th", { scope: "col", class: "n" }, "Score"), h("th", { scope: "col", class: "n" }, "Time"))),
    h("tbody", {}, runs.map((report, index) => h("tr", { class: index === runs.length - 1 ? "lit" : "" },
      h("th", { scope: "row" }, titleOf(report.model.name), h("br"), h("span", { class: "range" }, costOf(report.model.name))), h("td", {}, report.verdict),
      h("td", { class: "n" }, score(report.persons.length ? Math.max(...report.persons.map((person) => person.score ?? 0)) : null)),
      h("td", { class: "n" }, seconds(report.seconds?.classify)))))));
}

function printHead(report) {
  return h("p", { class: "only-print print-head" }, h("strong", {}, "unmask"), `: report on ${report.file.name}`);
}

function download(report) {
  const address = URL.createObjectURL(new Blob([JSON.stringify(report, null, 2)], { type: "application/json" }));
  const stem = report.file.name.replace(/\.[^.]*$/, "") || "file";
  h("a", { href: address, download: `${stem}.unmask.json` }).click();
  setTimeout(() => URL.revokeObjectURL(address), 1000);
}
