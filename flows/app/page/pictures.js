/** Pictures as files and as elements.  An image that the server sends is a PNG of its own size in base64. */

import { element } from "./dom.js";

const GAP = 2;

/** Return the source of an image element for a PNG in base64. */
export const source = png => `data:image/png;base64,${png}`;

/** Return how many pictures side by side show an image of (C,H,W): one in gray or colour, or else one for each channel. */
export const panes = ([channels]) => ([1, 3].includes(channels) ? 1 : channels);

/** Return the largest whole factor, at least 1, by which an image of (C,H,W) fits a square of so many pixels. */
export const enlargement = (shape, side) => Math.max(1, Math.floor(side / Math.max(shape[1], panes(shape) * shape[2])));

/** Return an image element of a PNG, enlarged in whole pixels to at most `side` if it is smaller. */
export function picture(png, shape, side, alt) {
  const scale = enlargement(shape, side);
  return element("img", { src: source(png), width: scale * panes(shape) * shape[2], height: scale * shape[1], alt });
}

/** Return a file as the server takes it: its name, and its bytes in base64.  Throws DOMException for a folder. */
export async function encoded(file) {
  const url = await new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
  return { name: file.name, data: url.slice(url.indexOf(",") + 1) };
}

/** Return the bytes of a text in base64. */
export const bytes = base64 => Uint8Array.from(atob(base64), letter => letter.charCodeAt(0));

/** Return the bitmap of a PNG in base64. */
export const bitmap = png => createImageBitmap(new Blob([bytes(png)], { type: "image/png" }));

/** Return an array as an .npy file in base64: numbers from 0 to 255, of that shape. */
export function npy(numbers, shape) {
  const header = `{'descr': '|u1', 'fortran_order': False, 'shape': (${shape.join(", ")},), }`;
  const padded = header.padEnd(Math.ceil((header.length + 11) / 64) * 64 - 11) + "\n";
  const start = [0x93, ...new TextEncoder().encode("NUMPY"), 1, 0, padded.length & 255, padded.length >> 8];
  const file = Uint8Array.from([...start, ...new TextEncoder().encode(padded), ...numbers]);
  return btoa(Array.from(file, byte => String.fromCharCode(byte)).join(""));
}

/** Save content under a name. */
export function download(name, content) {
  const link = element("a", { href: URL.createObjectURL(content), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

/** Return a PNG file that shows all images in an almost square grid, small ones enlarged in whole pixels. */
export async function gridFile(pngs, shape) {
  const [height, width] = [shape[1], panes(shape) * shape[2]];
  const scale = enlargement(shape, 64);
  const columns = Math.ceil(Math.sqrt(pngs.length));
  const rows = Math.ceil(pngs.length / columns);
  const canvas = element("canvas", {
    width: columns * (scale * width + GAP) + GAP,
    height: rows * (scale * height + GAP) + GAP,
  });
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = false;
  context.fillStyle = "rgb(128 128 128)";
  context.fillRect(0, 0, canvas.width, canvas.height);
  for (const [index, image] of (await Promise.all(pngs.map(bitmap))).entries()) {
    const left = GAP + (index % columns) * (scale * width + GAP);
    const top = GAP + Math.floor(index / columns) * (scale * height + GAP);
    context.drawImage(image, left, top, scale * width, scale * height);
  }
  return new Promise(resolve => canvas.toBlob(resolve, "image/png"));
}
