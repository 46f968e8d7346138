/** A picture that is painted over with a brush: what is covered is filled in. */

import { enlargement, npy, panes } from "./pictures.js";

const COLOR = "rgb(232 62 140)";

/** The canvas with a picture of the model's shape, enlarged in whole pixels, and what is covered of it. */
export class Easel {
  /** `brush()` is the brush's width in the picture's pixels, `covers()` whether it covers; `changed()` is called. */
  constructor(canvas, { brush, covers, changed }) {
    Object.assign(this, { canvas, brush, covers, changed });
    this.context = canvas.getContext("2d");
    this.last = null;
    this.cursor = null;
    canvas.addEventListener("pointerdown", event => {
      canvas.setPointerCapture(event.pointerId);
      this.cursor = null;
      this.last = this.at(event);
      this.stroke(this.last);
    });
    canvas.addEventListener("pointermove", event => {
      if (!this.last) return;
      const place = this.at(event);
      if (place.pane !== this.last.pane) this.last = place;
      this.stroke(place);
    });
    for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, () => { this.last = null; });
    canvas.addEventListener("keydown", event => this.key(event));
    canvas.addEventListener("blur", () => {
      this.cursor = null;
      this.paint();
    });
  }

  /** Show a bitmap of a model's image_shape, enlarged to at most `side`, with nothing covered. */
  show(image, shape, side) {
    this.image = image;
    [, this.height, this.width] = shape;
    this.panes = panes(shape);
    this.scale = enlargement(shape, side);
    this.canvas.width = this.scale * this.panes * this.width;
    this.canvas.height = this.scale * this.height;
    this.cover(() => false);
  }

  /** Cover the pixels for which the function of their column and row is true, and no others. */
  cover(chosen) {
    this.covered = Uint8Array.from({ length: this.width * this.height }, (_, index) =>
      chosen(index % this.width, Math.floor(index / this.width)));
    this.paint();
    this.changed();
  }

  /** The number of covered pixels. */
  get count() {
    return this.covered?.reduce((sum, one) => sum + one, 0) ?? 0;
  }

  /** Return what is covered as a mask, an .npy file in base64. */
  mask() {
    return npy(this.covered, [this.height, this.width]);
  }

  /** Return the place of an event in pixels of the picture, in whichever pane it is. */
  at(event) {
    const box = this.canvas.getBoundingClientRect();
    const across = ((event.clientX - box.left) / box.width) * this.panes;
    const pane = Math.max(0, Math.min(this.panes - 1, Math.floor(across)));
    return { pane, column: (across - pane) * this.width, row: ((event.clientY - box.top) / box.height) * this.height };
  }

  /** Paint from the last place to this one. */
  stroke(place) {
    const { column, row } = place;
    const { column: fromColumn, row: fromRow } = this.last ?? place;
    const steps = Math.max(1, Math.ceil(2 * Math.hypot(column - fromColumn, row - fromRow)));
    for (let step = 0; step <= steps; step += 1) {
      const share = step / steps;
      this.dab(fromColumn + share * (column - fromColumn), fromRow + share * (row - fromRow));
    }
    if (this.last) this.last = place;
    this.paint();
    this.changed();
  }

  /** Cover, or uncover, the pixels whose centres the brush reaches, and the one below its own centre. */
  dab(column, row) {
    const radius = this.brush() / 2;
    const value = this.covers() ? 1 : 0;
    const [right, bottom] = [Math.min(this.width, column + radius), Math.min(this.height, row + radius)];
    for (let y = Math.max(0, Math.floor(row - radius)); y < bottom; y += 1) {
      for (let x = Math.max(0, Math.floor(column - radius)); x < right; x += 1) {
        const below = Math.floor(column) === x && Math.floor(row) === y;
        if (below || Math.hypot(x + 0.5 - column, y + 0.5 - row) < radius) this.covered[y * this.width + x] = value;
      }
    }
  }

  key(event) {
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    const known = event.key in moves || event.key === " " || event.key === "Delete";
    if (!known || !this.covered) return;
    event.preventDefault();
    this.cursor ??= [Math.floor(this.width / 2), Math.floor(this.height / 2)];
    if (event.key in moves) {
      const [across, down] = moves[event.key];
      this.cursor[0] = Math.min(this.width - 1, Math.max(0, this.cursor[0] + across));
      this.cursor[1] = Math.min(this.height - 1, Math.max(0, this.cursor[1] + down));
      this.paint();
      this.changed();
      return;
    }
    const { covers } = this;
    if (event.key === "Delete") this.covers = () => false;
    this.stroke({ column: this.cursor[0] + 0.5, row: this.cursor[1] + 0.5 });
    this.covers = covers;
  }

  paint() {
    const { context, scale } = this;
    if (!this.covered) return;
    context.imageSmoothingEnabled = false;
    context.drawImage(this.image, 0, 0, this.canvas.width, this.canvas.height);
    for (let pane = 0; pane < this.panes; pane += 1) this.paintPane(pane * this.width * scale);
  }

  /** Paint what is covered, and the cursor, from so many pixels of the canvas on. */
  paintPane(left) {
    const { context, scale } = this;
    context.fillStyle = COLOR;
    this.covered.forEach((one, index) => {
      if (one) context.fillRect(left + (index % this.width) * scale, Math.floor(index / this.width) * scale, scale, scale);
    });
    if (this.cursor) {
      const side = Math.max(scale, 4);
      const [x, y] = [left + this.cursor[0] * scale, this.cursor[1] * scale];
      context.lineWidth = 2;
      context.strokeStyle = "white";
      context.strokeRect(x, y, side, side);
      context.strokeStyle = "black";
      context.strokeRect(x + 2, y + 2, side - 4, side - 4);
    }
  }
}
