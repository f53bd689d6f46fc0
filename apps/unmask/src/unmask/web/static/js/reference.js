// The REST API in words, from its own description.
import { byId, h } from "./dom.js";

for (const node of document.querySelectorAll(".origin")) node.textContent = location.origin;
const spec = await (await fetch("/api/v1/openapi.json")).json();
const METHODS = ["get", "post", "delete"];

function operation(path, method, about) {
  const fields = Object.values(about.requestBody?.content ?? {})[0]?.schema?.properties ?? {};
  const takes = [
    ...(about.parameters ?? []).map((p) => [p.name, `${p.in}${p.required ? ", required" : ""}`, p.description ?? ""]),
    ...Object.entries(fields).map(([name, field]) => [name, field.type === "array" ? "form, several" : "form", (field.items ?? field).description ?? ""]),
  ];
  return h("section", { class: "operation" },
    h("h3", {}, h("span", { class: "method" }, method.toUpperCase()), h("code", {}, path)),
    h("p", {}, ...coded(about.description ?? about.summary ?? "")),
    takes.length ? h("dl", { class: "facts" }, takes.flatMap(([name, where, text]) => [h("dt", {}, h("code", {}, name)), h("dd", {}, `${where}${text ? ": " : ""}${text}`)])) : null,
    h("p", { class: "muted small", style: { "margin-top": "0.5rem" } }, `Answers: ${Object.keys(about.responses).join(", ")}`));
}

byId("operations").replaceChildren(...Object.entries(spec.paths).flatMap(([path, methods]) =>
  METHODS.filter((method) => methods[method]).map((method) => operation(path, method, methods[method]))));
byId("codes").replaceChildren(
  h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Code"), h("th", { scope: "col" }, "Meaning"))),
  h("tbody", {}, Object.entries(spec["x-error-codes"] ?? {}).map(([code, text]) => h("tr", {}, h("th", { scope: "row" }, h("code", {}, code)), h("td", {}, ...coded(text))))));

/** Text with its `code` as elements. */
function coded(text) {
  return text.split("`").map((part, index) => (index % 2 ? h("code", {}, part) : part));
}
