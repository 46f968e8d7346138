/** The forms: their defaults, what is in them, files that are dropped, and work that can be stopped. */

import { Failure } from "./api.js";
import { element, say } from "./dom.js";

/** Give a form the choices and limits of the model, and its defaults where nothing is chosen yet. */
export function fit(form, model) {
  const { defaults, limits } = model;
  const most = { num_images: limits.images, steps: limits.steps, times: limits.times };
  for (const field of form.querySelectorAll("input[type=number]")) {
    if (most[field.name]) field.max = most[field.name];
    if (field.value === "") field.value = defaults[field.name] ?? "";  // not known yet: what is left out is the server's
  }
  if (form.elements.sampler) {
    const named = Object.entries(model.samplers);
    choices(form.elements.sampler, defaults.sampler ? named : [["", "as in params.yaml"], ...named], defaults.sampler ?? "");
  }
  for (const field of form.querySelectorAll(".of-classes")) field.hidden = model.num_classes === null;
  if (form.elements.class && model.num_classes !== null) {
    const names = Array.from({ length: model.num_classes }, (_, number) => className(model, number));
    choices(form.elements.class, [["", "all in turn"], ...names.map((name, number) => [String(number), name])], "");
  }
}

/** Return the name of a class of the model, or its number if it has none. */
export const className = (model, number) => model.class_names?.[number] ?? String(number);

function choices(select, options, chosen) {
  const kept = select.value || chosen;
  select.replaceChildren(...options.map(([value, textContent]) => element("option", { value, textContent })));
  select.value = options.some(([value]) => value === kept) ? kept : chosen;
}

/** Return what a form asks for, as the server takes it. */
export function asked(form, model) {
  const values = {};
  for (const field of form.querySelectorAll(".fields input[type=number]")) {
    if (field.value !== "") values[field.name] = Number(field.value);
  }
  if (form.elements.sampler?.value) values.sampler = form.elements.sampler.value;
  if (model.num_classes === null) delete values.guidance;
  else if (form.elements.class?.value) values.classes = [Number(form.elements.class.value)];
  return values;
}

/** Let the button beside the seed choose another one. */
export function otherSeeds(form) {
  form.querySelector(".another").addEventListener("click", () => {
    form.elements.seed.value = Math.floor(Math.random() * 100_000);
  });
}

/**
 * Return a function that does the work of a form, one piece after the other, and shows failures.
 *
 * A piece gets the signal to stop, which ends all pieces that wait, too.  `ready`: whether there is something that the
 * main button can send.
 */
export function worker(form, ready) {
  const stop = form.querySelector(".stop");
  const problem = form.querySelector(".problem");
  const others = [...form.querySelectorAll("button")].filter(button => button !== stop);
  const waiting = [];
  let controller = null;
  stop.addEventListener("click", () => controller?.abort());
  form.addEventListener("invalid", () => form.querySelector(".settings").open = true, true);

  const attempt = async work => {
    if (controller.signal.aborted) return;
    try {
      await work(controller.signal);
    } catch (error) {
      if (!(error instanceof Failure) && error.name !== "AbortError") reportError(error);
      say(problem, error.name === "AbortError" ? "Stopped." : error.message);
    }
  };
  const all = async () => {
    controller = new AbortController();
    for (const button of others) button.disabled = true;
    stop.hidden = false;
    say(problem, null);
    for (let next = waiting.shift(); next; next = waiting.shift()) {
      await attempt(next.work);
      next.done();
    }
    for (const button of others) button.disabled = button.matches(".main") && !ready();
    stop.hidden = true;
    controller = null;
  };
  return work => new Promise(done => {
    waiting.push({ work, done });
    if (!controller) all();
  });
}

/** Give files that are dropped on a panel, or chosen in its field, to a function. */
export function dropping(panel, take) {
  const zone = panel.querySelector(".drop");
  const input = zone.querySelector("input");
  const hover = over => event => {
    event.preventDefault();
    zone.classList.toggle("over", over);
  };
  panel.addEventListener("dragover", hover(true));
  panel.addEventListener("dragleave", hover(false));
  panel.addEventListener("drop", event => {
    hover(false)(event);
    if (event.dataTransfer.files.length) take([...event.dataTransfer.files]);
  });
  input.addEventListener("change", () => {
    if (input.files.length) take([...input.files]);
    input.value = "";  // so that the same file can be chosen again
  });
}

/** Return the sizes of pictures that fit the model, in words. */
export function fitting(model) {
  const [channels, height, width] = model.image_shape;
  const kind = { 1: "gray, ", 3: "in colour, " }[channels] ?? `${channels} channels, `;
  return `PNG, JPEG, WebP, TIFF, GIF, BMP or .npy; ${kind}${width} × ${height} pixels`;
}

/** Show the seconds that a work takes after its name, until the returned function is called. */
export function clock(place, text) {
  const begin = performance.now();
  const show = () => {
    place.firstChild.textContent = `${text} ${Math.round((performance.now() - begin) / 1000)} s`;
  };
  place.replaceChildren(element("span", { ariaHidden: "true" }), element("span", { className: "hidden", textContent: text }));
  show();
  const timer = setInterval(show, 1000);
  return () => clearInterval(timer);
}
