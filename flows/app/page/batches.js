/** Files that are sent in several requests, each within the server's limits, so that answers appear as they come. */

import { ask, Failure } from "./api.js";
import { clock } from "./form.js";
import { counted } from "./dom.js";
import { encoded } from "./pictures.js";

const MOST_PICTURES = 8;
const PHOTOGRAPH = 2 ** 17;

/** Return the files as the server takes them, each under a name of its own, and those that cannot be read. */
export async function readFiles(files) {
  const pictures = [];
  const refused = [];
  const names = new Set();
  for (const file of files) {
    try {
      const picture = await encoded(file);
      const [, stem, ending] = /^(.*?)(\.[^.]*)?$/s.exec(picture.name);
      for (let number = 2; names.has(picture.name); number += 1) picture.name = `${stem} (${number})${ending ?? ""}`;
      names.add(picture.name);
      pictures.push(picture);
    } catch {
      refused.push({ name: file.name, error: "the browser cannot read it; is it a folder?" });
    }
  }
  return { pictures, refused };
}

/**
 * Send the pictures in turn, and give every answer to `take` as it comes; refused ones are in `answer.refused`.
 *
 * A picture of the model's size that is refused, since it holds shades and not the model's levels, is made to fit.  Of
 * another size, it is the `picture` of what is refused, for `fit` to be set.
 */
export async function inBatches(path, pictures, settings, doing) {
  const { verb, model, counter, signal, take } = doing;
  const changed = [];
  let answered = null;
  let done = 0;
  for (const batch of batches(pictures, model.limits, take)) {
    const others = pictures.length > batch.length ? `, ${done} of ${pictures.length} done` : "";
    const end = clock(counter, `${verb} ${counted(batch.length, "picture")}${others}:`);
    try {
      const files = batch.map(({ name, data, fit = false }) => ({ name, data, fit }));
      const answer = await ask(path, { pictures: files, ...settings }, signal).catch(empty);
      if (answer.images.length && answered && answered !== answer.model_sha256) {
        throw new Failure("Another version became the champion meanwhile. Send the pictures again.");
      }
      answered = answer.model_sha256 ?? answered;
      const refused = [];
      for (const one of answer.refused) {
        const picture = { ...batch.find(({ name }) => name === one.name), fit: true };
        if (one.fit === "shades") changed.push(picture);
        else refused.push({ ...one, picture: one.fit && picture });
      }
      take({ ...answer, refused }, [...batch]);
      done += batch.length;
    } finally {
      end();
      counter.replaceChildren();
    }
  }
  if (changed.length) await inBatches(path, changed, settings, doing);
}

/** Turn the answer that no picture fits into one without images. */
function empty(error) {
  if (!error.refused?.length) throw error;
  return { images: [], refused: error.refused };
}

function* batches(pictures, limits, take) {
  const most = limits.bytes - 4096;  // the rest of the request is smaller than this
  let batch = [];
  let size = 0;
  for (const picture of pictures) {
    const length = picture.data.length + picture.name.length * 6 + 64;
    if (length > most) {
      const megabytes = Math.floor((most * 3) / 4 / 1e6);
      take({ images: [], refused: [{ name: picture.name, error: `larger than ${megabytes} MB` }] }, []);
      continue;
    }
    // An array may hold as many images as a request may, and a photograph that is made to fit as many pixels.
    const isAlone = /\.npy$/i.test(picture.name) || (picture.fit && length > PHOTOGRAPH);
    if (batch.length && (isAlone || batch.length === Math.min(MOST_PICTURES, limits.pictures) || size + length > most)) {
      yield batch;
      [batch, size] = [[], 0];
    }
    batch.push(picture);
    size = isAlone ? most : size + length;
  }
  if (batch.length) yield batch;
}
