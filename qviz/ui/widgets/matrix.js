// A matrix on a canvas: what is shown comes from frames that were sent ahead or from the replay of a
// run. Everything is redrawn in animation frames alone. The parts stand in matrix_*.js, before this
// file in the same module, and share one view.

const pixelRatio = () => Math.min(3, globalThis.devicePixelRatio || 1);

export default widget(({ model, el, signal }) => {
  el.classList.add("qv-matrix");
  const get = (name) => model.get(name);
  const sent = sentFrames(model);
  const replayed = replayedFrames(model, signal, () => onData(), (error) => view.words.lost(error));
  /** W, H: device pixels of the canvas, dpr of them to a CSS pixel. hover: where the pointer is, before
   *  the model knows. stale: the values have to be painted again. */
  const view = {
    model, el, signal, get, set: setter(model, signal), page: matrixPage(el),
    W: 0, H: 0, dpr: 1, hover: null, stale: true,
    replaying: () => Boolean(get("replay")),
    source: () => (view.replaying() ? replayed : sent),
    frame: () => clamp(get("frame"), 0, Math.max(0, view.source().count() - 1)),
    ready: () => view.W > 0 && view.source().count() > 0,
    /** Whether cells are large enough for their values in print. */
    printing: () => view.zoom.sx >= 36 * view.dpr && view.zoom.sy >= 14 * view.dpr,
  };
  view.zoom = new Zoom(view);
  view.tiles = new Tiles(view);
  view.words = new MatrixWords(view);
  const paint = new MatrixPainter(view);

  view.schedule = painter(() => {
    if (!view.ready()) return;
    if (view.dpr !== pixelRatio()) resize();
    if (!paint.themed) paint.readTheme();
    view.zoom.update();
    if (view.stale) {
      if (!view.source().prepare(view.frame())) return void setTimeout(view.schedule); // it takes another moment
      view.stale = false;
      paint.values();
      view.words.frame();
    }
    paint.over();
    view.words.cell();
    view.words.note();
    zoomOut.disabled = whole.disabled = view.zoom.t <= 0;
    zoomIn.disabled = view.zoom.t >= 1 || view.zoom.span < 1e-6;
    view.tiles.fetch();
  }, signal);
  const redraw = () => {
    view.stale = true;
    view.schedule();
  };
  const onData = () => {
    view.tiles.clear();
    view.tiles.asked = null;
    resize();
    paint.readTheme();
    redraw();
    view.words.askAround();
  };
  const zoomIn = zoomButton(view, "Zoom in", "M8 3v10M3 8h10", () => view.zoom.by(3));
  const zoomOut = zoomButton(view, "Zoom out", "M3 8h10", () => view.zoom.by(-3));
  const whole = zoomButton(view, "Show the whole matrix",
    "M3 6V3h3M10 3h3v3M13 10v3h-3M6 13H3v-3", () => view.zoom.whole());

  function resize() {
    const { stage } = view.page;
    const [rows, cols] = get("shape");
    const aspect = get("aspect") || clamp(cols / Math.max(1, rows), 1, 4 / 3);
    stage.style.aspectRatio = `${aspect} / var(--qv-tall, 1)`;
    view.dpr = pixelRatio();
    const [w, h] = [Math.round(stage.clientWidth * view.dpr), Math.round(stage.clientHeight * view.dpr)];
    if ((w === view.W && h === view.H) || w < 2 || h < 2) return;
    [view.W, view.H] = [w, h];
    paint.resize(w, h);
    view.stale = true;
  }
  const sizes = new ResizeObserver(() => {
    resize();
    view.schedule();
  });
  sizes.observe(view.page.stage);
  onResolution(signal, view.schedule);
  signal.addEventListener("abort", () => sizes.disconnect());
  pointAt(view);
  typeAt(view);

  watch(model, signal, ["msg:custom"], (msg, buffers) => {
    if (msg?.type === "tile") view.tiles.receive(msg, buffers ?? []);
    else if (msg?.type === "around") view.words.around(msg);
  });
  watch(model, signal, ["version"], onData);
  watch(model, signal, ["autoscale"], () => {
    // made for the limits until now, and so is the one that is on its way
    if (view.replaying()) view.tiles.clear();
  });
  watch(model, signal, ["frame", "autoscale", "label", "role"], () => {
    view.tiles.keep(view.source().wanted(view.frame()));
    redraw();
    view.words.askAround();
  });
  watch(model, signal, ["view", "aspect"], () => {
    resize();
    redraw();
  });
  watch(model, signal, ["cursor"], () => {
    view.schedule();
    view.words.askAround();
  });
  watch(model, signal, ["pinned", "column_mark", "row_mark", "outlines", "origin", "readout"], view.schedule);
  onTheme(signal, () => {
    paint.readTheme();
    redraw();
  });
  onData();
  if (get("replay")) replayed.bind();
});
