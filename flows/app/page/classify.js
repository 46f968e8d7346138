/** The tab Classify. */

import { inBatches, readFiles } from "./batches.js";
import { bars } from "./charts.js";
import { counted, element, figure } from "./dom.js";
import { examples } from "./examples.js";
import { asked, className, dropping, fit, fitting, worker } from "./form.js";
import { drawings, refuse, seen, withPictures } from "./score.js";

const DRAWINGS = 4;
const MOST_BARS = 10;

/** Make the tab work; return what shows the choices of the model. */
export function classifyTab(panel, app) {
  const form = panel.querySelector("form");
  const [counter, refused, results] = [".counter", ".refused", ".results"].map(name => panel.querySelector(name));
  const cards = results.querySelector(".cards");
  let pictures = [];
  const work = worker(form, () => pictures.length > 0);

  const classify = (chosen, signal, take, more = {}) =>
    inBatches("/classify", chosen, { ...asked(form, app.model), ...more }, { verb: "Classifying", model: app.model, counter, signal, take });
  const spendMore = (image, old) => work(signal => {
    const take = (answer, sent) => {
      const found = withPictures(answer.images, sent).find(({ number }) => number === image.number);
      const fresh = shown(found, true);
      old.replaceWith(fresh);
      fresh.querySelector("h3").focus();
    };
    return classify([image.picture], signal, take, { until_sure: true, times: image.times });
  });
  const shown = (image, isSpent) => {
    const made = card(image, app.model, isSpent);
    const button = made.querySelector("button");
    button?.addEventListener("click", async () => {
      button.disabled = true;
      await spendMore(image, made);
      button.disabled = false;
    });
    return made;
  };
  const send = (chosen, signal) => {
    const take = (answer, sent) => {
      refuse(refused, answer.refused, (picture, begun) => work(more => {
        begun();
        return send([picture], more);
      }));
      const found = withPictures(answer.images, sent);
      cards.append(...found.map(image => shown(image, false)));
      results.hidden = cards.children.length === 0;
      if (found.length) results.querySelector(".summary").textContent = `By ${answer.model}, seed ${answer.seed}; all classes are equally likely at first.`;
    };
    return classify(chosen, signal, take).then(() => {
      counter.textContent = cards.children.length ? `${counted(cards.children.length, "picture")} classified.` : "";
    });
  };
  const begin = (signal, unreadable) => {
    cards.replaceChildren();
    refused.replaceChildren();
    refuse(refused, unreadable);
    results.hidden = true;
    return send(pictures, signal);
  };

  const refreshExamples = examples(panel, app, chosen => work(signal => {
    pictures = chosen;
    return begin(signal, []);
  }));
  dropping(panel, files => work(async signal => {
    const read = await readFiles(files);
    pictures = read.pictures;
    await begin(signal, read.refused);
  }));
  form.querySelector(".drawn").addEventListener("click", () => work(async signal => {
    pictures = [await drawings(DRAWINGS, app.model, signal, counter)];
    await begin(signal, []);
  }));
  form.addEventListener("submit", event => {
    event.preventDefault();
    if (pictures.length) work(signal => begin(signal, []));
  });
  return () => {
    fit(form, app.model);
    form.querySelector(".fits").textContent = fitting(app.model);
    refreshExamples();
  };
}

function card(image, model, isSpent) {
  const { probabilities, best, margin, margin_standard_error: error, times, sure } = image;
  const numbers = probabilities.map((_, number) => number);
  const likely = probabilities.length > MOST_BARS ? numbers.sort((a, b) => probabilities[b] - probabilities[a]).slice(0, MOST_BARS) : numbers;
  const ranges = sure ? [] : within(image);
  const name = image.class_name ?? className(model, best);
  const unsure = element("p", { className: "unsure" }, element("strong", { textContent: "Not sure" }), isSpent ? ", even after more. " : ": the margin is less than 3 standard errors, so the two best classes have ranges. ");
  if (!sure && !isSpent) unsure.append(element("button", { type: "button", textContent: "Spend more" }));
  return element(
    "li",
    { className: "card" },
    seen(image, model.image_shape),
    element(
      "div",
      { className: "said" },
      element("h3", { textContent: image.label, tabIndex: -1 }),
      element("p", { className: "figure" }, element("small", { textContent: "class " }), name),
      element("p", { textContent: `Margin ${figure(margin, error)} nats before the next class, at ${counted(times, "noise level")}.` }),
      sure ? null : unsure,
    ),
    bars(likely.map(number => className(model, number)), likely.map(number => probabilities[number]), likely.indexOf(best), likely.map(number => ranges[number])),
  );
}

/** Return, by class, the probabilities [low, high] of an image's two best classes within 3 errors of their margin. */
function within({ probabilities, margin, margin_standard_error: error }) {
  const [best, next] = probabilities.map((_, number) => number).sort((a, b) => probabilities[b] - probabilities[a]);
  if (margin === null || error === null || next === undefined) return [];
  const both = probabilities[best] + probabilities[next];
  const [low, high] = [margin - 3 * error, margin + 3 * error].map(nats => both / (1 + Math.exp(-nats)));
  return Object.assign([], { [best]: [low, high], [next]: [both - high, both - low] });
}
