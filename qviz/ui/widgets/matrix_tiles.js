// Exact parts of a matrix, fetched from the kernel when a cell is larger on the screen than it was
// sent.

const covers = (r, v) => r && r[0] <= v[0] && r[1] >= v[1] && r[2] <= v[2] && r[3] >= v[3];

class Tiles {
  constructor(view) {
    this.view = view;
    this.clear();
    this.asked = null; // the one request under way: {id, at}
  }
  /** Tiles that do not belong to the picture any more; an answer that is on its way is not kept. */
  clear() {
    Object.assign(this, { key: "", region: null, byFrame: new Map() });
  }
  at(frame) {
    return this.byFrame.get(frame);
  }
  keep(frames) {
    const wanted = new Set(frames);
    for (const f of this.byFrame.keys()) if (!wanted.has(f)) this.byFrame.delete(f);
  }
  /** Asks for what the screen could show and the browser does not have; one request at a time,
   *  so that the kernel never works on a picture that is gone already. */
  fetch() {
    const { view } = this;
    const { get, zoom, model } = view;
    if (!view.ready() || (this.asked && performance.now() - this.asked.at < 15000)) return;
    const step = get("step");
    const coarseEnough = zoom.sx * step[1] <= 1.01 && zoom.sy * step[0] <= 1.01;
    const need = zoom.t > 0 && (view.printing() || (step[0] * step[1] > 1 && !coarseEnough));
    if (!need) return;
    if (!this.serve(zoom.visible())) this.begin(zoom.visible());
    const wanted = view.source().wanted(view.frame()).filter((f) => !this.byFrame.has(f));
    if (!wanted.length) return;
    const [r0, r1, c0, c1] = this.region;
    this.asked = { id: this.key, at: performance.now() };
    model.send({
      type: "tile", id: this.key, version: get("version"), frame: wanted[0],
      rows: [r0, r1], cols: [c0, c1], ...view.source().asks(),
    });
  }
  /** Whether the tiles at hand are large, sharp and exact enough for what is on the screen. */
  serve(now) {
    const { zoom } = this.view;
    const first = this.byFrame.values().next().value;
    const sharp = !first || (
      (first.step[0] === 1 || zoom.sy * first.step[0] <= 1.5) &&
      (first.step[1] === 1 || zoom.sx * first.step[1] <= 1.5));
    return covers(this.region, now) && sharp && !(this.view.printing() && first && !first.values);
  }
  /** Another region around what is on the screen. */
  begin(now) {
    const { view } = this;
    const [rows, cols] = view.get("shape");
    const spare = [Math.ceil((now[1] - now[0]) / 4), Math.ceil((now[3] - now[2]) / 4)];
    const fits = (now[1] - now[0] + 2 * spare[0]) * (now[3] - now[2] + 2 * spare[1]) <= 4096;
    const [a, b] = view.printing() && !fits ? [0, 0] : spare;
    this.clear();
    this.key = uid("tile");
    this.region = [
      Math.max(0, now[0] - a), Math.min(rows, now[1] + a),
      Math.max(0, now[2] - b), Math.min(cols, now[3] + b),
    ];
    view.stale = true;
  }
  receive(msg, buffers) {
    const { view } = this;
    if (this.asked?.id === msg.id) this.asked = null;
    if (!view.ready()) return;
    const current = msg.id === this.key && msg.version === view.get("version");
    if (current && view.source().wanted(view.frame()).includes(msg.frame)) {
      this.byFrame.set(msg.frame, {
        row: msg.rows[0], rowEnd: msg.rows[1], col: msg.cols[0], colEnd: msg.cols[1],
        step: msg.step, grid: msg.grid, range: msg.range, data: bytes(buffers[0]),
        values: buffers[1] ? new Float32Array(bytes(buffers[1]).slice().buffer) : null,
      });
      if (msg.frame === view.frame()) view.stale = true;
      // the other frames follow one by one, and only while nothing else is wanted
      setTimeout(view.schedule, msg.frame === view.frame() ? 0 : 30);
    } else if (!this.asked) view.schedule();
  }
}
