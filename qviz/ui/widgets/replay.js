// Runs in the browser: the picture of any step, from the vectors that each step passes on.

const MARKS = 48; // kept sums along a run; a jump replays at most half of the way between two
const LOOK = 30; // milliseconds of one animation frame that a jump into unknown steps may take

/** What has been passed on after any step, in integers: exact sums can be run backwards,
 *  and every way to a step gives the same picture. All views of a Replay share one Run. */
class Run {
  constructor(model) {
    const raw = model.get("data");
    const aligned = raw.byteOffset % 4 ? raw.buffer.slice(raw.byteOffset, raw.byteOffset + raw.byteLength) : raw.buffer;
    let at = raw.byteOffset % 4 ? 0 : raw.byteOffset;
    const take = (Kind, length) => {
      const part = new Kind(aligned, at, length);
      at += part.byteLength;
      return part;
    };
    const [R, C] = model.get("grid");
    const [n, step] = [model.get("shape")[1], model.get("step")[1]];
    Object.assign(this, { model, version: model.get("version"), unit: model.get("unit"), n, rows: R, count: C });
    this.turn = take(Int32Array, n);
    const [es, ss, ws, ms] = [n, n, C, C].map((length) => take(Float32Array, length));
    this.factors = Float64Array.from(es, (e, j) => (e / 32767) * (ss[j] / 32767));
    this.errors = take(Int16Array, n * R);
    // displayed columns in the order of their turns
    const shown = Array.from({ length: C }, (_, c) => Math.min(c * step + (step >> 1), n - 1));
    this.column = Int32Array.from(shown.keys()).sort((a, b) => this.turn[shown[a]] - this.turn[shown[b]]);
    this.place = new Int32Array(C);
    this.column.forEach((c, p) => (this.place[c] = p));
    this.done = new Int32Array(n + 1); // how many of them are finished after s steps
    this.offsets = new Int32Array(n + 1);
    for (let s = 0, p = 0; s <= n; s += 1) {
      while (p < C && this.turn[shown[this.column[p]]] < s) p += 1;
      this.done[s] = p;
      if (s) this.offsets[s] = this.offsets[s - 1] + C - p;
    }
    this.shares = take(Int16Array, this.offsets[n]);
    const widen = (integers, scale) => {
      const wide = new Float32Array(integers.length);
      for (let i = 0; i < wide.length; i += 1) wide[i] = (integers[i] / 32767) * scale[Math.floor(i / R)];
      return wide;
    };
    this.start = widen(take(Int16Array, C * R), ws);
    this.moved = widen(take(Int16Array, C * R), ms);
    this.columnOf = new Int32Array(n);
    this.turn.forEach((s, c) => (this.columnOf[s] = c));
    this.line = new Float64Array(R);
    this.sums = new Int32Array(C * R); // after `at` steps; a finished column stays at its turn
    this.at = 0;
    this.ahead = new Int32Array(C * R); // after `known` steps, the furthest so far
    this.known = 0;
    this.every = Math.max(8, Math.ceil(n / MARKS));
    this.marks = new Map(); // step → the sums of the columns that are not finished there
    this.prepare();
  }
  /** Adds to sums what step j passes on (or, with −1, takes it back). */
  hand(sums, j, sign) {
    const { rows, count, line, errors, shares } = this;
    const factor = this.factors[j] / this.unit * sign;
    for (let r = 0; r < rows; r += 1) line[r] = errors[j * rows + r] * factor;
    let at = this.offsets[j];
    for (let p = this.done[j + 1]; p < count; p += 1) {
      const share = shares[at];
      at += 1;
      if (share === 0) continue;
      const base = p * rows;
      for (let r = 0; r < rows; r += 1) sums[base + r] -= (line[r] * share) | 0;
    }
  }
  explore() {
    if (this.known % this.every === 0) this.marks.set(this.known, this.ahead.slice(this.done[this.known] * this.rows));
    this.hand(this.ahead, this.known, 1);
    this.known += 1;
  }
  /** Explores the run while the page has nothing else to do. */
  prepare() {
    const idle = globalThis.requestIdleCallback ?? ((fn) => setTimeout(() => fn({ timeRemaining: () => 6 }), 30));
    idle((deadline) => {
      if (this.model.qvRun !== this) return; // another run came
      const end = performance.now() + clamp(deadline.timeRemaining(), 4, 12);
      while (this.known < this.n && performance.now() < end) this.explore();
      if (this.known < this.n) this.prepare();
    }, { timeout: 500 });
  }
  /** Brings the sums to a step; false if the steps before it are not all known in time. */
  seek(step, end) {
    while (this.known < step) {
      if (performance.now() > end) return false;
      this.explore();
    }
    const below = Math.floor(step / this.every) * this.every;
    const from = [below, below + this.every].filter((s) => this.marks.has(s) && s <= this.known);
    if (this.known - step < this.every) from.push(this.known);
    const near = from.sort((a, b) => Math.abs(a - step) - Math.abs(b - step))[0];
    if (Math.abs(this.at - step) > Math.abs(near - step) + 1) {
      const rest = this.done[near] * this.rows;
      const kept = near === this.known ? this.ahead.subarray(rest) : this.marks.get(near);
      this.sums.set(this.ahead.subarray(0, rest));
      this.sums.set(kept, rest);
      this.at = near;
    }
    for (; this.at < step; this.at += 1) this.hand(this.sums, this.at, 1);
    for (; this.at > step; this.at -= 1) this.hand(this.sums, this.at - 1, -1);
    return true;
  }
  /** Adds sign × the values of displayed column c after s steps to out; the sums must be there. */
  add(out, c, s, show, sign) {
    const { rows, unit, sums, moved, start } = this;
    const p = this.place[c];
    const base = p * rows;
    if (show === "handed") {
      if (s >= this.n || p < this.done[s + 1]) return;
      const share = this.shares[this.offsets[s] + p - this.done[s + 1]] * this.factors[s] * sign;
      for (let r = 0; r < rows; r += 1) out[r] -= this.errors[s * rows + r] * share;
      return;
    }
    if (p < this.done[s]) for (let r = 0; r < rows; r += 1) out[r] += sign * moved[base + r];
    else for (let r = 0; r < rows; r += 1) out[r] += sign * unit * sums[base + r];
    if (show === "now") for (let r = 0; r < rows; r += 1) out[r] += sign * start[base + r];
  }
}

/** The one Run of a Replay's model, whichever view asks first. */
function runOf(model) {
  if (model.qvRun?.version !== model.get("version")) model.qvRun = model.get("version") ? new Run(model) : null;
  return model.qvRun;
}

/** The value that `share` of all values, which lie in low … high, stay below. */
function quantile(values, low, high, share) {
  const bins = new Uint32Array(4096);
  const fit = (4095.999 / (high - low));
  for (let i = 0; i < values.length; i += 1) bins[((values[i] - low) * fit) | 0] += 1;
  const wanted = share * values.length;
  let below = 0;
  let k = 0;
  while (k < 4095 && below + bins[k] < wanted) below += bins[k++];
  return low + (k + (bins[k] ? (wanted - below) / bins[k] : 0)) / fit;
}

/** The frames of a matrix view as steps of a run. `changed` is called when there is another one,
 *  `failed` with the error when the page does not know it. */
function replayedFrames(model, signal, changed, failed) {
  const get = (name) => model.get(name);
  let models = [];
  let runs = []; // [run] or [run, the run to subtract]
  let cells = new Uint8Array(0);
  let lows = [];
  let highs = [];
  let last = { key: "", step: -1, limits: [0, 1] };
  let line = new Float64Array(0);

  let ticket = 0;
  async function bind() {
    ticket += 1;
    const mine = ticket;
    const names = [get("replay"), get("minus")].filter(Boolean);
    const manager = model.widget_manager;
    const found = await Promise.all(names.map((name) => manager.get_model(name.slice("IPY_MODEL_".length))))
      .catch((error) => failed(error) ?? []);
    if (mine !== ticket || signal.aborted) return;
    for (const one of models) one.off("change:version", changed);
    models = found;
    for (const one of models) one.on("change:version", changed);
    changed();
  }
  watch(model, signal, ["replay", "minus"], bind);
  signal.addEventListener("abort", () => models.forEach((one) => one.off("change:version", changed)));

  /** The runs if they are those that the view's other traits name: messages come one by one. */
  function present() {
    const versions = get("runs");
    const fit = versions.length && models.length === versions.length
      && models.every((one, i) => one.get("version") === versions[i]);
    const now = fit ? models.map(runOf) : [];
    if (now.length !== runs.length || now.some((run, i) => run !== runs[i])) {
      runs = now;
      last = { key: "", step: -1, limits: [0, 1] };
    }
    return runs;
  }
  function values(c, s) {
    line.fill(0);
    runs.forEach((run, i) => run.add(line, c, s, get("show"), i ? -1 : 1));
    return line;
  }
  function typical(s) {
    const [R, C] = [runs[0].rows, runs[0].count];
    const all = new Float32Array(R * C);
    for (let c = 0; c < C; c += 1) all.set(values(c, s), c * R);
    let [low, high] = [Infinity, -Infinity];
    for (let i = 0; i < all.length; i += 1) {
      low = Math.min(low, all[i]);
      high = Math.max(high, all[i]);
    }
    const most = Math.max(-low, high);
    if (get("colormap") !== "diverging") {
      if (!(high > low)) return get("shared_limits")[0];
      const ends = [0.005, 0.995].map((share) => quantile(all, low, high, share));
      return ends[1] > ends[0] ? [Math.min(0, ends[0]), ends[1]] : [Math.min(0, low), high];
    }
    if (!(most > 0)) return get("shared_limits")[0];
    for (let i = 0; i < all.length; i += 1) all[i] = Math.abs(all[i]);
    const zeros = all.reduce((count, v) => count + (v === 0), 0);
    const m = zeros >= 0.995 * all.length ? most : quantile(all, 0, most, 0.995);
    return [-m, m];
  }
  /** Makes the picture of a step; false if that has to go on in the next animation frame. */
  function prepare(s) {
    const key = [get("show"), get("autoscale"), get("colormap"), get("shared_limits")].join();
    if (last.key === key && last.step === s) return true;
    const end = performance.now() + LOOK;
    if (get("show") !== "handed" && !runs.every((run) => run.seek(s, end))) return false;
    const [R, C] = [runs[0].rows, runs[0].count];
    if (cells.length !== R * C) cells = new Uint8Array(R * C);
    if (line.length !== R) line = new Float64Array(R);
    if (lows.length !== C) [lows, highs] = [new Float64Array(C), new Float64Array(C)];
    const auto = get("autoscale");
    const [lo, hi] = auto ? typical(s) : get("shared_limits")[0];
    const fresh = last.key !== key || last.step < 0 || auto;
    const both = Math.min(last.step, s);
    const scale = 254 / (hi - lo);
    for (let c = 0; c < C; c += 1) {
      if (!fresh && runs.every((run) => run.place[c] < run.done[both])) continue; // finished in both
      const v = values(c, s);
      let [low, high] = [Infinity, -Infinity];
      for (let r = 0, at = c; r < R; r += 1, at += C) {
        const x = v[r];
        if (x < low) low = x;
        if (x > high) high = x;
        const k = (x - lo) * scale + 0.5;
        cells[at] = k > 254.5 ? 254 : k < 0 ? 0 : k;
      }
      lows[c] = low;
      highs[c] = high;
    }
    last = { key, step: s, limits: [lo, hi] };
    return true;
  }
  const extent = () => [lows.reduce((a, b) => Math.min(a, b)), highs.reduce((a, b) => Math.max(a, b))];
  return {
    bind, prepare, extent,
    count: () => (present().length ? runs[0].n + 1 : 0),
    label: (s) => get("labels")[s] ?? "",
    limits: () => last.limits,
    range: () => last.limits,
    nans: () => 0,
    cells: () => cells,
    wanted: (s) => [s],
    asks: () => ({ range: last.limits }),
    exact: (s, answer) => (answer.frame === s ? answer.text : undefined),
    /** What is known without the kernel: the value, if this very cell was sent. */
    approx(s, row, col) {
      const [high, wide] = get("step");
      const [r, c] = [Math.floor(row / high), Math.floor(col / wide)];
      const middle = (i, step, size) => Math.min(i * step + (step >> 1), size - 1);
      const [rows, cols] = get("shape");
      if (row !== middle(r, high, rows) || col !== middle(c, wide, cols)) return "…";
      if (get("show") !== "handed") runs.forEach((run) => run.seek(s, Infinity));
      return `≈ ${fmt(values(c, s)[r], 3)}`;
    },
    sentence(s) {
      const name = get("axes")[1];
      const n = runs[0].n;
      const now = this.marks(s);
      const next = now.length > 1 ? `${name}s ${now.join(" and ")} are next` : `${name} ${now[0]} is next`;
      const where = s < n
        ? `${s} ${name}s finished, ${next}, ${n - s - 1} ${name}s wait after that`
        : `all ${n} ${name}s finished`;
      const [low, high] = extent();
      return `step ${s} of ${n}: ${where}; shown values from ${fmt(low)} to ${fmt(high)}. ${get("summaries")[0] ?? ""}`.trim();
    },
    /** How much of a matrix column still waits after s steps: 0, 1, or between where runs differ. */
    waits: (s, column) => runs.filter((run) => run.turn[column] > s).length / runs.length,
    marks: (s) => (s < runs[0].n ? [...new Set(runs.map((run) => run.columnOf[s]))] : []),
    veiled: () => get("show") !== "handed",
  };
}
