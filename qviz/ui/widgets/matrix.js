// A matrix on a canvas. Two layers: the values as one ImageData, and over them grid lines, printed
// values, cursor and column mark. Both are redrawn only in animation frames.

const NAN = 255; // index of "not a number"
const CELL = [52, 26]; // CSS pixels of a cell at full zoom: room for a printed value

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

function icon(path) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 16 16");
  svg.setAttribute("aria-hidden", "true");
  const line = document.createElementNS("http://www.w3.org/2000/svg", "path");
  line.setAttribute("d", path);
  svg.append(line);
  return svg;
}

/** What there is to say and to show of each frame, for frames that were sent ahead. The other kind,
 *  steps of a run, is in replay.js. */
function sentFrames(model) {
  const get = (name) => model.get(name);
  return {
    count: () => get("ranges").length,
    prepare: () => true,
    label: (f) => get("labels")[f] ?? "",
    range: (f) => get("ranges")[f], // what the indices 0 and 254 stand for
    limits: (f) => (get("autoscale") ? get("own_limits") : get("shared_limits"))[f],
    extent: (f) => get("clipped")[f],
    nans: (f) => get("nans")[f],
    sentence: (f) => get("summaries")[f] ?? "",
    cells(f) {
      const size = get("grid")[0] * get("grid")[1];
      return bytes(get("data")).subarray(f * size, (f + 1) * size);
    },
    /** Frames whose tiles are fetched, the nearest first. */
    wanted: (f) => [...Array(get("ranges").length).keys()].sort((a, b) => Math.abs(a - f) - Math.abs(b - f)),
    asks: () => ({}),
    exact: (f, answer) => answer.texts?.[f],
    approx(f, row, col) {
      const [grid, step] = [get("grid"), get("step")];
      const [lo, hi] = get("ranges")[f];
      const k = this.cells(f)[Math.floor(row / step[0]) * grid[1] + Math.floor(col / step[1])];
      return k === NAN ? "≈ NaN" : `≈ ${fmt(lo + (k / 254) * (hi - lo), 2)}`;
    },
    /** Finished columns stand before the mark, waiting ones behind it. */
    waits: (f, column) => Number(get("column_mark") >= 0 && column > get("column_mark")),
    marks: () => (get("column_mark") >= 0 ? [get("column_mark")] : []),
    veiled: () => get("column_mark") >= 0,
  };
}

export default widget(({ model, el, signal }) => {
  el.classList.add("qv-matrix");
  const get = (name) => model.get(name);
  const set = setter(model, signal);
  const id = uid("matrix");

  // ---- the page -----------------------------------------------------------------------------
  const title = elem("div", "qv-matrix-title");
  title.id = `${id}-title`;
  const name = elem("b");
  const which = elem("span");
  title.append(name, " ", which);
  const stage = elem("div", "qv-stage");
  Object.assign(stage, { tabIndex: 0, id: `${id}-stage` });
  stage.setAttribute("role", "application");
  stage.setAttribute("aria-roledescription", "matrix");
  stage.setAttribute("aria-labelledby", title.id);
  const base = elem("canvas", "qv-values");
  const over = elem("canvas", "qv-over");
  base.setAttribute("role", "img");
  over.setAttribute("aria-hidden", "true");
  const buttons = elem("div", "qv-zoom");
  const button = (label, path, act) => {
    const b = elem("button");
    b.type = "button";
    b.title = label;
    b.setAttribute("aria-label", label);
    b.append(icon(path));
    b.addEventListener("click", act, { signal });
    buttons.append(b);
    return b;
  };
  stage.append(base, over);
  const frameBox = elem("div", "qv-stage-box");
  const legend = elem("div", "qv-legend");
  const bar = elem("canvas");
  bar.width = 256;
  bar.height = 1;
  bar.setAttribute("aria-hidden", "true");
  const ends = [elem("span"), elem("span"), elem("span")];
  const endRow = elem("div", "qv-legend-ends");
  endRow.append(...ends);
  const extra = elem("div", "qv-legend-extra");
  legend.append(bar, endRow, extra);
  const readout = elem("p", "qv-cell");
  readout.setAttribute("aria-live", "off");
  const note = elem("p", "qv-hint");
  const summary = elem("p", "qv-sr");
  summary.id = `${id}-summary`;
  summary.setAttribute("aria-live", "polite");
  const keys = elem("p", "qv-sr",
    "Arrow keys move the cursor, with Shift by ten; Home and End go to the ends of the row, Page Up " +
    "and Page Down by a screen; plus and minus zoom, zero shows the whole matrix; Enter holds the cursor.");
  keys.id = `${id}-keys`;
  stage.setAttribute("aria-describedby", `${summary.id} ${keys.id}`);
  const more = elem("details", "qv-more");
  const table = elem("table", "qv-table");
  const tableBox = elem("div", "qv-scroll");
  tableBox.append(table);
  tableBox.tabIndex = 0;
  tableBox.setAttribute("role", "region");
  tableBox.setAttribute("aria-label", "Numbers around the cursor");
  more.append(elem("summary", "", "As numbers"), tableBox);
  frameBox.append(stage, buttons);
  el.append(title, frameBox, legend, readout, note, more, summary, keys);

  // ---- state of this view -------------------------------------------------------------------
  const lut = new Uint32Array(256);
  const ctx = base.getContext("2d");
  const top = over.getContext("2d");
  let image = null;
  let pixels = null;
  let W = 0;
  let H = 0;
  let dpr = 1;
  let axisX = [new Int32Array(0), new Int32Array(0)];
  let axisY = [new Int32Array(0), new Int32Array(0)];
  let shownColumn = new Int32Array(0); // the matrix column under each device pixel, as painted
  let palette = new Uint8Array(0);
  let tiles = { key: "", region: null, byFrame: new Map() };
  let asked = null; // the one request under way: {id, key, at}
  let hover = null; // where the pointer is, before the model knows
  let colours = {};
  let valuesDirty = true;

  const sent = sentFrames(model);
  const replayed = replayedFrames(model, signal, () => onData(), (error) => {
    readout.textContent = `The run of this picture cannot be found; compute it again. (${error?.message ?? error})`;
  });
  const source = () => (get("replay") ? replayed : sent);
  const frame = () => clamp(get("frame"), 0, Math.max(0, source().count() - 1));
  const ready = () => W > 0 && source().count() > 0;

  // ---- geometry: device pixels per cell follow the zoom 0…1 logarithmically ------------------
  const geo = { sx: 1, sy: 1, x0: 0, y0: 0, t: 0, span: 0 };
  function geometry() {
    const [rows, cols] = get("shape");
    const [t, cy, cx] = get("view");
    const fit = [W / cols, H / rows];
    const full = [Math.max(fit[0], CELL[0] * dpr), Math.max(fit[1], CELL[1] * dpr)];
    geo.t = clamp(t, 0, 1);
    geo.span = Math.log(Math.max(full[0] / fit[0], full[1] / fit[1]));
    geo.sx = fit[0] * (full[0] / fit[0]) ** geo.t;
    geo.sy = fit[1] * (full[1] / fit[1]) ** geo.t;
    geo.x0 = clamp(cx - W / geo.sx / 2, 0, Math.max(0, cols - W / geo.sx));
    geo.y0 = clamp(cy - H / geo.sy / 2, 0, Math.max(0, rows - H / geo.sy));
  }
  function visible() {
    const [rows, cols] = get("shape");
    return [
      Math.floor(geo.y0), Math.min(rows, Math.ceil(geo.y0 + H / geo.sy - 1e-6)),
      Math.floor(geo.x0), Math.min(cols, Math.ceil(geo.x0 + W / geo.sx - 1e-6)),
    ];
  }
  /** Zooms to t so that the matrix point (row, col) stays under the canvas point (px, py). */
  function zoomTo(t, px, py) {
    const row = geo.y0 + py / geo.sy;
    const col = geo.x0 + px / geo.sx;
    const [, cy, cx] = get("view");
    model.set("view", [clamp(t, 0, 1), cy, cx]);
    geometry();
    look(row + (H / 2 - py) / geo.sy, col + (W / 2 - px) / geo.sx);
    geometry();
  }
  function look(row, col) {
    const [rows, cols] = get("shape");
    const [h, w] = [H / geo.sy / 2, W / geo.sx / 2];
    set("view", [geo.t, clamp(row, h, Math.max(h, rows - h)), clamp(col, w, Math.max(w, cols - w))]);
  }
  function zoomBy(steps, px = W / 2, py = H / 2) {
    if (geo.span < 1e-6) return false;
    const t = clamp(geo.t + (steps * 0.35) / geo.span, 0, 1);
    if (t === geo.t) return false;
    zoomTo(t, px, py);
    return true;
  }
  const fitAll = () => set("view", [0, 0, 0]);

  // ---- colours ------------------------------------------------------------------------------
  let themed = false; // colours can be asked for only once the view is part of the page
  function readTheme() {
    themed = el.isConnected;
    if (!themed) return;
    const all = bytes(get("palettes"));
    palette = all.subarray(isDark(el) ? 768 : 0, isDark(el) ? 1536 : 768);
    for (const key of ["ink", "card", "now", "wait", "line"]) colours[key] = cssColor(el, `--qv-${key}`);
    drawBar();
  }
  function fillTable(f, [lo, hi]) {
    const [from, to] = source().limits(f);
    for (let k = 0; k < NAN; k += 1) {
      const value = lo + (k / 254) * (hi - lo);
      const p = 3 * Math.round(clamp((value - from) / (to - from), 0, 1) * 255);
      lut[k] = ((255 << 24) | (palette[p + 2] << 16) | (palette[p + 1] << 8) | palette[p]) >>> 0;
    }
    const [r, g, b] = get("nan_color");
    lut[NAN] = ((255 << 24) | (b << 16) | (g << 8) | r) >>> 0;
  }
  function drawBar() {
    if (palette.length < 768) return;
    const draw = bar.getContext("2d");
    const line = draw.createImageData(256, 1);
    for (let i = 0; i < 256; i += 1) {
      line.data.set(palette.subarray(3 * i, 3 * i + 3), 4 * i);
      line.data[4 * i + 3] = 255;
    }
    draw.putImageData(line, 0, 0);
  }

  // ---- the values ---------------------------------------------------------------------------
  /** Paints one source (the frame as sent, or an exact tile) into the pixels it covers. */
  function paintSource(src) {
    fillTable(frame(), src.range);
    const { sx, sy, x0, y0 } = geo;
    const [xs, xe] = axisX;
    const [ys, ye] = axisY;
    const multiX = cellsUnder(W, x0, sx, src.col, src.step[1], src.grid[1], xs, xe);
    const multiY = cellsUnder(H, y0, sy, src.row, src.step[0], src.grid[0], ys, ye);
    // a pixel belongs to a tile when its middle does
    const px0 = clamp(Math.ceil((src.col - x0) * sx - 0.5), 0, W);
    const px1 = clamp(Math.ceil((src.colEnd - x0) * sx - 0.5), 0, W);
    const py0 = clamp(Math.ceil((src.row - y0) * sy - 0.5), 0, H);
    const py1 = clamp(Math.ceil((src.rowEnd - y0) * sy - 0.5), 0, H);
    const [data, width, how] = [src.data, src.grid[1], get("reduce")];
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
  function paintValues() {
    const f = frame();
    const [rows, cols] = get("shape");
    paintSource({
      data: source().cells(f), range: source().range(f), grid: get("grid"), step: get("step"),
      row: 0, col: 0, rowEnd: rows, colEnd: cols,
    });
    const tile = tiles.byFrame.get(f);
    if (tile) paintSource(tile);
    ctx.putImageData(image, 0, 0);
    painted(el, f);
  }

  // ---- grid lines, printed values, cursor, column mark ----------------------------------------
  function paintOver() {
    top.clearRect(0, 0, W, H);
    paintVeil();
    const { sx, sy, x0, y0 } = geo;
    const [ra, rb, ca, cb] = visible();
    const line = Math.max(1, Math.round(dpr));
    if (Math.min(sx, sy) >= 7 * dpr) {
      top.fillStyle = colours.card;
      top.globalAlpha = 0.55;
      for (let c = ca; c <= cb; c += 1) top.fillRect(Math.round((c - x0) * sx), 0, 1, H);
      for (let r = ra; r <= rb; r += 1) top.fillRect(0, Math.round((r - y0) * sy), W, 1);
      top.globalAlpha = 1;
    }
    const tile = tiles.byFrame.get(frame());
    if (printing() && tile?.values) {
      top.font = `${Math.round(11 * dpr)}px system-ui, sans-serif`;
      top.textAlign = "center";
      top.textBaseline = "middle";
      const width = tile.colEnd - tile.col;
      for (let r = Math.max(ra, tile.row); r < Math.min(rb, tile.rowEnd); r += 1) {
        for (let c = Math.max(ca, tile.col); c < Math.min(cb, tile.colEnd); c += 1) {
          const at = (r - tile.row) * width + (c - tile.col);
          const p = lut[tile.data[at]];
          const light = 0.299 * (p & 255) + 0.587 * ((p >> 8) & 255) + 0.114 * ((p >> 16) & 255);
          top.fillStyle = light > 140 ? "#101418" : "#ffffff";
          top.fillText(fmt(tile.values[at], 2), (c + 0.5 - x0) * sx, (r + 0.5 - y0) * sy, sx - 4 * dpr);
        }
      }
    }
    paintMarks();
    const [row, col] = hover ?? get("cursor");
    if (row >= 0 && col >= 0) {
      const [x, y] = [(col - x0) * sx, (row - y0) * sy];
      // two tones, so that the cursor shows on every colour of the map
      for (const [style, w] of [[colours.card, 3 * line], [get("pinned") ? colours.now : colours.ink, line]]) {
        top.strokeStyle = style;
        top.lineWidth = w;
        top.globalAlpha = 0.85;
        const m = 2.5 * dpr;
        const [bx, by] = [Math.min(x, x + sx / 2 - m), Math.min(y, y + sy / 2 - m)];
        const [bw, bh] = [Math.max(sx, 2 * m), Math.max(sy, 2 * m)];
        top.strokeRect(bx, by, bw, bh);
        if (printing()) continue; // lines would strike the numbers out
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

  /** A veil over the columns that wait. */
  function paintVeil() {
    const [f, of] = [frame(), source()];
    if (!of.veiled()) return;
    top.fillStyle = colours.wait;
    for (let x = 0, from = 0, part = 0; x <= W; x += 1) {
      const here = x < W ? of.waits(f, shownColumn[x]) : -1;
      if (here === part) continue;
      top.globalAlpha = 0.28 * part;
      if (part > 0) top.fillRect(from, 0, x - from, H);
      [from, part] = [x, here];
    }
    top.globalAlpha = 1;
  }
  /** Outlines around the columns and the row of now. */
  function paintMarks() {
    const { sx, sy, x0, y0 } = geo;
    const line = Math.max(1, Math.round(dpr));
    top.strokeStyle = top.fillStyle = colours.now;
    top.lineWidth = 2 * line;
    for (const mark of source().marks(frame())) {
      const [x, w] = [Math.round((mark - x0) * sx), Math.max(2 * line, Math.round(sx))];
      if (sx < 6 * dpr) top.fillRect(x, 0, w, H);
      else top.strokeRect(x, -9, w, H + 18);
    }
    const mark = get("row_mark");
    if (mark >= 0) {
      const [y, h] = [Math.round((mark - y0) * sy), Math.max(2 * line, Math.round(sy))];
      if (sy < 6 * dpr) top.fillRect(0, y, W, h);
      else top.strokeRect(-9, y, W + 18, h);
    }
  }

  const printing = () => geo.sx >= 36 * dpr && geo.sy >= 14 * dpr;

  // ---- exact tiles ----------------------------------------------------------------------------
  const covers = (r, v) => r && r[0] <= v[0] && r[1] >= v[1] && r[2] <= v[2] && r[3] >= v[3];
  /** Asks for what the screen could show and the browser does not have; one request at a time,
   *  so that the kernel never works on a picture that is gone already. */
  function fetchTiles() {
    if (!ready() || (asked && performance.now() - asked.at < 15000)) return;
    const step = get("step");
    const coarseEnough = geo.sx * step[1] <= 1.01 && geo.sy * step[0] <= 1.01;
    const need = geo.t > 0 && (printing() || (step[0] * step[1] > 1 && !coarseEnough));
    if (!need) return;
    const now = visible();
    const first = tiles.byFrame.values().next().value;
    const sharp = !first || (
      (first.step[0] === 1 || geo.sy * first.step[0] <= 1.5) &&
      (first.step[1] === 1 || geo.sx * first.step[1] <= 1.5));
    if (!covers(tiles.region, now) || !sharp || (printing() && first && !first.values)) {
      const [rows, cols] = get("shape");
      const spare = [Math.ceil((now[1] - now[0]) / 4), Math.ceil((now[3] - now[2]) / 4)];
      const fits = (now[1] - now[0] + 2 * spare[0]) * (now[3] - now[2] + 2 * spare[1]) <= 4096;
      const [a, b] = printing() && !fits ? [0, 0] : spare;
      const region = [
        Math.max(0, now[0] - a), Math.min(rows, now[1] + a),
        Math.max(0, now[2] - b), Math.min(cols, now[3] + b),
      ];
      tiles = { key: uid("tile"), region, byFrame: new Map() };
      valuesDirty = true;
    }
    const wanted = source().wanted(frame()).filter((f) => !tiles.byFrame.has(f));
    if (!wanted.length) return;
    const [r0, r1, c0, c1] = tiles.region;
    asked = { id: tiles.key, at: performance.now() };
    model.send({
      type: "tile", id: tiles.key, version: get("version"), frame: wanted[0],
      rows: [r0, r1], cols: [c0, c1], ...source().asks(),
    });
  }
  function onTile(msg, buffers) {
    if (asked?.id === msg.id) asked = null;
    if (!ready()) return;
    const current = msg.id === tiles.key && msg.version === get("version");
    if (current && source().wanted(frame()).includes(msg.frame)) {
      tiles.byFrame.set(msg.frame, {
        row: msg.rows[0], rowEnd: msg.rows[1], col: msg.cols[0], colEnd: msg.cols[1],
        step: msg.step, grid: msg.grid, range: msg.range, data: bytes(buffers[0]),
        values: buffers[1] ? new Float32Array(bytes(buffers[1]).slice().buffer) : null,
      });
      if (msg.frame === frame()) valuesDirty = true;
      // the other frames follow one by one, and only while nothing else is wanted
      setTimeout(schedule, msg.frame === frame() ? 0 : 30);
    } else if (!asked) schedule();
  }

  // ---- words ----------------------------------------------------------------------------------
  function cellText() {
    const [row, col] = hover ?? get("cursor");
    const [rowName, colName] = get("axes");
    const has = row >= 0 && col >= 0 && ready();
    readout.classList.toggle("qv-pinned", Boolean(has && get("pinned")));
    if (!has) {
      said.cell = "";
      const hint = ready() ? "Point at a cell for its value" : "";
      if (readout.textContent !== hint) readout.textContent = hint;
      return;
    }
    const f = frame();
    const unit = get("unit") ? ` ${get("unit")}` : "";
    const answer = get("readout");
    const fits = answer.row === row && answer.column === col && answer.version === get("version");
    let value = fits ? source().exact(f, answer) : undefined;
    const tile = tiles.byFrame.get(f);
    if (value === undefined && tile?.values
      && row >= tile.row && row < tile.rowEnd && col >= tile.col && col < tile.colEnd) {
      value = `≈ ${fmt(tile.values[(row - tile.row) * (tile.colEnd - tile.col) + col - tile.col], 4)}`;
    }
    value ??= source().approx(f, row, col);
    const text = `${rowName} ${row}, ${colName} ${col}: |${value}${unit}|${get("pinned") ? " · held" : ""}`;
    if (text === said.cell) return; // touching the text costs a layout of the page
    said.cell = text;
    const [where, what, held] = text.split("|");
    readout.replaceChildren(where, elem("b", "", what), elem("span", "qv-sr", held));
  }
  const said = { cell: "", note: "", legend: "" };
  function noteText() {
    const step = get("step");
    const words = { nearest: "sampled", mean: "averaged", max_abs: "largest" };
    const tile = tiles.byFrame.get(frame());
    const s = tile ? tile.step : step;
    const n = [Math.max(s[0], Math.round(1 / geo.sy)), Math.max(s[1], Math.round(1 / geo.sx))];
    const parts = [];
    if (n[0] * n[1] > 1) {
      parts.push(`1 pixel = ${n[0]} × ${n[1]} ${get("cells")}, ${words[get("reduce")]}`);
    }
    if (geo.t > 0) {
      const [ra, rb, ca, cb] = visible();
      parts.push(`${get("axes")[0]}s ${ra}–${rb - 1}, ${get("axes")[1]}s ${ca}–${cb - 1}`);
    }
    const text = parts.join(" · ");
    if (text !== said.note) note.textContent = said.note = text;
  }
  function legendText() {
    const f = frame();
    const [from, to] = source().limits(f);
    const [low, high] = source().extent(f);
    const nan = source().nans(f);
    const unit = get("unit") ? ` ${get("unit")}` : "";
    const slack = (to - from) * 1e-6;
    const key = [from, to, low < from - slack, high > to + slack, unit, nan, get("colormap")].join();
    if (key === said.legend) return;
    said.legend = key;
    ends[0].textContent = (low < from - slack ? "≤ " : "") + fmt(from, 2);
    ends[1].textContent = get("colormap") === "diverging" && from === -to ? "0" : fmt(from / 2 + to / 2, 3);
    ends[2].textContent = (high > to + slack ? "≥ " : "") + fmt(to, 2) + unit;
    extra.hidden = !nan;
    if (nan) {
      const chip = elem("i");
      chip.style.background = `rgb(${get("nan_color").join(",")})`;
      extra.replaceChildren(chip, `not a number: ${nan}`);
    }
    legend.setAttribute("aria-label", `Colours from ${ends[0].textContent} to ${ends[2].textContent}`);
    legend.setAttribute("role", "img");
  }
  let telling = 0;
  function frameText() {
    const f = frame();
    name.textContent = get("label");
    which.textContent = source().label(f);
    title.dataset.role = get("role");
    clearTimeout(telling); // a screen reader is told where the slider stopped, not every station
    telling = setTimeout(() => {
      if (!ready() || !source().prepare(frame())) return; // whatever comes next tells
      const text = source().sentence(frame());
      summary.textContent = `${get("label")}: ${text}`;
      base.setAttribute("aria-label", `${get("label")}, ${text}`);
    }, 400);
    table.classList.toggle("qv-stale", table.dataset.frame !== String(f)); // until the answer comes
    // of a run, the transport says each step: several pictures would talk over it
    summary.setAttribute("aria-live", source() === replayed ? "off" : "polite");
    legendText();
    stage.classList.toggle("qv-zoomed", geo.t > 0);
  }
  signal.addEventListener("abort", () => clearTimeout(telling));

  let aroundTimer = 0;
  function askAround() {
    const [row, col] = get("cursor");
    if (!more.open || !ready()) return;
    clearTimeout(aroundTimer);
    aroundTimer = setTimeout(() => {
      model.send({
        type: "around", version: get("version"), frame: frame(),
        row: Math.max(0, row), column: Math.max(0, col),
      });
    }, 60);
  }
  signal.addEventListener("abort", () => clearTimeout(aroundTimer));
  function onAround(msg) {
    if (msg.frame !== frame() || msg.version !== get("version")) return;
    const head = elem("tr");
    const corner = elem("th", "", `${get("axes")[0]} \\ ${get("axes")[1]}`);
    head.append(corner, ...msg.texts[0].map((_, j) => elem("th", "", String(msg.start[1] + j))));
    head.childNodes.forEach((th) => (th.scope = "col"));
    const body = msg.texts.map((line, i) => {
      const tr = elem("tr");
      const th = elem("th", "", String(msg.start[0] + i));
      th.scope = "row";
      tr.append(th, ...line.map((text, j) => {
        const here = msg.start[0] + i === msg.row && msg.start[1] + j === msg.column;
        return elem("td", here ? "qv-here" : "", text);
      }));
      return tr;
    });
    const caption = elem("caption", "qv-sr",
      `${get("label")} ${source().label(msg.frame) || (get("replay") ? `step ${msg.frame}` : "")}: values around row ${msg.row}, column ${msg.column}`);
    table.replaceChildren(caption, head, ...body);
    table.classList.remove("qv-stale");
    table.dataset.frame = msg.frame;
    const here = table.querySelector(".qv-here");
    if (here) tableBox.scrollLeft = here.offsetLeft + here.offsetWidth / 2 - tableBox.clientWidth / 2;
  }
  more.addEventListener("toggle", askAround, { signal });

  // ---- one redraw per animation frame ---------------------------------------------------------
  const schedule = painter(() => {
    if (!ready()) return;
    if (!themed) readTheme();
    geometry();
    if (valuesDirty) {
      if (!source().prepare(frame())) return void setTimeout(schedule); // it takes another moment
      valuesDirty = false;
      paintValues();
      frameText();
    }
    paintOver();
    cellText();
    noteText();
    zoomOut.disabled = whole.disabled = geo.t <= 0;
    zoomIn.disabled = geo.t >= 1 || geo.span < 1e-6;
    fetchTiles();
  }, signal);
  const redraw = () => {
    valuesDirty = true;
    schedule();
  };
  const onData = () => {
    tiles = { key: "", region: null, byFrame: new Map() };
    asked = null;
    resize();
    readTheme();
    redraw();
    askAround();
  };
  const zoomIn = button("Zoom in", "M8 3v10M3 8h10", () => zoomBy(3));
  const zoomOut = button("Zoom out", "M3 8h10", () => zoomBy(-3));
  const whole = button("Show the whole matrix", "M3 6V3h3M10 3h3v3M13 10v3h-3M6 13H3v-3", fitAll);

  function resize() {
    const [rows, cols] = get("shape");
    const aspect = get("aspect") || clamp(cols / Math.max(1, rows), 1, 4 / 3);
    stage.style.aspectRatio = `${aspect}`;
    dpr = Math.min(3, globalThis.devicePixelRatio || 1);
    const [w, h] = [Math.round(stage.clientWidth * dpr), Math.round(stage.clientHeight * dpr)];
    if ((w === W && h === H) || w < 2 || h < 2) return;
    [W, H] = [w, h];
    for (const canvas of [base, over]) {
      canvas.width = W;
      canvas.height = H;
    }
    image = ctx.createImageData(W, H);
    pixels = new Uint32Array(image.data.buffer);
    axisX = [new Int32Array(W), new Int32Array(W)];
    shownColumn = new Int32Array(W);
    axisY = [new Int32Array(H), new Int32Array(H)];
    valuesDirty = true;
  }
  const sizes = new ResizeObserver(() => {
    resize();
    schedule();
  });
  sizes.observe(stage);
  signal.addEventListener("abort", () => sizes.disconnect());

  // ---- pointer --------------------------------------------------------------------------------
  const at = (event) => {
    const box = stage.getBoundingClientRect();
    return [(event.clientX - box.left) * (W / box.width), (event.clientY - box.top) * (H / box.height)];
  };
  const cellAt = ([px, py]) => {
    const [rows, cols] = get("shape");
    return [
      clamp(Math.floor(geo.y0 + py / geo.sy), 0, rows - 1),
      clamp(Math.floor(geo.x0 + px / geo.sx), 0, cols - 1),
    ];
  };
  const moveHover = painter(() => {
    if (hover) set("cursor", hover);
    hover = null;
  }, signal);
  const pointers = new Map();
  let dragged = false;
  let pinch = 0;
  stage.addEventListener("pointerdown", (event) => {
    if (event.button > 0) return;
    pointers.set(event.pointerId, at(event));
    dragged = pointers.size > 1;
    pinch = 0;
    stage.setPointerCapture(event.pointerId);
  }, { signal });
  stage.addEventListener("pointermove", (event) => {
    if (!ready()) return;
    readout.setAttribute("aria-live", "off");
    const here = at(event);
    const before = pointers.get(event.pointerId);
    if (pointers.size === 2 && before) {
      pointers.set(event.pointerId, here);
      const [a, b] = [...pointers.values()];
      const distance = Math.hypot(a[0] - b[0], a[1] - b[1]);
      if (pinch) zoomBy(Math.log(distance / pinch) / 0.35, (a[0] + b[0]) / 2, (a[1] + b[1]) / 2);
      pinch = distance;
    } else if (before) {
      const [dx, dy] = [here[0] - before[0], here[1] - before[1]];
      if (!dragged && Math.hypot(dx, dy) < 4 * dpr) return;
      dragged = true;
      if (geo.t > 0) {
        look(geo.y0 + H / geo.sy / 2 - dy / geo.sy, geo.x0 + W / geo.sx / 2 - dx / geo.sx);
        geometry();
        pointers.set(event.pointerId, here);
      }
    }
    if (!get("pinned") && !(dragged && geo.t > 0)) {
      hover = cellAt(here);
      moveHover();
      schedule();
    }
  }, { signal });
  const release = (event) => {
    const was = pointers.delete(event.pointerId);
    if (!was || event.type === "pointercancel" || dragged || !ready()) return;
    const cell = cellAt(at(event));
    const same = get("cursor")[0] === cell[0] && get("cursor")[1] === cell[1];
    hover = null;
    model.set("cursor", cell);
    set("pinned", !(get("pinned") && same));
  };
  stage.addEventListener("pointerup", release, { signal });
  stage.addEventListener("pointercancel", release, { signal });
  /** A wheel scrolls the page unless there is nothing to scroll or the learner is at this matrix. */
  const scrolls = () => {
    for (let node = el.parentElement; node; node = node.parentElement) {
      const style = getComputedStyle(node).overflowY;
      const root = node === document.scrollingElement;
      if ((root || /auto|scroll/.test(style)) && node.scrollHeight > node.clientHeight + 2) return true;
    }
    return false;
  };
  stage.addEventListener("wheel", (event) => {
    const mine = event.ctrlKey || geo.t > 0 || document.activeElement === stage || !scrolls();
    if (!ready() || !mine) return;
    const unit = event.deltaMode === 1 ? 33 : 1;
    const steps = (-event.deltaY * unit) / (event.ctrlKey ? 25 : 100);
    if (zoomBy(clamp(steps, -3, 3), ...at(event))) event.preventDefault();
  }, { signal, passive: false });

  // ---- keyboard -------------------------------------------------------------------------------
  stage.addEventListener("keydown", (event) => {
    if (!ready() || event.altKey || event.metaKey || event.ctrlKey) return;
    const [rows, cols] = get("shape");
    let [row, col] = get("cursor");
    const inside = row >= 0 && col >= 0;
    if (!inside) [row, col] = [Math.floor(geo.y0 + H / geo.sy / 2), Math.floor(geo.x0 + W / geo.sx / 2)];
    const far = event.shiftKey ? 10 : 1;
    const page = Math.max(1, Math.floor(H / geo.sy));
    const moves = {
      ArrowUp: [-far, 0], ArrowDown: [far, 0], ArrowLeft: [0, -far], ArrowRight: [0, far],
      Home: [0, -cols], End: [0, cols], PageUp: [-page, 0], PageDown: [page, 0],
    };
    const middle = inside ? [(col + 0.5 - geo.x0) * geo.sx, (row + 0.5 - geo.y0) * geo.sy] : [];
    if (moves[event.key]) {
      const [dr, dc] = inside ? moves[event.key] : [0, 0];
      const to = [clamp(row + dr, 0, rows - 1), clamp(col + dc, 0, cols - 1)];
      readout.setAttribute("aria-live", "polite");
      hover = null;
      set("cursor", to);
      const v = visible();
      if (geo.t > 0 && (to[0] < v[0] + 1 || to[0] >= v[1] - 1 || to[1] < v[2] + 1 || to[1] >= v[3] - 1)) {
        const off = (k, a, b) => (k < a + 1 ? k - a - 1 : k >= b - 1 ? k - b + 2 : 0);
        look(geo.y0 + H / geo.sy / 2 + off(to[0], v[0], v[1]), geo.x0 + W / geo.sx / 2 + off(to[1], v[2], v[3]));
      }
    } else if (event.key === "+" || event.key === "=") zoomBy(2, ...middle);
    else if (event.key === "-" || event.key === "_") zoomBy(-2, ...middle);
    else if (event.key === "0") fitAll();
    else if (event.key === "Enter") {
      if (!inside) model.set("cursor", [row, col]);
      set("pinned", !get("pinned"));
    } else if (event.key === "Escape" && get("pinned")) set("pinned", false);
    else return;
    event.preventDefault();
    event.stopPropagation(); // the notebook has shortcuts of its own on these keys
  }, { signal });

  // ---- the model ------------------------------------------------------------------------------
  watch(model, signal, ["msg:custom"], (msg, buffers) => {
    if (msg?.type === "tile") onTile(msg, buffers ?? []);
    else if (msg?.type === "around") onAround(msg);
  });
  watch(model, signal, ["version"], onData);
  watch(model, signal, ["autoscale"], () => {
    // made for the limits until now, and so is the one that is on its way
    if (source() === replayed) tiles = { key: "", region: null, byFrame: new Map() };
  });
  watch(model, signal, ["frame", "autoscale", "label", "role"], () => {
    const wanted = new Set(source().wanted(frame()));
    for (const f of tiles.byFrame.keys()) if (!wanted.has(f)) tiles.byFrame.delete(f);
    redraw();
    askAround();
  });
  watch(model, signal, ["view", "aspect"], () => {
    resize();
    redraw();
  });
  watch(model, signal, ["cursor"], () => {
    schedule();
    askAround();
  });
  watch(model, signal, ["pinned", "column_mark", "row_mark", "readout"], schedule);
  onTheme(signal, () => {
    readTheme();
    redraw();
  });
  onData();
  if (get("replay")) replayed.bind();
});
