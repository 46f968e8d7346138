/** The tab Score. */

import { ask } from "./api.js";
import { inBatches, readFiles } from "./batches.js";
import { lineChart } from "./charts.js";
import { counted, element, figure } from "./dom.js";
import { examples } from "./examples.js";
import { asked, dropping, fit, fitting, worker } from "./form.js";
import { picture } from "./pictures.js";

const SIDE = 128;
const DRAWINGS = 8;
const MOST_CARDS = 60;
const PNG_FRAME = 57;  // bytes of a PNG file that are not pixels
const MOST_FRAME = 4;  // a file of less than so many frames says little about its pixels

const ORDERS = {
  surprise: (a, b) => b.score - a.score,
  "-surprise": (a, b) => a.score - b.score,
  bpd: (a, b) => b.bpd - a.bpd,
  name: (a, b) => a.label.localeCompare(b.label, "en", { numeric: true }),
};

/** Make the tab work; return what shows the choices of the model. */
export function scoreTab(panel, app) {
  const form = panel.querySelector("form");
  const [counter, refused, results] = [".counter", ".refused", ".results"].map(name => panel.querySelector(name));
  const sort = results.querySelector("select");
  const further = results.querySelector(".further");
  let [pictures, images, answered, most] = [[], [], null, MOST_CARDS];
  const work = worker(form, () => pictures.length > 0);

  const show = () => {
    results.hidden = images.length === 0;
    if (!answered) return;
    const isCompared = answered.num_calibrated !== null;
    for (const option of sort.querySelectorAll("[value$=surprise]")) option.hidden = option.disabled = !isCompared;
    if (!isCompared && sort.value.endsWith("surprise")) sort.value = "bpd";
    results.querySelector(".summary").textContent = summary(answered, images);
    const [shown, top] = [images.toSorted(ORDERS[sort.value]).slice(0, most), highest(images)];
    const cards = shown.map(image => card(image, answered, app.model.image_shape, top));
    results.querySelector(".cards").replaceChildren(...cards);
    further.hidden = shown.length === images.length;
    further.textContent = `Show more: ${shown.length} of ${counted(images.length, "picture")} are shown`;
  };
  further.addEventListener("click", () => {
    most += MOST_CARDS;
    show();
  });
  const send = (chosen, signal) => {
    const take = (answer, sent) => {
      images.push(...withPictures(answer.images, sent));
      if (answer.images.length) answered = answer;
      refuse(refused, answer.refused, (picture, begun) => work(more => {
        begun();
        return send([picture], more);
      }));
      show();
    };
    return inBatches("/score", chosen, asked(form, app.model), { verb: "Scoring", model: app.model, counter, signal, take })
      .then(() => {
        counter.textContent = images.length ? `${counted(images.length, "picture")} scored.` : "";
      });
  };
  const score = (signal, unreadable) => {
    [images, answered, most] = [[], null, MOST_CARDS];
    refused.replaceChildren();
    refuse(refused, unreadable);
    show();
    return send(pictures, signal);
  };

  const refreshExamples = examples(panel, app, chosen => work(signal => {
    pictures = chosen;
    return score(signal, []);
  }));
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
    refreshExamples();
  };
}

/** Return the highest bits/dim at any noise level of any image. */
export const highest = images => images.reduce((most, image) => Math.max(most, ...image.level_bpd), 0);

/** Return so many drawings of the model, of any classes, as one .npy file; they are others each time. */
export async function drawings(count, model, signal, counter) {
  counter.textContent = `Drawing ${counted(count, "picture")}…`;
  const wanted = { num_images: count, seed: Math.floor(Math.random() * 100_000) };
  if (model.num_classes !== null) wanted.classes = Array.from({ length: count }, () => Math.floor(Math.random() * model.num_classes));
  const { npy } = await ask("/sample", wanted, signal);
  return { name: "drawing.npy", data: npy };
}

/** Add lines that say why pictures do not fit; one that can be made to fit is given to `send`, with what removes it. */
export function refuse(list, lines, send) {
  for (const { name, error, picture: fitting } of lines) {
    const reason = error.startsWith(`${name}: `) ? error.slice(name.length + 2) : error;
    const line = element("li", { className: "note" }, element("strong", { textContent: name }), `: ${reason} `);
    if (fitting) {
      const button = element("button", { type: "button", textContent: "Make it fit" });
      button.addEventListener("click", async () => {
        button.disabled = true;
        await send(fitting, () => line.remove());
        button.disabled = false;
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
    return { ...image, picture: own, label: isAlone ? name : `${name}, image ${number + 1}` };
  });
}

/** Return the figure that shows what the model sees of an image, and how it was changed. */
export function seen(image, shape) {
  const shown = picture(image.seen, shape, SIDE, `${image.label}, as the model sees it`);
  return element("figure", { className: "seen" }, shown, element("figcaption", { textContent: image.changed ? `made to fit: ${image.changed}` : "what it sees" }));
}

function summary(answer, images) {
  const changed = answer.transforms === "none" ? "" : ` Pictures are changed as the card says: ${answer.transforms}.`;
  const mean = images.reduce((sum, image) => sum + image.bpd, 0) / images.length;
  const over = images.length > 1 ? `Mean ${figure(mean)} bits/dim. ` : "";
  return `${over}By ${answer.model}, at ${counted(answer.times_per_image, "noise level")} for each picture, seed ${answer.seed}.${changed}`;
}

function card(image, answer, shape, most) {
  const terms = ["diffusion", "reconstruction", "prior"].map(name => `${figure(image[`${name}_bpd`])} ${name}`);
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
      image.score === null ? null : place(image, answer),
      pngLine(image.png_bpd, shape),
      element("p", {}, element("small", { className: "muted", textContent: `= ${terms.join(" + ")}` })),
    ),
    chart,
  );
}

/** Return a line about the pixels in a PNG file of an image; null if there is none, or if much of it is frame. */
export function pngLine(bpd, [channels, height, width]) {
  const frame = (8 * PNG_FRAME) / (channels * height * width);
  if (bpd === null || bpd < MOST_FRAME * frame) return null;
  return element("p", { textContent: `Its pixels take ${(bpd - frame).toFixed(2)} bits/dim in a PNG.` });
}

/** Return how odd an image is, in what, and which share of held-out images is less odd. */
function place(image, { num_calibrated: count, without_p }) {
  const what = image.words ? `: ${image.words} (standard deviations from usual)` : "";
  const line = element("p", { textContent: `surprise ${image.score.toFixed(1)}${what}` });
  if (image.p === null) {
    const reason = without_p ?? "it is one of those with which others are compared";
    return element("div", { className: "place" }, line, element("p", { className: "muted", textContent: `No share: ${reason}.` }));
  }
  const share = 1 - (image.p * (count + 1) - 1) / count;
  const marker = element("span", { className: "marker" });
  marker.style.insetInlineStart = `${100 * share}%`;
  const of = counted(count, "held-out image");
  const words = { 0: `less odd than all ${of}`, 1: `odder than all ${of}` }[share] ?? `odder than ${rounded(share)} of the ${of}`;
  const scale = element("span", { className: "scale", ariaHidden: "true" }, marker);
  return element("div", { className: "place" }, line, element("p", { textContent: `${words}; p ${image.p.toPrecision(2)}` }), scale);
}

/** Return a share between 0 and 1 in percent, as 0% or 100% only if it is that. */
const rounded = share => `${[0, 1].includes(share) ? 100 * share : Math.min(99, Math.max(1, Math.round(100 * share)))}%`;
