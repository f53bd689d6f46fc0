// The REST API as functions. Every refusal becomes a Refusal with the server's code and sentence.

const BASE = "/api/v1";

export class Refusal extends Error {
  constructor(code, message, retryAfter = 0) {
    super(message);
    this.code = code;
    this.retryAfter = retryAfter;
  }
}

const UNREADABLE = () => new Refusal("unreadable", "The file cannot be read. It may be a folder, or was moved or changed meanwhile: choose it again.");
const OFFLINE = () => new Refusal("offline", "The server cannot be reached. Is it still running?");

async function refusal(response) {
  const body = await response.json().catch(() => ({}));
  const error = body.error ?? { code: `http_${response.status}`, message: "The server gave no reason." };
  return new Refusal(error.code, error.message, Number(response.headers.get("Retry-After")) || 0);
}

export async function get(path, signal) {
  let response;
  try {
    response = await fetch(BASE + path, { signal });
  } catch (error) {
    throw error.name === "AbortError" ? error : OFFLINE();
  }
  if (!response.ok) throw await refusal(response);
  return response.json();
}

/** Send a file; `onSent` hears the share that has been sent. fetch cannot tell that, so XHR it is. */
export function send(file, model, onSent, signal) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    const form = new FormData();
    form.append("model", model);
    form.append("file", file, file.name || "pasted");
    request.upload.onprogress = (event) => event.lengthComputable && onSent(event.loaded / event.total);
    request.onload = () => {
      let body = {};
      try { body = JSON.parse(request.responseText); } catch { /* told below */ }
      if (request.status === 202) return resolve(body);
      const error = body.error ?? { code: `http_${request.status}`, message: "The server gave no reason." };
      return reject(new Refusal(error.code, error.message, Number(request.getResponseHeader("Retry-After")) || 0));
    };
    request.onerror = () => file.slice(0, 1).arrayBuffer().then(() => reject(OFFLINE()), () => reject(UNREADABLE()));
    request.onabort = () => reject(new DOMException("stopped", "AbortError"));
    signal.addEventListener("abort", () => request.abort(), { once: true });
    request.open("POST", `${BASE}/jobs`);
    request.send(form);
  });
}

/** Follow a job to its end; `onStep` hears every change. */
export async function follow(job, onStep, signal) {
  let state = job;
  while (state.state === "queued" || state.state === "running") {
    onStep(state);
    state = await get(`/jobs/${job.id}?wait=10`, signal);
  }
  if (state.error) throw new Refusal(state.error.code, state.error.message);
  return get(`/jobs/${job.id}/result`, signal);
}

/** Forget a job on the server; also when the page goes away. */
export function forget(id) {
  return fetch(`${BASE}/jobs/${id}`, { method: "DELETE", keepalive: true }).catch(() => {});
}
