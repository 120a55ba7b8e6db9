// Paints a matrix in two layers: the values as one ImageData, and over them grid lines, printed
// values, cursor and marks.

/** Which source cells lie under each device pixel: starts and ends (exclusive) along one axis. */
function cellsUnder(pixels, origin, scale, first, step, count, starts, ends) {
  let several = false;
  for (let p = 0; p < pixels; p += 1) {
    const a = (origin + p / scale - first) / step;
    const b = (origin + (p + 1) / scale - first) / step;
    let start = Math.floor((a + b) / 2);
    let end = start + 1;
    if (b - a > 1) {
      start = Math.round(a);
      end = Math.max(start + 1, Math.round(b));
      several ||= end - start > 1;
    }
    starts[p] = clamp(start, 0, count - 1);
    ends[p] = clamp(end, 1, count);
  }
  return several;
}

/** The index that stands for several of them when the screen has one pixel for all. */
function combine(data, width, ra, rb, ca, cb, how, zero) {
  if (how === "nearest") return data[((ra + rb) >> 1) * width + ((ca + cb) >> 1)];
  let best = NAN;
  let far = -1;
  let sum = 0;
  let n = 0;
  for (let r = ra; r < rb; r += 1) {
    for (let c = ca; c < cb; c += 1) {
      const k = data[r * width + c];
      if (k === NAN) return NAN;
      if (Math.abs(k - zero) > far) {
        far = Math.abs(k - zero);
        best = k;
      }
      sum += k;
      n += 1;
    }
  }
  return how === "mean" ? Math.round(sum / n) : best;
}

const rgba = (r, g, b) => ((255 << 24) | (b << 16) | (g << 8) | r) >>> 0;

class MatrixPainter {
  constructor(view) {
    const { base, over } = view.page;
    Object.assign(this, {
      view, lut: new Uint32Array(256), ctx: base.getContext("2d"), top: over.getContext("2d"),
      palette: new Uint8Array(0), colours: {}, themed: false,
    });
    this.resize(0, 0);
  }
  resize(W, H) {
    const line = (length) => new Int32Array(length);
    this.axisX = [line(W), line(W)];
    this.axisY = [line(H), line(H)];
    this.shownColumn = line(W); // the matrix column under each device pixel, as painted
    if (!W || !H) return;
    for (const canvas of [this.view.page.base, this.view.page.over]) {
      canvas.width = W;
      canvas.height = H;
    }
    this.image = this.ctx.createImageData(W, H);
    this.pixels = new Uint32Array(this.image.data.buffer);
  }

  // ---- colours ------------------------------------------------------------------------------
  /** Colours can be asked for only once the view is part of the page. */
  readTheme() {
    const { el, get } = this.view;
    this.themed = el.isConnected;
    if (!this.themed) return;
    const all = bytes(get("palettes"));
    this.palette = all.subarray(isDark(el) ? 768 : 0, isDark(el) ? 1536 : 768);
    for (const key of ["ink", "card", "now", "wait", "line"]) this.colours[key] = cssColor(el, `--qv-${key}`);
    this.bar();
  }
  bar() {
    if (this.palette.length < 768) return;
    const draw = this.view.page.bar.getContext("2d");
    const line = draw.createImageData(256, 1);
    for (let i = 0; i < 256; i += 1) {
      line.data.set(this.palette.subarray(3 * i, 3 * i + 3), 4 * i);
      line.data[4 * i + 3] = 255;
    }
    draw.putImageData(line, 0, 0);
  }
  fillTable(f, [lo, hi]) {
    const { lut, palette, view } = this;
    const [from, to] = view.source().limits(f);
    for (let k = 0; k < NAN; k += 1) {
      const value = lo + (k / 254) * (hi - lo);
      const p = 3 * Math.round(clamp((value - from) / (to - from), 0, 1) * 255);
      lut[k] = rgba(palette[p], palette[p + 1], palette[p + 2]);
    }
    lut[NAN] = rgba(...view.get("nan_color"));
  }

  // ---- the values ---------------------------------------------------------------------------
  values() {
    const { view } = this;
    const [f, source] = [view.frame(), view.source()];
    const [rows, cols] = view.get("shape");
    this.source({
      data: source.cells(f), range: source.range(f), grid: view.get("grid"), step: view.get("step"),
      row: 0, col: 0, rowEnd: rows, colEnd: cols,
    });
    const tile = view.tiles.at(f);
    if (tile) this.source(tile);
    this.ctx.putImageData(this.image, 0, 0);
    painted(view.el, f);
  }
  /** Paints one source (the frame as sent, or an exact tile) into the pixels it covers. */
  source(src) {
    const { view, pixels, lut, shownColumn } = this;
    const { W, H } = view;
    this.fillTable(view.frame(), src.range);
    const { sx, sy, x0, y0 } = view.zoom;
    const [xs, xe] = this.axisX;
    const [ys, ye] = this.axisY;
    const multiX = cellsUnder(W, x0, sx, src.col, src.step[1], src.grid[1], xs, xe);
    const multiY = cellsUnder(H, y0, sy, src.row, src.step[0], src.grid[0], ys, ye);
    // a pixel belongs to a tile when its middle does
    const px0 = clamp(Math.ceil((src.col - x0) * sx - 0.5), 0, W);
    const px1 = clamp(Math.ceil((src.colEnd - x0) * sx - 0.5), 0, W);
    const py0 = clamp(Math.ceil((src.row - y0) * sy - 0.5), 0, H);
    const py1 = clamp(Math.ceil((src.rowEnd - y0) * sy - 0.5), 0, H);
    const [data, width, how] = [src.data, src.grid[1], view.get("reduce")];
    const [lo, hi] = src.range;
    const zero = (-lo / (hi - lo)) * 254;
    const [wide, end] = [src.step[1], src.colEnd - src.col - 1];
    for (let x = px0; x < px1; x += 1) {
      shownColumn[x] = src.col + Math.min(((xs[x] + xe[x]) >> 1) * wide + (wide >> 1), end);
    }
    for (let y = py0; y < py1; y += 1) {
      const row = y * W;
      if (!multiX && !multiY) {
        if (y > py0 && ys[y] === ys[y - 1]) {
          pixels.copyWithin(row + px0, row - W + px0, row - W + px1);
          continue;
        }
        const from = ys[y] * width;
        for (let x = px0; x < px1; x += 1) pixels[row + x] = lut[data[from + xs[x]]];
      } else {
        for (let x = px0; x < px1; x += 1) {
          pixels[row + x] = lut[combine(data, width, ys[y], ye[y], xs[x], xe[x], how, zero)];
        }
      }
    }
  }

  // ---- over the values ----------------------------------------------------------------------
  over() {
    const { view, top } = this;
    top.clearRect(0, 0, view.W, view.H);
    this.veil();
    this.grid();
    if (view.printing()) this.print();
    this.marks();
    for (const cells of view.get("outlines")) this.outline(...cells);
    const [row, col] = view.hover ?? view.get("cursor");
    if (row >= 0 && col >= 0) this.cursor(row, col);
  }
  get line() {
    return Math.max(1, Math.round(this.view.dpr));
  }
  /** A veil over the columns that wait. */
  veil() {
    const { view, top, shownColumn } = this;
    const [f, of] = [view.frame(), view.source()];
    if (!of.veiled()) return;
    top.fillStyle = this.colours.wait;
    for (let x = 0, from = 0, part = 0; x <= view.W; x += 1) {
      const here = x < view.W ? of.waits(f, shownColumn[x]) : -1;
      if (here === part) continue;
      top.globalAlpha = 0.28 * part;
      if (part > 0) top.fillRect(from, 0, x - from, view.H);
      [from, part] = [x, here];
    }
    top.globalAlpha = 1;
  }
  grid() {
    const { view, top } = this;
    const { sx, sy, x0, y0 } = view.zoom;
    if (Math.min(sx, sy) < 7 * view.dpr) return;
    const [ra, rb, ca, cb] = view.zoom.visible();
    top.fillStyle = this.colours.card;
    top.globalAlpha = 0.55;
    for (let c = ca; c <= cb; c += 1) top.fillRect(Math.round((c - x0) * sx), 0, 1, view.H);
    for (let r = ra; r <= rb; r += 1) top.fillRect(0, Math.round((r - y0) * sy), view.W, 1);
    top.globalAlpha = 1;
  }
  /** The exact values of the tile in its cells. */
  print() {
    const { view, top, lut } = this;
    const tile = view.tiles.at(view.frame());
    if (!tile?.values) return;
    const { sx, sy, x0, y0 } = view.zoom;
    const [ra, rb, ca, cb] = view.zoom.visible();
    top.font = `${Math.round(11 * view.dpr)}px system-ui, sans-serif`;
    top.textAlign = "center";
    top.textBaseline = "middle";
    const width = tile.colEnd - tile.col;
    for (let r = Math.max(ra, tile.row); r < Math.min(rb, tile.rowEnd); r += 1) {
      for (let c = Math.max(ca, tile.col); c < Math.min(cb, tile.colEnd); c += 1) {
        const at = (r - tile.row) * width + (c - tile.col);
        const p = lut[tile.data[at]];
        const light = 0.299 * (p & 255) + 0.587 * ((p >> 8) & 255) + 0.114 * ((p >> 16) & 255);
        top.fillStyle = light > 140 ? "#101418" : "#ffffff";
        top.fillText(fmt(tile.values[at], 2), (c + 0.5 - x0) * sx, (r + 0.5 - y0) * sy, sx - 4 * view.dpr);
      }
    }
  }
  /** Outlines around the columns and the row of now. */
  marks() {
    const { view, top, line } = this;
    const { sx, sy, x0, y0 } = view.zoom;
    top.strokeStyle = top.fillStyle = this.colours.now;
    top.lineWidth = 2 * line;
    for (const mark of view.source().marks(view.frame())) {
      const [x, w] = [Math.round((mark - x0) * sx), Math.max(2 * line, Math.round(sx))];
      if (sx < 6 * view.dpr) top.fillRect(x, 0, w, view.H);
      else top.strokeRect(x, -9, w, view.H + 18);
    }
    const mark = view.get("row_mark");
    if (mark >= 0) {
      const [y, h] = [Math.round((mark - y0) * sy), Math.max(2 * line, Math.round(sy))];
      if (sy < 6 * view.dpr) top.fillRect(0, y, view.W, h);
      else top.strokeRect(-9, y, view.W + 18, h);
    }
  }
  /** A line around some cells, in two tones; inside the picture where they reach beyond it. */
  outline(ra, rb, ca, cb) {
    const { view, top, line } = this;
    const { sx, sy, x0, y0 } = view.zoom;
    const span = (a, b, scale, from, end) => {
      const spare = Math.max(0, 11 * view.dpr - (b - a) * scale) / 2; // a single cell must be seen, too
      const lo = clamp((a - from) * scale - spare, 2 * line, end - 2 * line);
      return [lo, clamp((b - from) * scale + spare, 2 * line, end - 2 * line) - lo];
    };
    const [x, w] = span(ca, cb, sx, x0, view.W);
    const [y, h] = span(ra, rb, sy, y0, view.H);
    if (w <= 0 || h <= 0) return; // zoomed away from it
    for (const [style, width] of [[this.colours.card, 4 * line], [this.colours.now, 2 * line]]) {
      top.strokeStyle = style;
      top.lineWidth = width;
      top.strokeRect(x, y, w, h);
    }
  }
  cursor(row, col) {
    const { view, top, line } = this;
    const { W, H } = view;
    const { sx, sy, x0, y0 } = view.zoom;
    const [x, y] = [(col - x0) * sx, (row - y0) * sy];
    const m = 2.5 * view.dpr;
    const [bx, by] = [Math.min(x, x + sx / 2 - m), Math.min(y, y + sy / 2 - m)];
    const [bw, bh] = [Math.max(sx, 2 * m), Math.max(sy, 2 * m)];
    const ink = view.get("pinned") ? this.colours.now : this.colours.ink;
    // two tones, so that the cursor shows on every colour of the map
    for (const [style, w] of [[this.colours.card, 3 * line], [ink, line]]) {
      top.strokeStyle = style;
      top.lineWidth = w;
      top.globalAlpha = 0.85;
      top.strokeRect(bx, by, bw, bh);
      if (view.printing()) continue; // lines would strike the numbers out
      top.beginPath();
      top.moveTo(0, by + bh / 2); top.lineTo(bx, by + bh / 2);
      top.moveTo(bx + bw, by + bh / 2); top.lineTo(W, by + bh / 2);
      top.moveTo(bx + bw / 2, 0); top.lineTo(bx + bw / 2, by);
      top.moveTo(bx + bw / 2, by + bh); top.lineTo(bx + bw / 2, H);
      top.globalAlpha = w === line ? 0.6 : 0.35;
      top.stroke();
    }
    top.globalAlpha = 1;
  }
}
