/** The tab Model. */

import { lineChart } from "./charts.js";
import { counted, element, figure } from "./dom.js";
import { rendered } from "./markdown.js";

/** Return what shows the model in the panel. */
export function modelTab(panel, app) {
  return () => {
    const { model } = app;
    const parts = [
      ["Figures", figures(model)],
      ["Facts", facts(model)],
      ["Noise schedule", schedule(model)],
      ["Report", report(model)],
      ["Card", model.card === null ? [missing("The model has no card.")] : rendered(model.card)],
      ["Lineage", lineage(model)],
    ];
    panel.replaceChildren(...parts.map(([title, content]) => element("section", {}, element("h2", { textContent: title }), ...content)));
  };
}

const MEASURES = {
  fd: "Fréchet distance (0 is best)",
  kd: "kernel distance (0 is best)",
  fid: "FID (0 is best)",
  kid: "KID (0 is best)",
  precision: "precision (1 is best)",
  recall: "recall (1 is best, beside a high precision)",
};

const missing = textContent => element("p", { className: "muted", textContent });

function list(rows) {
  const shown = rows.filter(([, value]) => value !== null && value !== undefined && value !== "");
  const one = ([name, value]) =>
    element("div", { className: String(value).length > 17 ? "whole" : "" }, element("dt", { textContent: name }), element("dd", { textContent: value }));
  return element("dl", { className: "facts" }, ...shown.map(one));
}

function facts(model) {
  const [channels, height, width] = model.image_shape;
  return [
    list([
      ["Name", model.name],
      ["Images", `${width} × ${height}, ${counted(channels, "channel")}`],
      ["Levels", model.num_levels > 256 ? `${model.num_levels}; every picture is shown from its darkest levels to its brightest` : model.num_levels],
      ["Classes", model.num_classes === null ? "none" : (model.class_names?.join(", ") ?? model.num_classes)],
      ["Parameters", model.num_parameters.toLocaleString("en")],
      ["Device", model.device],
      ["Digest", model.model_sha256],
    ]),
  ];
}

function figures({ figures: found, judgement, samples, problem }) {
  if (!found && !samples) return [missing(problem ?? "They are still being read.")];
  const made = judgement.map(textContent => element("p", { textContent }));
  if (found) {
    const rows = [
      [`${found.split ?? "test"} images`, found.bpd, found.bpd_standard_error, found.num_images],
      ["validation images", found.validation?.bpd, found.validation?.bpd_standard_error, found.validation?.num_images],
      ["training images", found.training?.bpd, found.training?.bpd_standard_error, found.training?.num_images],
    ].filter(([, bpd]) => bpd !== undefined);
    made.push(table("bits/dim; lower is better", ["images", "bits/dim", "number"], rows.map(([name, bpd, error, number]) => [name, figure(bpd, error), number?.toLocaleString("en") ?? ""])));
    if (found.classes && found.classes.accuracy !== null) {
      made.push(element("p", { textContent: `The likelihood finds the class of ${figure(100 * found.classes.accuracy, 100 * found.classes.accuracy_standard_error)}% of ${counted(found.classes.num_classified, "image")}; one class in ${found.classes.num_classes} is right by chance.` }));
    }
  }
  if (samples) {
    const { nearer_than_held_out: nearer, nearer_than_held_out_standard_error: error } = samples;
    const copies = nearer - 2 * error > 0.5 ? ", may be copies" : "";
    const rows = Object.entries(samples.figures).map(([key, one]) => {
      const name = key.split("_")[0];
      const found = figure(one.samples, one.samples_standard_error);
      return [MEASURES[name] ?? key, name === "recall" ? found : found + copies, figure(one.held_out, one.held_out_standard_error)];
    });
    rows.push(["nearer to a training image (0.5 for new images)", figure(nearer, error), "0.5"]);
    made.push(table("quality of the samples", ["figure", "samples", "test images"], rows));
  }
  return made;
}

function table(caption, names, rows) {
  const cell = (text, index) => (index ? element("td", { className: "number", textContent: text }) : element("th", { scope: "row", textContent: text }));
  return element(
    "table",
    {},
    element("caption", { textContent: caption }),
    element("thead", {}, element("tr", {}, ...names.map((textContent, index) => element("th", { scope: "col", textContent, className: index ? "number" : "" })))),
    element("tbody", {}, ...rows.map(row => element("tr", {}, ...row.map(cell)))),
  );
}

function schedule({ schedule: { t, gamma } }) {
  const ends = `gamma from ${gamma[0].toFixed(2)} to ${gamma.at(-1).toFixed(2)}`.replaceAll("-", "\u2212");
  return [
    lineChart({ x: t, y: gamma, across: "t (0: the image, 1: noise)", up: "gamma = \u2212log SNR", alt: `Line chart of gamma over the time t: ${ends}` }),
    missing(`How the noise grows: ${ends}.`),
  ];
}

function report({ report: exists, problem }) {
  if (!exists) return [missing(problem ?? "It is still being made.")];
  const link = element("a", { href: "/report", target: "_blank", rel: "noopener", textContent: "Open the report" });
  const frame = element("iframe", { src: "/report", title: "The report of the model", loading: "lazy" });
  return [element("p", {}, link, " in a tab of its own."), frame];
}

function lineage({ lineage: found }) {
  if (!found) return [missing("Only a registered version has a lineage; this model is a folder.")];
  const last = found.promotions?.at(-1);
  const whole = element("pre", { tabIndex: 0, textContent: JSON.stringify(found, null, 2) });
  return [
    list([
      ["Version", found.version],
      ["Made", found.created],
      ["Message", found.message],
      ["Commit", found.commit],
      ["Data", found.data?.sha256],
      ["Last decision", last && [last.created, last.evidence.decision, last.evidence.reason].filter(Boolean).join(": ")],
    ]),
    element("details", {}, element("summary", { textContent: "Parameters, code and outputs" }), whole),
  ];
}
