// Shows an OpenAPI description. Text only ever becomes text: nothing here makes markup of a string.
"use strict";

let description = {};

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function found(value) {
  // a reference leads to components only, and one step at a time
  const [, , kind, name] = (value?.$ref ?? "").split("/");
  return name ? description.components?.[kind]?.[name] ?? {} : value ?? {};
}

function typed(schema) {
  if (schema.$ref) return schema.$ref.split("/").pop();
  const either = schema.anyOf ?? schema.oneOf;
  if (either) return either.map(typed).join(" | ");
  if (schema.enum) return schema.enum.map((one) => JSON.stringify(one)).join(" | ");
  if ("const" in schema) return JSON.stringify(schema.const);
  if (schema.type === "array") return `list of ${typed(schema.items ?? {})}`;
  return [schema.type ?? "any", schema.format].filter(Boolean).join(", ");
}

function bounds(schema) {
  const told = ["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "minLength",
    "maxLength", "minItems", "maxItems", "pattern", "default"];
  return told.filter((key) => key in schema)
    .map((key) => `${key} ${JSON.stringify(schema[key])}`).join(", ");
}

function table(titles, rows) {
  const cells = (row, kind) => element("tr", {}, ...row.map((text) => element(kind, {}, text ?? "")));
  return element("table", {}, cells(titles, "th"), ...rows.map((row) => cells(row, "td")));
}

function fields(schema) {
  const known = found(schema);
  if (!known.properties) return element("p", {}, `${typed(schema)} ${bounds(schema)}`);
  const required = known.required ?? [];
  return table(["field", "type", "", ""], Object.entries(known.properties).map(([name, one]) =>
    [name, typed(one), required.includes(name) ? "required" : "",
      [bounds(one), one.description].filter(Boolean).join(". ")]));
}

function sample(schema, depth = 0) {
  const known = found(schema);
  if (depth > 5) return null;
  if ("default" in known) return known.default;
  if (known.examples?.length) return known.examples[0];
  if (known.enum) return known.enum[0];
  if (known.anyOf) return sample(known.anyOf[0], depth + 1);
  if (known.properties) {
    return Object.fromEntries(Object.entries(known.properties)
      .map(([name, one]) => [name, sample(one, depth + 1)]));
  }
  return { string: "", integer: known.minimum ?? 0, number: 0, boolean: false, array: [], object: {} }[
    known.type] ?? null;
}

function trial(path, method, operation, schema) {
  const inputs = new Map();
  const form = element("form", {}, element("h3", {}, "Try it"));
  for (const one of operation.parameters ?? []) {
    const input = element("input", { autocomplete: "off" });
    inputs.set(one, input);
    form.append(element("label", {}, `${one.name} `, input), " ");
  }
  let text = null;
  if (schema) {
    text = element("textarea", { "aria-label": "body" });
    text.value = JSON.stringify(sample(schema), null, 2);
    form.append(text);
  }
  const shown = element("pre", { hidden: "" });
  form.append(element("button", {}, "Send"), shown);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    let target = path;
    const query = new URLSearchParams();
    const headers = {};
    for (const [one, input] of inputs) {
      if (one.in === "path") target = target.replace(`{${one.name}}`, encodeURIComponent(input.value));
      else if (input.value === "") continue;
      else if (one.in === "header") headers[one.name] = input.value;
      else if (one.schema?.type !== "array") query.append(one.name, input.value);
      else for (const item of input.value.split(",")) query.append(one.name, item.trim());
    }
    const token = document.getElementById("token").value;
    if (token && operation.security) headers.Authorization = `Bearer ${token}`;
    if (text) headers["Content-Type"] = "application/json";
    const asked = String(query);
    shown.hidden = false;
    try {
      const answer = await fetch(asked ? `${target}?${asked}` : target,
        { method: method.toUpperCase(), headers, body: text?.value });
      const body = await answer.text();
      let pretty = body;
      try { pretty = JSON.stringify(JSON.parse(body), null, 2); } catch { /* as it came */ }
      shown.textContent = `${answer.status} ${answer.statusText}\n\n${pretty}`;
    } catch (error) {
      shown.textContent = String(error);
    }
  });
  return form;
}

function shown(path, method, operation) {
  const inside = element("div");
  if (operation.description) inside.append(element("p", {}, operation.description));
  if (operation.parameters) {
    inside.append(element("h3", {}, "Parameters"), table(["name", "in", "type", "", ""],
      operation.parameters.map((one) => [one.name, one.in, typed(one.schema ?? {}),
        one.required ? "required" : "", bounds(one.schema ?? {})])));
  }
  const schema = operation.requestBody?.content?.["application/json"]?.schema;
  if (schema) inside.append(element("h3", {}, `Body: ${typed(schema)}`), fields(schema));
  inside.append(element("h3", {}, "Answers"), table(["status", "", "body"],
    Object.entries(operation.responses ?? {}).map(([status, one]) => {
      const answer = found(one);
      const kinds = Object.entries(answer.content ?? {});
      return [status, answer.description,
        kinds.map(([kind, { schema: of }]) => of ? typed(of) : kind).join(", ")];
    })));
  const details = element("details", { "data-text": `${method} ${path} ${operation.summary ?? ""}` },
    element("summary", {}, element("span", { class: `method ${method}` }, method),
      element("code", {}, path), element("span", { class: "dim" }, operation.summary ?? "")), inside);
  details.addEventListener("toggle", () => inside.append(trial(path, method, operation, schema)),
    { once: true });
  return details;
}

function filter(text) {
  for (const one of document.querySelectorAll("details[data-text]")) {
    one.hidden = !one.dataset.text.toLowerCase().includes(text.toLowerCase());
  }
}

async function start() {
  const routes = document.getElementById("routes");
  try {
    const answer = await fetch(document.documentElement.dataset.description);
    if (!answer.ok) throw new Error(`The description is not to be had: ${answer.status}`);
    description = await answer.json();
  } catch (error) {
    routes.textContent = String(error);
    return;
  }
  const { title, version, description: about } = description.info;
  document.title = title;
  document.getElementById("title").textContent = `${title} ${version}`;
  document.getElementById("about").textContent = about ?? "";
  routes.replaceChildren();
  for (const [path, operations] of Object.entries(description.paths)) {
    for (const [method, operation] of Object.entries(operations)) {
      routes.append(shown(path, method, operation));
    }
  }
  const schemas = document.getElementById("schemas");
  for (const [name, schema] of Object.entries(description.components?.schemas ?? {})) {
    schemas.append(element("details", {}, element("summary", {}, element("code", {}, name),
      element("span", { class: "dim" }, schema.description ?? "")), element("div", {}, fields(schema))));
  }
  document.getElementById("filter").addEventListener("input", (event) => filter(event.target.value));
}

start();
