/** The tab Draw. */

import { events } from "./api.js";
import { Film } from "./film.js";
import { asked, fit, otherSeeds, worker } from "./form.js";

const SIDE = 84;

/** Make the tab work; return what shows the choices of the model. */
export function drawTab(panel, app) {
  const form = panel.querySelector("form");
  const film = new Film(panel.querySelector(".film"), "drawings", SIDE);
  const work = worker(form, () => true);
  otherSeeds(form);
  form.addEventListener("submit", event => {
    event.preventDefault();
    work(signal => stream("/sample", asked(form, app.model), film, app.model, signal));
  });
  return () => fit(form, app.model);
}

/** Ask for pictures, show them in a film as they come, and return the document. */
export async function stream(path, wanted, film, model, signal) {
  const every = model.num_classes === null ? null : [...Array(model.num_classes).keys()];
  film.begin(model, wanted.num_images, wanted.classes ?? every);
  try {
    const stream = events(path, { ...wanted, stream: true }, signal);
    for (;;) {
      const { value, done } = await stream.next();
      if (done) {
        film.end(value);
        return value;
      }
      film.show(value);
    }
  } catch (error) {
    film.giveUp();
    throw error;
  }
}
