"use strict";

const element = (tag, text, className) => {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
};

const resolved = (schema, all) => (schema?.$ref ? all[schema.$ref.split("/").pop()] : schema);

function kindOf(schema, all) {
  if (!schema) return "";
  if (schema.$ref) return schema.$ref.split("/").pop();
  if (schema.anyOf) return schema.anyOf.map((one) => kindOf(one, all)).join(" or ");
  if (schema.type === "array") return `list of ${kindOf(schema.items, all) || "values"}`;
  if (schema.enum) return schema.enum.join(", ");
  return schema.type ?? "";
}

function fields(schema, all) {
  const table = element("table");
  for (const [name, field] of Object.entries(schema.properties ?? {})) {
    const row = element("tr");
    const name_ = element("td");
    name_.append(element("code", name), (schema.required ?? []).includes(name) ? " *" : "");
    row.append(name_, element("td", kindOf(field, all)), element("td", field.description ?? ""));
    table.append(row);
  }
  return table;
}

function operation(path, verb, what, all) {
  const part = element("section");
  const head = element("h2");
  head.append(element("span", verb.toUpperCase(), "verb"), element("code", path));
  part.append(head, element("p", what.description ?? what.summary));
  for (const parameter of what.parameters ?? []) {
    part.append(element("div", `${parameter.name} (${parameter.in}): ${kindOf(parameter.schema, all)}`, "answer"));
  }
  const [kind, body] = Object.entries(what.requestBody?.content ?? {})[0] ?? [];
  const schema = resolved(body?.schema, all);
  if (schema?.properties) {
    part.append(element("h3", body.schema.$ref.split("/").pop()), fields(schema, all));
    for (const example of schema.examples ?? []) {
      const url = location.href.replace(/docs$/, "") + path.slice(1).replace("{model}", "default");
      part.append(element("pre",
        `curl -X POST ${url} \\\n  -H 'content-type: application/json' -H "authorization: Bearer $TOKEN" \\\n  -d '${JSON.stringify(example)}'`));
    }
  } else if (kind) {
    part.append(element("p", `Body: ${kind}`, "answer"));
  }
  const codes = Object.entries(what.responses).map(([code, one]) => `${code} ${one.description}`);
  part.append(element("p", codes.join("; "), "answer"));
  return part;
}

fetch("openapi.json").then((answer) => answer.json()).then((api) => {
  const all = api.components.schemas;
  const parts = Object.entries(api.paths).flatMap(([path, verbs]) =>
    Object.entries(verbs).map(([verb, what]) => operation(path, verb, what, all)));
  const shared = ["History", "RecommendOptions"].map((name) => {
    const part = element("section");
    part.append(element("h2", name), element("p", all[name].description), fields(all[name], all));
    return part;
  });
  document.getElementById("operations").replaceChildren(...shared, ...parts);
});
