/** The page: its tabs, and the model that answers, which changes when another version becomes the champion. */

import { ask } from "./api.js";
import { classifyTab } from "./classify.js";
import { counted, say } from "./dom.js";
import { drawTab } from "./draw.js";
import { fillInTab } from "./fill_in.js";
import { modelTab } from "./model.js";
import { scoreTab } from "./score.js";

const LOOK_EVERY = 10_000;

const app = { model: null, examples: [] };
const at = id => document.getElementById(id);
const tabs = [...document.querySelectorAll("[role=tab]")];

/** Show the panel of a tab, and hide the others. */
function open(tab) {
  for (const each of tabs) {
    const chosen = each === tab;
    each.ariaSelected = String(chosen);
    each.tabIndex = chosen ? 0 : -1;
    at(each.getAttribute("aria-controls")).hidden = !chosen;
  }
}

function openNamed() {
  const named = tabs.find(tab => `#${tab.getAttribute("aria-controls")}` === location.hash);
  open(named && !named.hidden ? named : tabs[0]);
}

for (const tab of tabs) {
  tab.addEventListener("click", () => {
    history.replaceState(null, "", `#${tab.getAttribute("aria-controls")}`);
    open(tab);
  });
}
at("tabs").addEventListener("keydown", event => {
  const shown = tabs.filter(tab => !tab.hidden);
  const from = shown.indexOf(document.activeElement);
  const to = { ArrowRight: from + 1, ArrowLeft: from - 1, Home: 0, End: shown.length - 1 }[event.key];
  if (to === undefined || from < 0) return;
  event.preventDefault();
  const next = shown.at(to % shown.length);
  next.focus();
  next.click();
});
addEventListener("hashchange", openNamed);
// A file that is dropped beside a panel would replace the page.
for (const name of ["dragover", "drop"]) addEventListener(name, event => event.preventDefault());

const refreshers = [
  drawTab(at("draw"), app),
  scoreTab(at("score"), app),
  fillInTab(at("fill-in"), app),
  classifyTab(at("classify"), app),
  modelTab(at("model"), app),
];

/** Ask for the model, and show it everywhere. */
async function follow() {
  const before = app.model;
  app.model = await ask("/model");
  app.examples = (await ask("/examples")).images;
  const { name, image_shape: [channels, height, width], num_classes: classes } = app.model;
  document.title = `${name}: a variational diffusion model`;
  const of = classes === null ? "" : `, ${counted(classes, "class", "classes")}`;
  at("about").textContent = `${name}: images of ${width} × ${height}, ${counted(channels, "channel")}${of}`;
  say(at("judgement"), app.model.judgement[0]);
  at("tab-classify").hidden = classes === null;
  for (const refresh of refreshers) refresh();
  if (before && before.model_sha256 !== app.model.model_sha256) say(at("changed"), `${name} is the champion now. What you ask for from now on comes from it.`);
  for (const id of ["tabs", "panels"]) at(id).hidden = false;
  openNamed();
}

/** Look whether the app still serves the model that is shown, and whether it has a problem. */
async function look() {
  try {
    const health = await ask("/health");
    const { model } = app;
    if (health.model_sha256 !== model?.model_sha256 || health.model !== model?.name) await follow();
    else if (!model.figures && !model.problem) await follow();  // its results are still being read
    say(at("trouble"), health.problem);
  } catch (error) {
    say(at("trouble"), error.message);
  }
  setTimeout(look, LOOK_EVERY);
}

look();
