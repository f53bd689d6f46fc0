// The page's states: a file is taken in, looked at, and its result shown; or it failed.
import { follow, forget, Refusal, send } from "./api.js";
import { byId } from "./dom.js";
import { chooseModel, chosenModel, prepare, refusalOf } from "./intake.js";
import { showResult } from "./result.js";

const SECTIONS = ["intake", "working", "failed", "result"];
const PATIENCE = 20; // how often a full server is asked again
let file = null;
let runs = [];
let job = null;
let stop = null;
let release = () => {};

function show(section, focus) {
  for (const id of SECTIONS) byId(id).hidden = id !== section;
  if (focus) byId(focus).focus({ preventScroll: true });
  scrollTo({ top: 0 });
}

const say = (text) => { byId("live").textContent = text; };

function refuse(reason) {
  if (!byId("working").hidden) return;
  const refused = byId("refused");
  refused.hidden = !reason;
  refused.textContent = reason ?? "";
  if (reason) show("intake");
}

function take(chosen) {
  if (!byId("working").hidden) return;
  const reason = refusalOf(chosen);
  refuse(reason);
  if (reason) return;
  file = chosen;
  runs = [];
  look(chosenModel());
}

async function look(model) {
  drop();
  chooseModel(model);
  stop = new AbortController();
  byId("working-file").textContent = file.name;
  step("Sending the file");
  show("working", "working-title");
  document.title = "Looking … unmask";
  try {
    const result = await patiently(model, stop.signal);
    runs.push(result.report);
    release();
    release = showResult(result, file, runs, { again: look, another: back, forget: forgetNow });
    show("result", "verdict");
    document.title = `${result.report.verdict}: unmask`;
    say(`Verdict: ${result.report.verdict}.`);
  } catch (error) {
    if (error.name === "AbortError") return back();
    fail(error);
  }
}

async function patiently(model, signal) {
  for (let attempt = 0; ; attempt += 1) {
    try {
      job = await send(file, model, (share) => step(share < 1 ? "Sending the file" : "The file has arrived", share < 1 ? share : null), signal);
      return await follow(job, progress, signal);
    } catch (error) {
      if (error.code !== "busy" || attempt >= PATIENCE) throw error;
      step("The server is busy; your file is next to be tried");
      await pause(1000 * Math.max(1, error.retryAfter), signal);
    }
  }
}

function pause(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, milliseconds);
    signal.addEventListener("abort", () => { clearTimeout(timer); reject(new DOMException("stopped", "AbortError")); }, { once: true });
  });
}

let spoken = "";

function step(text, share = null, aloud = text) {
  const bar = byId("bar");
  if (share == null) bar.removeAttribute("value");
  else bar.value = share;
  byId("step").textContent = text;
  if (aloud !== spoken) say(aloud);
  spoken = aloud;
}

function progress(state) {
  const { done, total } = state.progress;
  if (state.state === "queued") return step("Waiting for a free worker");
  if (!total) return step("Opening the file");
  const quarter = Math.floor((4 * done) / total);
  return step(total === 1 ? "Looking at the picture" : `Frame ${done} of ${total}`, done / total, quarter ? `${25 * quarter} percent of the frames` : "Looking at the frames");
}

function fail(error) {
  const known = error instanceof Refusal;
  byId("failed-text").textContent = known ? error.message : "The page made a mistake.";
  byId("failed-code").textContent = known ? error.code : String(error.message);
  if (!known) console.error(error);
  show("failed", "failed-title");
  document.title = "Did not work: unmask";
}

function drop() {
  if (job) forget(job.id);
  job = null;
}

function back() {
  drop();
  release();
  release = () => {};
  byId("result").replaceChildren();
  byId("refused").hidden = true;
  show("intake", "file");
  document.title = "unmask: signs of manipulation in faces";
}

function forgetNow() {
  back();
  file = null;
  runs = [];
  say("The result is forgotten.");
}

byId("cancel").addEventListener("click", () => { stop?.abort(); say("Cancelled."); });
byId("failed-back").addEventListener("click", back);
byId("failed-again").addEventListener("click", () => (file ? look(chosenModel()) : back()));
addEventListener("pagehide", (event) => { if (!event.persisted) drop(); });
prepare(take, (count) => refuse(`One file at a time: these are ${count}.`)).catch(fail);
