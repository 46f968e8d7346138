/** Pictures that appear while they come out of the noise, then the film of it, and their files. */

import { counted, element } from "./dom.js";
import { bytes, download, gridFile, picture, source } from "./pictures.js";
import { className } from "./form.js";

const MILLISECONDS = 90;

/** Show the events of a stream in a place; the last picture of each kind is what the server calls the images. */
export class Film {
  /** `name`: how its files are called; `side`: the most pixels that a picture is enlarged to. */
  constructor(place, name, side) {
    Object.assign(this, { name, side });
    this.status = element("p", { className: "hidden", role: "status" });
    this.counter = element("p", { className: "counter" });
    this.progress = element("progress", { max: 1, value: 0, hidden: true, ariaLabel: "Steps" });
    this.tiles = element("ul", { className: "tiles" });
    this.controls = element("div", { className: "controls", hidden: true });
    place.replaceChildren(this.status, this.counter, this.progress, this.tiles, this.controls);
  }

  /** Forget the pictures of before, and expect so many of a model. */
  begin(model, count, classes) {
    clearInterval(this.playing);
    this.model = model;
    this.classes = classes;
    this.frames = [];
    this.images = [];
    this.status.textContent = `Drawing ${counted(count, "picture")}.`;
    this.counter.textContent = "Asking…";
    this.progress.hidden = false;
    this.progress.removeAttribute("value");
    this.controls.hidden = true;
    this.tiles.replaceChildren();
  }

  /** Show an event of the stream. */
  show(event) {
    if (event.event === "waiting") {
      this.counter.textContent = `Waiting: ${counted(event.ahead, "request")} before this one.`;
      return;
    }
    this.counter.textContent = `Step ${event.step} of ${event.steps}`;
    this.progress.max = event.steps;
    this.progress.value = event.step;
    if (!event.z) return;
    this.frames.push(event);
    this.paint(event.z);
  }

  /** Show the pictures of the document that the stream ended with, its film and its files. */
  end(document) {
    const { images, seconds, num_timesteps: steps } = document;
    this.result = document;
    this.images = images;
    this.paint(images);
    const done = `${counted(images.length, "picture")} in ${counted(steps, "step")} and ${seconds.toFixed(1)} s, seed ${document.seed}, by ${document.model}.`;
    this.status.textContent = this.counter.textContent = done;
    this.progress.hidden = true;
    this.controls.replaceChildren(...this.parts());
    this.controls.hidden = false;
  }

  /** Leave the pictures that are there after a failure or a stop. */
  giveUp() {
    this.progress.hidden = true;
    if (!this.frames.length) this.counter.textContent = "";
    this.status.textContent = "";
  }

  paint(pngs) {
    const shape = this.model.image_shape;
    if (this.tiles.children.length !== pngs.length) {
      this.tiles.replaceChildren(...pngs.map((png, index) => this.tile(png, shape, index)));
    }
    for (const [index, image] of [...this.tiles.querySelectorAll("img")].entries()) image.src = source(pngs[index]);
  }

  tile(png, shape, index) {
    const kind = this.classes && className(this.model, this.classes[index % this.classes.length]);
    const alt = `Picture ${index + 1}${kind === null ? "" : ` of class ${kind}`}`;
    const button = element("button", { type: "button", title: `${alt}: save as PNG` }, picture(png, shape, this.side, alt));
    button.addEventListener("click", () => {
      if (this.images[index]) download(`${this.name}-${index + 1}.png`, pngFile(this.images[index]));
    });
    return element("li", {}, button, kind === null ? null : element("small", { className: "muted", textContent: kind }));
  }

  parts() {
    const { frames } = this;
    const files = element("p", { className: "actions" });
    const add = (textContent, save) => {
      const button = element("button", { type: "button", textContent });
      button.addEventListener("click", save);
      files.append(button);
    };
    add("Save all as one PNG", async () => {
      download(`${this.name}.png`, await gridFile(this.images, this.model.image_shape));
    });
    add("Save as .npy", () => download(`${this.name}.npy`, new Blob([bytes(this.result.npy)])));
    const saving = element("p", { className: "muted", textContent: "Click on a picture to save it alone. The .npy file holds the model's own levels." });
    return frames.length > 1 ? [this.film(), files, saving] : [files, saving];
  }

  film() {
    const { frames } = this;
    const last = frames.length;  // where the finished pictures are
    const slider = element("input", { type: "range", min: 0, max: last, step: 1, value: last });
    const where = element("output", {});
    const play = element("button", { type: "button", textContent: "Play" });
    const name = `film-${this.name}`;
    const kinds = [["z", "with their noise"], ["x_hat", "as the network guesses them"]].map(([value, text]) =>
      element("label", {}, element("input", { type: "radio", name, value, checked: value === "z" }), ` ${text}`));
    const group = element("div", { className: "choice", role: "group", ariaLabel: "What the film shows" }, element("span", { textContent: "The film shows them" }), ...kinds);
    const show = () => {
      const at = Number(slider.value);
      const kind = group.querySelector(":checked").value;
      this.paint(at === last ? this.images : padded(frames[at][kind], this.images));
      where.textContent = at === last ? "finished" : `step ${frames[at].step}, gamma ${frames[at].gamma.toFixed(1)}`;
      slider.ariaValueText = where.textContent;
    };
    const pause = () => {
      clearInterval(this.playing);
      play.textContent = "Play";
    };
    play.addEventListener("click", () => {
      if (play.textContent === "Pause") return pause();
      play.textContent = "Pause";
      if (Number(slider.value) === last) slider.value = 0;
      show();
      this.playing = setInterval(() => {
        slider.value = Number(slider.value) + 1;
        show();
        if (Number(slider.value) === last) pause();
      }, MILLISECONDS);
      return undefined;
    });
    slider.addEventListener("input", () => {
      pause();
      show();
    });
    group.addEventListener("change", () => {
      if (Number(slider.value) === last) slider.value = Math.floor(last / 2);
      show();
    });
    show();
    const line = element("div", { className: "slider" }, play, element("label", {}, element("span", { className: "hidden", textContent: "Film" }), slider), where);
    return element("div", { className: "strip" }, line, group);
  }
}

/** Return the images of a frame, which has at most the first 64, followed by the finished ones. */
const padded = (frame, images) => [...frame, ...images.slice(frame.length)];

/** Return a PNG in base64 as a file. */
const pngFile = png => new Blob([bytes(png)], { type: "image/png" });
