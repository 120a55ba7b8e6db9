// What a matrix says: the cell under the cursor, what a pixel stands for, the legend, the frame's
// sentence for a screen reader, and the numbers around the cursor as a table.

class MatrixWords {
  constructor(view) {
    Object.assign(this, { view, said: { cell: "", note: "", legend: "" }, telling: 0, waiting: 0 });
    view.signal.addEventListener("abort", () => {
      clearTimeout(this.telling);
      clearTimeout(this.waiting);
    });
    view.page.more.addEventListener("toggle", () => this.askAround(), { signal: view.signal });
  }

  // ---- the cell under the cursor --------------------------------------------------------------
  cell() {
    const { view, said } = this;
    const { get } = view;
    const { readout } = view.page;
    const [row, col] = view.hover ?? get("cursor");
    const [rowName, colName] = get("axes");
    const has = row >= 0 && col >= 0 && view.ready();
    readout.classList.toggle("qv-pinned", Boolean(has && get("pinned")));
    if (!has) {
      said.cell = "";
      const hint = view.ready() ? "Point at a cell for its value" : "";
      if (readout.textContent !== hint) readout.textContent = hint;
      return;
    }
    const unit = get("unit") ? ` ${get("unit")}` : "";
    const value = this.value(row, col);
    const [r0, c0] = get("origin");
    const text = `${rowName} ${r0 + row}, ${colName} ${c0 + col}: |${value}${unit}|${get("pinned") ? " · held" : ""}`;
    if (text === said.cell) return; // touching the text costs a layout of the page
    said.cell = text;
    const [where, what, held] = text.split("|");
    readout.replaceChildren(where, elem("b", "", what), elem("span", "qv-sr", held));
  }
  /** The kernel's exact value where it has come, else the tile's, else the picture's. */
  value(row, col) {
    const { view } = this;
    const f = view.frame();
    const answer = view.get("readout");
    const fits = answer.row === row && answer.column === col && answer.version === view.get("version");
    const exact = fits ? view.source().exact(f, answer) : undefined;
    if (exact !== undefined) return exact;
    const tile = view.tiles.at(f);
    if (tile?.values && row >= tile.row && row < tile.rowEnd && col >= tile.col && col < tile.colEnd) {
      return `≈ ${fmt(tile.values[(row - tile.row) * (tile.colEnd - tile.col) + col - tile.col], 4)}`;
    }
    return view.source().approx(f, row, col);
  }

  // ---- the picture ----------------------------------------------------------------------------
  note() {
    const { view, said } = this;
    const { get, zoom } = view;
    const words = { nearest: "sampled", mean: "averaged", max_abs: "largest shown" };
    const s = view.tiles.at(view.frame())?.step ?? get("step");
    const n = [Math.max(s[0], Math.round(1 / zoom.sy)), Math.max(s[1], Math.round(1 / zoom.sx))];
    const parts = [];
    if (n[0] * n[1] > 1) {
      parts.push(`1 pixel = ${n[0]} × ${n[1]} ${get("cells")}, ${words[get("reduce")]}`);
    }
    if (zoom.t > 0) {
      const [ra, rb, ca, cb] = zoom.visible();
      const [r0, c0] = get("origin");
      parts.push(`${get("axes")[0]}s ${r0 + ra}–${r0 + rb - 1}, ${get("axes")[1]}s ${c0 + ca}–${c0 + cb - 1}`);
    }
    const text = parts.join(" · ");
    if (text !== said.note) view.page.note.textContent = said.note = text;
  }
  legend() {
    const { view, said } = this;
    const { get } = view;
    const { ends, extra, legend } = view.page;
    const f = view.frame();
    const [from, to] = view.source().limits(f);
    const [low, high] = view.source().extent(f);
    const nan = view.source().nans(f);
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
  frame() {
    const { view } = this;
    const { get } = view;
    const { name, which, title, summary, base, table, tableBox, stage } = view.page;
    const f = view.frame();
    name.textContent = get("label");
    which.textContent = view.source().label(f);
    title.dataset.role = get("role");
    tableBox.setAttribute("aria-label", `${get("label")}: numbers around the cursor`);
    clearTimeout(this.telling); // a screen reader is told where the slider stopped, not every station
    this.telling = setTimeout(() => {
      if (!view.ready() || !view.source().prepare(view.frame())) return; // whatever comes next tells
      const text = view.source().sentence(view.frame());
      summary.textContent = `${get("label")}: ${text}`;
      base.setAttribute("aria-label", `${get("label")}, ${text}`);
    }, 400);
    table.classList.toggle("qv-stale", table.dataset.frame !== String(f)); // until the answer comes
    // of a run, the transport says each step: several pictures would talk over it
    summary.setAttribute("aria-live", view.replaying() ? "off" : "polite");
    this.legend();
    stage.classList.toggle("qv-zoomed", view.zoom.t > 0);
  }
  lost(error) {
    this.view.page.readout.textContent =
      `The run of this picture cannot be found; compute it again. (${error?.message ?? error})`;
  }

  // ---- the numbers around the cursor ----------------------------------------------------------
  askAround() {
    const { view } = this;
    const { get, model } = view;
    const [row, col] = get("cursor");
    if (!view.page.more.open || !view.ready()) return;
    clearTimeout(this.waiting);
    this.waiting = setTimeout(() => {
      model.send({
        type: "around", version: get("version"), frame: view.frame(),
        row: Math.max(0, row), column: Math.max(0, col),
      });
    }, 60);
  }
  around(msg) {
    const { view } = this;
    const { get } = view;
    const { table, tableBox } = view.page;
    if (msg.frame !== view.frame() || msg.version !== get("version")) return;
    const [r0, c0] = get("origin");
    const head = elem("tr");
    const corner = elem("th", "", `${get("axes")[0]} \\ ${get("axes")[1]}`);
    head.append(corner, ...msg.texts[0].map((_, j) => elem("th", "", String(c0 + msg.start[1] + j))));
    head.childNodes.forEach((th) => (th.scope = "col"));
    const body = msg.texts.map((line, i) => {
      const tr = elem("tr");
      const th = elem("th", "", String(r0 + msg.start[0] + i));
      th.scope = "row";
      tr.append(th, ...line.map((text, j) => {
        const here = msg.start[0] + i === msg.row && msg.start[1] + j === msg.column;
        return elem("td", here ? "qv-here" : "", text);
      }));
      return tr;
    });
    const caption = elem("caption", "qv-sr",
      `${get("label")} ${view.source().label(msg.frame) || (get("replay") ? `step ${msg.frame}` : "")}: values around row ${r0 + msg.row}, column ${c0 + msg.column}`);
    table.replaceChildren(caption, head, ...body);
    table.classList.remove("qv-stale");
    table.dataset.frame = msg.frame;
    const here = table.querySelector(".qv-here");
    if (here) tableBox.scrollLeft = here.offsetLeft + here.offsetWidth / 2 - tableBox.clientWidth / 2;
  }
}
