// Charts take their time (tens of milliseconds each), so they wait until the canvases have painted.
// While the slider moves they wait until it rests, too: then one chart a second is drawn, and the next
// only when the page has shown a frame. After a single change all are drawn at once, unless the
// learner does something meanwhile.

const MOVING = 100; // milliseconds: changes that follow each other sooner are a movement
const ONE = 8; // milliseconds within which all charts hear of one change
const REST = 45; // milliseconds without news after which a moving slider rests
const PAPER = 640; // pixels of a column of A4
const PATIENCE = 1000; // milliseconds that charts wait at most, with news coming all the time
const AT_ONCE = 60; // milliseconds for which charts may hold up the page

const ARRAYS = {
  i1: Int8Array, u1: Uint8Array, i2: Int16Array, u2: Uint16Array,
  i4: Int32Array, u4: Uint32Array, f4: Float32Array, f8: Float64Array,
};

/** Arrays back in their places: typed arrays on the received bytes, rows of them for matrices. */
function unpack(value, buffer) {
  if (Array.isArray(value)) return value.map((v) => unpack(v, buffer));
  if (value === null || typeof value !== "object") return value;
  if (value.qv) {
    const length = value.shape.reduce((a, b) => a * b, 1);
    const all = new ARRAYS[value.qv](buffer, value.at, length);
    if (value.shape.length === 1) return all;
    const [rows, width] = value.shape;
    return Array.from({ length: rows }, (_, r) => all.subarray(r * width, (r + 1) * width));
  }
  return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, unpack(v, buffer)]));
}

/** var(--qv-…) in any place where plotly expects a colour. */
function resolveColours(value, colour) {
  if (typeof value === "string") return value.startsWith("var(") ? colour(value) : value;
  if (Array.isArray(value)) return value.map((v) => resolveColours(v, colour));
  if (value === null || typeof value !== "object" || ArrayBuffer.isView(value)) return value;
  return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, resolveColours(v, colour)]));
}

/** All type sizes of a figure times `by`. */
function enlarge(value, by) {
  if (by === 1 || value === null || typeof value !== "object" || ArrayBuffer.isView(value)) return value;
  if (Array.isArray(value)) return value.map((v) => enlarge(v, by));
  const grown = ([k, v]) => (/font$/.test(k) && v?.size ? { ...v, size: v.size * by } : enlarge(v, by));
  return Object.fromEntries(Object.entries(value).map((entry) => [entry[0], grown(entry)]));
}

const queue = (globalThis.qvCharts ??= { jobs: new Map(), timer: 0, news: -1e9, busy: 0, drawn: 0, moving: false });
function later(key, job) {
  const now = performance.now();
  const since = now - queue.news;
  if (since > ONE) queue.moving = since - queue.busy < MOVING; // drawing may have held it up
  queue.news = now;
  queue.busy = 0;
  if (!queue.jobs.size) queue.drawn = now; // nothing waited until now
  queue.jobs.set(key, job);
  wait();
}
function wait() {
  clearTimeout(queue.timer);
  const due = queue.moving ? Math.min(queue.news + REST, queue.drawn + PATIENCE) : 0;
  const rest = Math.max(0, due - performance.now());
  queue.timer = setTimeout(() => requestAnimationFrame(() => setTimeout(run)), rest);
}
/** Whether other input is waiting; browsers that cannot tell always say yes. */
const wanted = () => navigator.scheduling?.isInputPending?.() ?? true;
async function run() {
  const begun = performance.now();
  try {
    do {
      const [entry] = queue.jobs;
      if (!entry) return;
      queue.jobs.delete(entry[0]);
      await entry[1]();
    } while (!queue.moving && !wanted() && performance.now() - begun < AT_ONCE);
  } finally {
    queue.drawn = performance.now();
    queue.busy += queue.drawn - begun;
    if (queue.jobs.size) wait();
  }
}

export default widget(({ model, el, signal }) => {
  el.classList.add("qv-chart");
  const plot = elem("div", "qv-plot");
  plot.setAttribute("role", "img");
  const words = elem("p", "qv-hint", "Loading the chart …");
  const more = elem("details", "qv-more");
  const numbers = elem("div", "qv-scroll");
  numbers.tabIndex = 0;
  numbers.setAttribute("role", "region");
  more.append(elem("summary", "", "As numbers"), numbers);
  const box = elem("div", "qv-plot-box");
  const line = elem("div", "qv-mark");
  line.setAttribute("aria-hidden", "true");
  line.hidden = true;
  box.append(plot, line);
  el.append(box, words, more);
  let figures = [];
  let shown = null;
  let Plotly = null;
  let colours = new Map();

  const colour = (name) => {
    if (!colours.has(name)) colours.set(name, cssColor(el, name));
    return colours.get(name);
  };
  const template = () => {
    const axis = {
      gridcolor: colour("var(--qv-line)"), linecolor: colour("var(--qv-edge)"),
      zerolinecolor: colour("var(--qv-line)"), tickcolor: colour("var(--qv-edge)"),
      automargin: true, title: { standoff: 6 }, ticks: "outside", ticklen: 3,
    };
    return {
      layout: {
        font: { family: getComputedStyle(el).fontFamily, size: 12 * typeSize(), color: colour("var(--qv-soft)") },
        paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
        colorway: ["original", "error", "codes", "good", "now", "wait"].map((c) => colour(`var(--qv-${c})`)),
        margin: { l: 8, r: 10, t: 8, b: 8 }, xaxis: axis, yaxis: axis,
        legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0, font: { color: colour("var(--qv-ink)") } },
        hoverlabel: { bgcolor: colour("var(--qv-card)"), bordercolor: colour("var(--qv-edge)"), font: { color: colour("var(--qv-ink)") } },
        hovermode: "closest", dragmode: false, showlegend: false, separators: ". ",
      },
    };
  };
  const config = { displayModeBar: false, responsive: false, doubleClick: "reset", showTips: false };

  const setting = (name) => Number(getComputedStyle(el).getPropertyValue(name)) || 1;
  const typeSize = () => setting("--qv-size");
  /** Taller on wide pages, where charts are wider too, and as a projector's view has room; but not
   *  so low that there is only room for the axes. */
  const height = () => {
    const page = el.closest(".qv-root")?.clientWidth ?? 0;
    return Math.round(model.get("height") * clamp(page / 1240, 1, 1.35) * Math.max(setting("--qv-tall"), 0.75));
  };
  const frame = () => clamp(model.get("frame"), 0, Math.max(0, figures.length - 1));
  async function draw() {
    if (!Plotly || signal.aborted || !figures.length || el.clientWidth < 2) return;
    const f = frame();
    const figure = enlarge(resolveColours(figures[f], colour), typeSize());
    const layout = {
      ...figure.layout, template: template(), width: el.clientWidth, height: height(),
      autosize: false, datarevision: `${model.get("version")}-${f}`,
    };
    try {
      await Plotly.react(plot, figure.data, layout, config);
    } catch (error) {
      words.hidden = false;
      words.textContent = `This chart could not be drawn: ${error.message ?? error}`;
      return;
    }
    if (shown === null) {
      plot.on("plotly_afterplot", placeMark);
      plot.on("plotly_relayouting", placeMark);
    }
    shown = f;
    placeMark();
    words.hidden = true;
    painted(el, f);
  }
  /** The line at `mark` moves over the plot; plotly knows where its axis has that value. */
  function placeMark() {
    const value = model.get("mark");
    const layout = plot._fullLayout;
    const axis = shown === null || value === null ? null : layout?.xaxis;
    const x = axis ? axis.d2p(value) : NaN;
    line.hidden = !(x >= -0.5 && x <= axis?._length + 0.5);
    if (line.hidden) return;
    const { t, h } = layout._size;
    line.style.height = `${h}px`;
    line.style.transform = `translate(${axis._offset + x - 1}px, ${t}px)`;
  }
  const key = uid("chart");
  const schedule = () => later(key, draw);

  function describe() {
    const text = model.get("summaries")[frame()] ?? "";
    numbers.setAttribute("aria-label", `Numbers of the chart: ${model.get("label")}`);
    plot.setAttribute("aria-label", [model.get("label"), text].filter(Boolean).join(". "));
    if (more.open) tabulate();
  }
  /** The values of all traces, for people who cannot see or point at the picture. */
  function tabulate() {
    const figure = figures[frame()];
    if (!figure) return;
    const text = model.get("summaries")[frame()] ?? "";
    const say = (v) => (typeof v === "number" ? fmt(v, 4) : v === null || v === undefined ? "" : String(v));
    const tables = figure.data.map((trace, i) => {
      const table = elem("table", "qv-table");
      table.append(elem("caption", "", trace.name ?? `Series ${i + 1}`));
      const ys = trace.y ?? trace.z ?? [];
      const xs = trace.x ?? Array.from({ length: ys.length }, (_, j) => j);
      const many = Math.min(xs.length, ys.length || xs.length, 200);
      for (let j = 0; j < many; j += 1) {
        const tr = elem("tr");
        const th = elem("th", "", say(xs[j]));
        th.scope = "row";
        const cells = ArrayBuffer.isView(ys[j]) || Array.isArray(ys[j]) ? Array.from(ys[j]).slice(0, 32) : [ys[j]];
        tr.append(th, ...cells.map((v) => elem("td", "", say(v))));
        table.append(tr);
      }
      if (xs.length > many) table.append(elem("caption", "", `the first ${many} of ${xs.length} values`));
      return table;
    });
    numbers.replaceChildren(elem("p", "", text), ...tables);
  }
  more.addEventListener("toggle", describe, { signal });

  const onFigures = () => {
    const view = model.get("buffers");
    const raw = bytes(view);
    figures = unpack(JSON.parse(model.get("figures")), raw.slice().buffer);
    plot.style.height = `${height()}px`;
    describe();
    schedule();
  };
  watch(model, signal, ["version", "height"], onFigures);
  watch(model, signal, ["frame"], () => {
    describe();
    schedule();
  });
  watch(model, signal, ["label"], describe);
  watch(model, signal, ["mark"], placeMark);
  onTheme(signal, () => {
    colours = new Map();
    schedule();
  });
  let [width, tall, type] = [0, 0, 0];
  const resize = () => {
    if (el.clientWidth === width && height() === tall && typeSize() === type) return;
    [width, tall, type] = [el.clientWidth, height(), typeSize()];
    plot.style.height = `${tall}px`;
    schedule();
  };
  const sizes = new ResizeObserver(resize);
  sizes.observe(el);
  addEventListener("qv-tall", resize, { signal });
  // On paper the page is narrower than on the screen for which the chart was drawn.
  addEventListener("beforeprint", () => {
    plot.style.zoom = Math.min(1, PAPER / Math.max(1, el.clientWidth));
  }, { signal });
  addEventListener("afterprint", () => (plot.style.zoom = ""), { signal });
  signal.addEventListener("abort", () => {
    sizes.disconnect();
    queue.jobs.delete(key);
    if (shown !== null) Plotly?.purge(plot);
  });
  onFigures();
  getPlotly(model).then((found) => {
    Plotly = found;
    schedule();
  }, (error) => {
    words.textContent =
      `The chart cannot be drawn because plotly.js did not arrive (${error.message}). ` +
      "Its numbers are below; reload the page to try again.";
    more.open = true;
  });
});
