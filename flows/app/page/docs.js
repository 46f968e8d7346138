/** The page of the HTTP interface, from /openapi.json. */

import { ask } from "./api.js";
import { element, say } from "./dom.js";
import { rendered } from "./markdown.js";

const EXAMPLE = `import base64, json, urllib.request

def ask(path, **body):
    request = urllib.request.Request("ORIGIN" + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
    return json.load(urllib.request.urlopen(request))

drawn = ask("/sample", num_images=4, seed=1)
open("drawn.npy", "wb").write(base64.b64decode(drawn["npy"]))
scored = ask("/score", pictures=[{"name": "drawn.npy", "data": drawn["npy"]}])
print([image["bpd"] for image in scored["images"]])`;

/** Return a schema, followed through its reference. */
function resolved(schema, whole) {
  const name = schema?.$ref?.split("/").at(-1);
  return name ? whole.components.schemas[name] : schema;
}

function kind(schema, whole) {
  if (!schema) return "";
  const choices = schema.anyOf ?? schema.oneOf;
  if (choices) return choices.map(each => kind(each, whole)).join(" or ");
  if (schema.$ref) return `object ${schema.$ref.split("/").at(-1)}`;
  if (schema.enum) return schema.enum.map(value => JSON.stringify(value)).join(" or ");
  if (schema.type === "array") return `list of ${kind(schema.items, whole) || "any"}`;
  const limits = [["minimum", "from"], ["exclusiveMinimum", "above"], ["maximum", "to"]].filter(([key]) => key in schema).map(([key, word]) => ` ${word} ${schema[key]}`);
  return (schema.type ?? "any") + limits.join("");
}

function fields(schema, whole) {
  const object = resolved(schema, whole);
  const required = object?.required ?? [];
  const rows = Object.entries(object?.properties ?? {}).map(([name, each]) =>
    element(
      "tr",
      {},
      element("th", { scope: "row" }, element("code", { textContent: name })),
      element("td", {}, kind(each, whole), required.includes(name) ? "" : each.default === undefined ? ", optional" : `, default ${JSON.stringify(each.default)}`, each.description ? element("div", { className: "muted" }, ...rendered(each.description)) : null),
    ));
  return rows.length ? [element("table", { className: "wide" }, element("tbody", {}, ...rows))] : [];
}

function operation(path, method, { summary, description, requestBody, responses }, whole) {
  const body = requestBody?.content?.["application/json"]?.schema;
  const answer = responses?.["200"]?.content?.["application/json"]?.schema;
  return element(
    "section",
    {},
    element("h2", {}, element("code", { textContent: `${method.toUpperCase()} ${path}` })),
    ...(description || summary ? rendered(description ?? summary) : []),
    ...(body ? [element("h3", { textContent: "The request" }), ...fields(body, whole)] : []),
    ...(answer?.$ref ? [element("h3", { textContent: "The answer" }), ...fields(answer, whole)] : []),
  );
}

try {
  document.getElementById("example").textContent = EXAMPLE.replace("ORIGIN", location.origin);
  const whole = await ask("/openapi.json");
  const paths = Object.entries(whole.paths).flatMap(([path, methods]) => Object.entries(methods).map(([method, about]) => operation(path, method, about, whole)));
  const named = new Set(Object.values(whole.paths).flatMap(methods => JSON.stringify(methods).match(/schemas\/\w+/g) ?? []));
  const others = Object.keys(whole.components?.schemas ?? {}).filter(name => !named.has(`schemas/${name}`));
  const more = others.map(name => [element("h3", {}, element("code", { textContent: name })), ...fields(whole.components.schemas[name], whole)]);
  document.getElementById("paths").replaceChildren(...paths, ...(more.length ? [element("h2", { textContent: "Objects" }), ...more.flat()] : []));
} catch (error) {
  say(document.getElementById("trouble"), error.message);
}
