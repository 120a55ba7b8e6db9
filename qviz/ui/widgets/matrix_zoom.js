// Which part of a matrix is on the canvas: device pixels per cell follow the zoom 0…1 logarithmically.

const CELL = [52, 26]; // CSS pixels of a cell at full zoom: room for a printed value

/** sx, sy: device pixels per column and row; x0, y0: the column and row at the canvas's corner. */
class Zoom {
  constructor(view) {
    Object.assign(this, { view, sx: 1, sy: 1, x0: 0, y0: 0, t: 0, span: 0 });
  }
  update() {
    const { get, W, H, dpr } = this.view;
    const [rows, cols] = get("shape");
    const [t, cy, cx] = get("view");
    const fit = [W / cols, H / rows];
    const full = [Math.max(fit[0], CELL[0] * dpr), Math.max(fit[1], CELL[1] * dpr)];
    this.t = clamp(t, 0, 1);
    this.span = Math.log(Math.max(full[0] / fit[0], full[1] / fit[1]));
    this.sx = fit[0] * (full[0] / fit[0]) ** this.t;
    this.sy = fit[1] * (full[1] / fit[1]) ** this.t;
    this.x0 = clamp(cx - W / this.sx / 2, 0, Math.max(0, cols - W / this.sx));
    this.y0 = clamp(cy - H / this.sy / 2, 0, Math.max(0, rows - H / this.sy));
  }
  /** [first row, end, first column, end] */
  visible() {
    const { get, W, H } = this.view;
    const [rows, cols] = get("shape");
    return [
      Math.floor(this.y0), Math.min(rows, Math.ceil(this.y0 + H / this.sy - 1e-6)),
      Math.floor(this.x0), Math.min(cols, Math.ceil(this.x0 + W / this.sx - 1e-6)),
    ];
  }
  /** The matrix point in the middle of the canvas, moved by so many cells. */
  middle(rows = 0, cols = 0) {
    const { W, H } = this.view;
    return [this.y0 + H / this.sy / 2 + rows, this.x0 + W / this.sx / 2 + cols];
  }
  look([row, col]) {
    const { get, set, W, H } = this.view;
    const [rows, cols] = get("shape");
    const [h, w] = [H / this.sy / 2, W / this.sx / 2];
    set("view", [this.t, clamp(row, h, Math.max(h, rows - h)), clamp(col, w, Math.max(w, cols - w))]);
  }
  /** Zooms to t so that the matrix point (row, col) stays under the canvas point (px, py). */
  to(t, px, py) {
    const { get, model, W, H } = this.view;
    const row = this.y0 + py / this.sy;
    const col = this.x0 + px / this.sx;
    const [, cy, cx] = get("view");
    model.set("view", [clamp(t, 0, 1), cy, cx]);
    this.update();
    this.look([row + (H / 2 - py) / this.sy, col + (W / 2 - px) / this.sx]);
    this.update();
  }
  by(steps, px = this.view.W / 2, py = this.view.H / 2) {
    if (this.span < 1e-6) return false;
    const t = clamp(this.t + (steps * 0.35) / this.span, 0, 1);
    if (t === this.t) return false;
    this.to(t, px, py);
    return true;
  }
  whole() {
    this.view.set("view", [0, 0, 0]);
  }
}
