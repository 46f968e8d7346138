/** The tab Fill in. */

import { ask, Failure } from "./api.js";
import { counted } from "./dom.js";
import { stream } from "./draw.js";
import { Easel } from "./easel.js";
import { Film } from "./film.js";
import { asked, dropping, fit, fitting, otherSeeds, worker } from "./form.js";
import { madeToFit } from "./made_to_fit.js";
import { bitmap, encoded } from "./pictures.js";

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
  dropping(panel, ([file]) => work(async signal => {
    note.textContent = `Reading ${file.name}…`;
    try {
      const { image, sent, line } = await look(file, app.model, signal);
      show(image, sent);
      note.textContent = line;
    } catch (error) {
      note.textContent = "";
      throw error;
    }
  }));
  form.querySelector(".drawn").addEventListener("click", () => work(async signal => {
    note.textContent = "Drawing a picture…";
    try {
      const { images, seed } = await ask("/sample", { num_images: 1, seed: Math.floor(Math.random() * 100_000), ...ofClass(form) }, signal);
      show(await bitmap(images[0]), { name: "drawing.png", data: images[0] });
      note.textContent = `A drawing of the model, seed ${seed}.`;
    } catch (error) {
      note.textContent = "";
      throw error;
    }
  }));
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

/** Return what the model sees of a file: its bitmap, what is sent, and a line; of a file of another size, its middle. */
async function look(file, model, signal) {
  const read = await encoded(file).catch(() => {
    throw new Failure(`${file.name}: the browser cannot read it.`);
  });
  try {
    const { images } = await ask("/score", { pictures: [read], times: 2 }, signal);
    const { seen } = images[0];
    return { image: await bitmap(seen), sent: { name: "picture.png", data: seen }, line: `${file.name}, as the model sees it.` };
  } catch (error) {
    if (!error.refused?.length) throw error;
    const made = await madeToFit(read, model);
    if (!made) throw new Failure(error.refused[0].error);
    return { image: made.image, sent: { name: made.name, data: made.data }, line: `${file.name}, as the model sees it. ${made.note}` };
  }
}
