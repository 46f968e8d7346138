/** The tab Fill in. */

import { ask, Failure } from "./api.js";
import { counted } from "./dom.js";
import { stream } from "./draw.js";
import { Easel } from "./easel.js";
import { Film } from "./film.js";
import { examples } from "./examples.js";
import { asked, dropping, fit, fitting, otherSeeds, worker } from "./form.js";
import { bitmap, encoded, panes } from "./pictures.js";

const SIDE = 320;
const COMPLETION_SIDE = 112;

/** Make the tab work; return what shows the choices of the model. */
export function fillInTab(panel, app) {
  const form = panel.querySelector("form");
  const film = new Film(panel.querySelector(".film"), "completions", COMPLETION_SIDE);
  const [place, note, covered] = [".easel", ".preparing", ".covered"].map(name => panel.querySelector(name));
  const { brush } = form.elements;
  const main = form.querySelector(".main");
  const easel = new Easel(place.querySelector("canvas"), {
    brush: () => Number(brush.value),
    covers: () => form.elements.tool.value === "cover",
    changed: () => {
      const { count, cursor } = easel;
      main.disabled = count === 0;
      const at = cursor ? `Brush in column ${cursor[0] + 1}, row ${cursor[1] + 1}. ` : "";
      covered.textContent = at + (count ? `Covered: ${count} of ${counted(easel.width * easel.height, "pixel")}.` : "Nothing is covered yet.");
    },
  });
  const work = worker(form, () => easel.count > 0);
  let picture = null;  // as it is sent
  otherSeeds(form);

  const show = (image, sent) => {
    picture = sent;
    const { image_shape: shape } = app.model;
    brush.max = Math.max(2, Math.round(Math.min(shape[1], shape[2]) / 2));
    brush.value = Math.max(2, Math.round(Math.min(shape[1], shape[2]) / 8));
    easel.show(image, shape, SIDE);
    place.hidden = false;
  };
  const take = (doing, found) => work(async signal => {
    note.textContent = doing;
    try {
      const { image, sent, line } = await found(signal);
      show(image, sent);
      note.textContent = line;
    } catch (error) {
      note.textContent = "";
      throw error;
    }
  });
  dropping(panel, ([file]) => take(`Reading ${file.name}…`, signal => look(file, app.model, signal)));
  form.querySelector(".drawn").addEventListener("click", () => take("Drawing a picture…", async signal => {
    const { images, npy, seed } = await ask("/sample", { num_images: 1, seed: Math.floor(Math.random() * 100_000), ...ofClass(form) }, signal);
    return { image: await bitmap(images[0]), sent: { name: "drawing.npy", data: npy }, line: `A drawing of the model, seed ${seed}.` };
  }));
  const refreshExamples = examples(panel, app, ([{ name, data, seen }]) => take("", async () =>
    ({ image: await bitmap(seen), sent: { name, data }, line: "A test image of the model." })));
  for (const button of form.querySelectorAll("[data-cover]")) {
    const chosen = {
      lower: (_, row) => row >= easel.height / 2,
      right: column => column >= easel.width / 2,
      none: () => false,
    }[button.dataset.cover];
    button.addEventListener("click", () => easel.cover(chosen));
  }
  form.addEventListener("submit", event => {
    event.preventDefault();
    work(async signal => {
      const mask = { name: "mask.npy", data: easel.mask() };
      await stream("/fill-in", { picture, mask, ...asked(form, app.model) }, film, app.model, signal);
    });
  });
  return () => {
    fit(form, app.model);
    form.querySelector(".fits").textContent = fitting(app.model);
    refreshExamples();
    if (easel.image && (easel.width !== app.model.image_shape[2] || easel.height !== app.model.image_shape[1])) {
      place.hidden = true;
      easel.cover(() => false);
    }
  };
}

/** Return the class that a form asks for, as a request has it. */
function ofClass(form) {
  const { value } = form.elements.class;
  return value ? { classes: [Number(value)] } : {};
}

/** Return what the model sees of a file: its bitmap, what is sent, and a line; a picture is made to fit. */
async function look(file, model, signal) {
  const read = await encoded(file).catch(() => {
    throw new Failure(`${file.name}: the browser cannot read it.`);
  });
  const seen = fits => ask("/score", { pictures: [{ ...read, fit: fits }], times: 2 }, signal);
  const { images: [image] } = await seen(false).catch(error => {
    if (!error.refused?.[0].fit) throw error;
    return seen(true);
  });
  // A PNG has no more than three channels; a file with another number was not changed.
  const sent = panes(model.image_shape) === 1 ? { name: "picture.png", data: image.seen } : read;
  const changed = image.changed ? `: ${image.changed}` : "";
  return { image: await bitmap(image.seen), sent, line: `${file.name}, as the model sees it${changed}.` };
}
