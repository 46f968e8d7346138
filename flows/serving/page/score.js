/** The tab Score. */

import { ask } from "./api.js";
import { inBatches, readFiles } from "./batches.js";
import { lineChart } from "./charts.js";
import { counted, element, figure } from "./dom.js";
import { asked, dropping, fit, fitting, worker } from "./form.js";
import { picture } from "./pictures.js";

const SIDE = 128;
const DRAWINGS = 8;

const ORDERS = {
  surprise: (a, b) => b.bpd - a.bpd,
  "-surprise": (a, b) => a.bpd - b.bpd,
  name: (a, b) => a.label.localeCompare(b.label, "en", { numeric: true }),
};

/** Make the tab work; return what shows the choices of the model. */
export function scoreTab(panel, app) {
  const form = panel.querySelector("form");
  const [counter, refused, results] = [".counter", ".refused", ".results"].map(name => panel.querySelector(name));
  const sort = results.querySelector("select");
  let [pictures, images, answered] = [[], [], null];
  const work = worker(form, () => pictures.length > 0);

  const show = () => {
    results.hidden = images.length === 0;
    if (!answered) return;
    results.querySelector(".summary").textContent = summary(answered, images);
    const most = Math.max(...images.flatMap(image => image.level_bpd));
    const cards = images.toSorted(ORDERS[sort.value]).map(image => card(image, answered, app.model.image_shape, most));
    results.querySelector(".cards").replaceChildren(...cards);
  };
  const send = (chosen, signal) => {
    const take = (answer, sent) => {
      images.push(...withPictures(answer.images, sent));
      if (answer.images.length) answered = answer;
      refuse(refused, answer.refused, made => work(more => send([made], more)));
      show();
    };
    return inBatches("/score", chosen, asked(form, app.model), { verb: "Scoring", model: app.model, counter, signal, take })
      .then(() => {
        counter.textContent = images.length ? `${counted(images.length, "picture")} scored.` : "";
      });
  };
  const score = (signal, unreadable) => {
    [images, answered] = [[], null];
    refused.replaceChildren();
    refuse(refused, unreadable);
    show();
    return send(pictures, signal);
  };

  dropping(panel, files => work(async signal => {
    const read = await readFiles(files);
    pictures = read.pictures;
    await score(signal, read.refused);
  }));
  form.querySelector(".drawn").addEventListener("click", () => work(async signal => {
    pictures = [await drawings(DRAWINGS, app.model, signal, counter)];
    await score(signal, []);
  }));
  form.addEventListener("submit", event => {
    event.preventDefault();
    if (pictures.length) work(signal => score(signal, []));
  });
  sort.addEventListener("change", show);
  return () => {
    fit(form, app.model);
    form.querySelector(".fits").textContent = fitting(app.model);
  };
}

/** Return so many drawings of the model, of any classes, as one .npy file; they are others each time. */
export async function drawings(count, model, signal, counter) {
  counter.textContent = `Drawing ${counted(count, "picture")}…`;
  const wanted = { num_images: count, seed: Math.floor(Math.random() * 100_000) };
  if (model.num_classes !== null) wanted.classes = Array.from({ length: count }, () => Math.floor(Math.random() * model.num_classes));
  const { npy } = await ask("/sample", wanted, signal);
  return { name: "drawing.npy", data: npy };
}

/** Add lines that say why pictures do not fit; one that was made to fit can be given to `send`. */
export function refuse(list, lines, send) {
  for (const { name, error, made } of lines) {
    const reason = error.startsWith(`${name}: `) ? error.slice(name.length + 2) : error;
    const line = element("li", { className: "note" }, element("strong", { textContent: name }), `: ${reason} `);
    if (made) {
      const button = element("button", { type: "button", textContent: "Make it fit" });
      button.addEventListener("click", () => {
        line.remove();
        send(made);
      });
      line.append(button);
    }
    list.append(line);
  }
}

/** Return the images of an answer, each with the picture that was sent, and its name for the reader as `label`. */
export function withPictures(images, sent) {
  return images.map(image => {
    const { name, number } = image;
    const isAlone = images.filter(other => other.name === name).length === 1;
    const own = sent.find(each => each.name === name);
    return { ...image, picture: own, label: own.origin ?? (isAlone ? name : `${name}, image ${number + 1}`) };
  });
}

/** Return the figure that shows what the model sees of an image, and how it was changed. */
export function seen(image, shape) {
  const shown = picture(image.seen, shape, SIDE, `${image.label}, as the model sees it`);
  return element("figure", { className: "seen" }, shown, element("figcaption", { textContent: image.picture.note ?? "what it sees" }));
}

function summary(answer, images) {
  const changed = answer.transforms === "none" ? "" : ` Pictures are changed as the card says: ${answer.transforms}.`;
  const mean = images.reduce((sum, image) => sum + image.bpd, 0) / images.length;
  const over = images.length > 1 ? `Mean ${figure(mean)} bits/dim. ` : "";
  return `${over}By ${answer.model}, at ${counted(answer.times_per_image, "noise level")} for each picture, seed ${answer.seed}.${changed}`;
}

function card(image, answer, shape, most) {
  const terms = ["diffusion", "reconstruction", "prior"].map(name => `${figure(image[`${name}_bpd`])} ${name}`);
  const share = image.more_surprising_than;
  const chart = lineChart({
    x: image.gamma,
    y: image.level_bpd,
    across: "gamma: little noise on the left, much on the right",
    up: "bits/dim per unit of t",
    alt: `Line chart of the bits of ${image.label} over the noise levels`,
    most,
    dots: true,
  });
  return element(
    "li",
    { className: "card" },
    seen(image, shape),
    element(
      "div",
      { className: "said" },
      element("h3", { textContent: image.label }),
      element("p", { className: "figure", innerText: figure(image.bpd, image.bpd_standard_error) }, element("small", { textContent: " bits/dim" })),
      share === null ? null : place(share, answer.num_test_images),
      element("p", { textContent: `A PNG of it takes ${image.png_bpd.toFixed(2)} bits/dim.` }),
      element("p", {}, element("small", { className: "muted", textContent: `= ${terms.join(" + ")}` })),
    ),
    chart,
  );
}

function place(share, count) {
  const marker = element("span", { className: "marker" });
  marker.style.insetInlineStart = `${100 * share}%`;
  const of = `${counted(count, "test image")}`;
  const words = { 0: `less surprising than all ${of}`, 1: `more surprising than all ${of}` }[share];
  const line = words ?? `more surprising than ${rounded(share)} of the ${of}`;
  return element("div", { className: "place" }, element("p", { textContent: line }), element("span", { className: "scale", ariaHidden: "true" }, marker));
}

/** Return a share between 0 and 1 in percent, never as 0% or 100%. */
const rounded = share => `${Math.min(99, Math.max(1, Math.round(100 * share)))}%`;
