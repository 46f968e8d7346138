/** Pictures that the server refuses, changed in the browser to what the model takes, and said to be. */

import { bytes, npy } from "./pictures.js";

/**
 * Return a picture as an .npy file of the model's shape and levels, or null if the browser cannot read it.
 *
 * Of another size it is the middle, shrunk; `isSameSize` says that only shades changed.  `note` says so to the reader,
 * `origin` is the picture's name, and `image` the bitmap of what the model sees.
 */
export async function madeToFit(picture, model) {
  const whole = await createImageBitmap(new Blob([bytes(picture.data)])).catch(() => null);
  if (!whole) return null;
  const [channels, height, width] = model.image_shape;
  const isSameSize = whole.width === width && whole.height === height;
  const { image, data, isExact } = await middle(whole, model);
  const cut = isSameSize ? "" : `its middle, shrunk from ${sized(whole)} to ${sized(image)}; `;
  const changed = `Changed to fit: ${cut}${channels === 1 ? "gray, " : ""}${model.num_levels} levels.`;
  const note = isSameSize && isExact ? `its shades are the ${model.num_levels} levels` : changed;
  return { name: `${picture.name}.npy`, origin: picture.name, note, isSameSize, image, data };
}

const sized = ({ width, height }) => `${width}\u00a0×\u00a0${height}`;

/** Return the middle of a picture as the model sees it: its bitmap, the file in base64, and whether all shades are levels. */
async function middle(whole, { image_shape: [channels, height, width], num_levels: levels }) {
  const factor = Math.max(width / whole.width, height / whole.height);
  const [w, h] = [width / factor, height / factor];
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.fillRect(0, 0, width, height);
  context.drawImage(whole, (whole.width - w) / 2, (whole.height - h) / 2, w, h, 0, 0, width, height);
  const pixels = context.getImageData(0, 0, width, height);
  const found = new Array(channels * height * width);
  let isExact = true;
  for (let place = 0; place < height * width; place += 1) {
    const [red, green, blue] = pixels.data.subarray(4 * place);
    const shades = channels === 3 ? [red, green, blue] : [0.299 * red + 0.587 * green + 0.114 * blue];
    const level = shades.map(shade => Math.round((shade * (levels - 1)) / 255));
    for (let channel = 0; channel < channels; channel += 1) {
      found[channel * height * width + place] = level[Math.min(channel, level.length - 1)];
    }
    const shown = level.map(each => Math.round((each * 255) / (levels - 1)));
    const [r, g, b] = shown.length === 3 ? shown : [shown[0], shown[0], shown[0]];
    isExact &&= r === red && g === green && b === blue;
    pixels.data.set([r, g, b], 4 * place);
  }
  return { image: await createImageBitmap(pixels), data: npy(found, [channels, height, width], levels > 256), isExact };
}
