/** A few of the model's test images, to try it with. */

import { element } from "./dom.js";
import { picture } from "./pictures.js";

const SIDE = 56;

/** Return what shows the examples of the model in a panel; those that are chosen are given to `take`. */
export function examples(panel, app, take) {
  const place = panel.querySelector(".examples");
  const all = place.querySelector(".all");
  all?.addEventListener("click", () => take(app.examples));
  return () => {
    const shape = app.model.image_shape;
    const tiles = app.examples.map((example, index) => {
      const alt = `Test image ${index + 1}`;
      const button = element("button", { type: "button", title: `${alt}: try it` }, picture(example.seen, shape, SIDE, alt));
      button.addEventListener("click", () => take([example]));
      return element("li", {}, button);
    });
    place.querySelector(".tiles").replaceChildren(...tiles);
    place.hidden = tiles.length === 0;
  };
}
