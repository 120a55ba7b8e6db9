// The elements of a matrix on the page: title, canvases, zoom buttons, legend, readout, numbers.

function icon(path) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 16 16");
  svg.setAttribute("aria-hidden", "true");
  const line = document.createElementNS("http://www.w3.org/2000/svg", "path");
  line.setAttribute("d", path);
  svg.append(line);
  return svg;
}

function matrixPage(el) {
  const id = uid("matrix");
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
  stage.append(base, over);
  const buttons = elem("div", "qv-zoom");
  const frameBox = elem("div", "qv-stage-box");
  frameBox.append(stage, buttons);
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
  more.append(elem("summary", "", "As numbers"), tableBox);
  el.append(title, frameBox, legend, readout, note, more, summary, keys);
  return {
    title, name, which, stage, base, over, buttons, legend, bar, ends, extra, readout, note, summary,
    more, table, tableBox,
  };
}

function zoomButton(view, label, path, act) {
  const b = elem("button");
  b.type = "button";
  b.title = label;
  b.setAttribute("aria-label", label);
  b.append(icon(path));
  b.addEventListener("click", act, { signal: view.signal });
  view.page.buttons.append(b);
  return b;
}
