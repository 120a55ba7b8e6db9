// All numbers of two formats on one line: the one above it, the other below. A column of pixels is
// the taller the more numbers fall on it (by their logarithm); what stands alone is a short stroke.

const LEAST = 2 ** -149; // the smallest number above 0 of all formats here
const MOST = 4e38;
const NAMES = 16; // pixels above and below the lanes for the names of single numbers

/** Place on the scale: decades beyond the smallest number on both sides of zero, or the number. */
const SCALES = {
  log: {
    to: (v) => Math.sign(v) * Math.log10(1 + Math.abs(v) / LEAST),
    from: (u) => Math.sign(u) * LEAST * (10 ** Math.abs(u) - 1),
  },
  linear: { to: (v) => v, from: (u) => u },
};

/** Counts of a format's numbers, from its runs of equally spaced ones. */
class Numbers {
  constructor(flat) {
    this.runs = [];
    let before = 0;
    for (let i = 0; i < flat.length; i += 3) {
      const [start, spacing, count] = flat.subarray(i, i + 3);
      this.runs.push({ start, spacing, count, last: start + (count - 1) * spacing, before });
      before += count;
    }
    this.total = before;
  }
  /** How many lie below v. */
  below(v) {
    let [lo, hi] = [0, this.runs.length];
    while (lo < hi) {
      const mid = (lo + hi) >> 1;
      if (this.runs[mid].last < v) lo = mid + 1;
      else hi = mid;
    }
    const run = this.runs[lo];
    if (!run) return this.total;
    return run.before + (v > run.start ? Math.ceil((v - run.start) / run.spacing) : 0);
  }
  /** The number at this place in ascending order. */
  at(k) {
    const run = this.runs.find((one) => k < one.before + one.count);
    return run.start + (k - run.before) * run.spacing;
  }
}

export default widget(({ model, el, signal }) => {
  el.classList.add("qv-format-line");
  const stage = elem("div", "qv-plot qv-line-stage");
  stage.tabIndex = 0;
  stage.setAttribute("role", "application");
  stage.setAttribute("aria-roledescription", "number line");
  const canvas = elem("canvas");
  stage.append(canvas);
  const bar = elem("div", "qv-line-bar");
  const words = elem("p", "qv-hint");
  words.setAttribute("aria-live", "polite");
  el.append(stage, bar, words);
  const set = setter(model, signal);
  const get = (name) => model.get(name);
  const scale = () => SCALES[get("scale")] ?? SCALES.log;
  let formats = [];
  let [W, H, dpr] = [0, 0, 1];
  let colours = new Map();
  const colour = (name) => {
    if (!colours.has(name)) colours.set(name, cssColor(el, `--qv-${name}`));
    return colours.get(name);
  };

  const seen = () => get("view").map(scale().to);
  const look = (a, b) => {
    const { to, from } = scale();
    const [low, high] = [to(-MOST), to(MOST)];
    const size = Math.max(Math.abs(a), Math.abs(b), LEAST);
    const span = clamp(b - a, (get("scale") === "linear" ? size : high - low) * 1e-12, high - low);
    const start = clamp((a + b - span) / 2, low, high - span);
    const view = tidy([from(start), from(start + span)]);
    if (view[0] < view[1]) set("view", view);
    schedule();
  };
  /** With no more digits than this zoom can tell apart: they stand in the page's address. */
  const tidy = ([a, b]) => {
    const digits = Math.ceil(Math.log10(Math.max(Math.abs(a), Math.abs(b)) / (b - a))) + 5;
    return [a, b].map((v) => Number(v.toPrecision(clamp(digits || 17, 5, 17))));
  };
  const zoom = (by, at) => {
    const [a, b] = seen();
    const middle = at ?? (get("number") !== null && within(get("number")) ? scale().to(get("number")) : (a + b) / 2);
    look(middle - (middle - a) * by, middle + (b - middle) * by);
  };
  const within = (v) => v >= get("view")[0] && v <= get("view")[1];
  const pan = (part) => {
    const [a, b] = seen();
    look(a + (b - a) * part, b + (b - a) * part);
  };
  const whole = () => {
    set("scale", "log");
    look(scale().to(-MOST), scale().to(MOST));
  };
  /** The number, and some of its neighbours of the format above, which nearby lie evenly. */
  const around = () => {
    const numbers = formats[get("frame")];
    const v = get("number") ?? get("values")[get("frame")] ?? 0;
    const k = numbers.below(v);
    const [a, b] = [k - 5, k + 5].map((i) => numbers.at(clamp(i, 0, numbers.total - 1)));
    const room = 0.06 * (b - a);
    set("scale", "linear");
    look(Math.min(a, v) - room, Math.max(b, v) + room);
  };

  /** How many numbers fall on each column of pixels. */
  function columns(numbers) {
    const { from } = scale();
    const [a, b] = seen();
    const counts = new Float64Array(W);
    let before = numbers.below(from(a));
    for (let x = 0; x < W; x += 1) {
      const now = numbers.below(from(a + ((x + 1) * (b - a)) / W));
      counts[x] = now - before;
      before = now;
    }
    return counts;
  }
  /** The columns as strokes from `top` to at most `bottom`; one number is a third as tall as `most`. */
  function lane(counts, most, top, bottom, fill, ctx) {
    const room = Math.abs(bottom - top);
    ctx.fillStyle = fill;
    ctx.globalAlpha = 0.6; // the marks have to stand out
    counts.forEach((count, x) => {
      if (!count) return;
      const tall = room * (0.36 + (0.64 * Math.log2(count)) / Math.max(2, Math.log2(most)));
      ctx.fillRect(x, bottom > top ? top : top - tall, Math.max(1, dpr * 0.75), tall);
    });
    ctx.globalAlpha = 1;
  }
  function place(v) {
    const [a, b] = seen();
    return ((scale().to(v) - a) / (b - a)) * W;
  }
  function axis(ctx, y) {
    const [low, high] = get("view");
    const [a, b] = seen();
    ctx.strokeStyle = colour("edge");
    ctx.fillStyle = colour("soft");
    ctx.lineWidth = dpr;
    ctx.textAlign = "center";
    ctx.textBaseline = "middle";
    for (const v of ticks(low, high, a, b)) {
      const x = place(v);
      const text = power(v);
      const half = ctx.measureText(text).width / 2;
      ctx.fillText(text, clamp(x, half + 2, W - half - 2), y);
    }
  }
  /** Numbers for the axis: powers of ten while decades are narrow, else round numbers. */
  function ticks(low, high, a, b) {
    const many = Math.max(2, Math.floor(W / dpr / 74));
    if (get("scale") === "log" && Math.abs(b - a) > many / 3) {
      const every = [1, 2, 3, 5, 6, 10, 15, 20, 30].find((n) => (b - a) / n <= many) ?? 30;
      const out = low <= 0 && high >= 0 ? [0] : [];
      for (let p = -44; p <= 38; p += 1) {
        if (p % every === 0) out.push(...[10 ** p, -(10 ** p)].filter((v) => v >= low && v <= high));
      }
      const kept = [];
      for (const v of out) if (kept.every((k) => Math.abs(place(k) - place(v)) > 46 * dpr)) kept.push(v);
      return kept;
    }
    const raw = (high - low) / many;
    const unit = 10 ** Math.floor(Math.log10(raw));
    const step = unit * ([1, 2, 5, 10].find((n) => n * unit >= raw) ?? 10);
    const out = [];
    for (let k = Math.ceil(low / step); k * step <= high && out.length < 40; k += 1) out.push(k * step);
    const kept = [];
    for (const v of out) if (kept.every((k) => Math.abs(place(k) - place(v)) > 60 * dpr)) kept.push(v);
    return kept;
  }
  const power = (v) => {
    const p = Math.log10(Math.abs(v));
    const whole = Math.round(p);
    if (v === 0 || Math.abs(p - whole) > 1e-9 || Math.abs(whole) < 4) return fmt(v, 6);
    const digits = String(whole).replace(/./g, (c) => "⁰¹²³⁴⁵⁶⁷⁸⁹"["0123456789".indexOf(c)] ?? "⁻");
    return `${v < 0 ? "−" : ""}10${digits}`;
  };
  function names(numbers, low, high, y, ctx, fill) {
    const first = numbers.below(low);
    const count = numbers.below(high) - first;
    if (!count || count > W / dpr / 64) return;
    ctx.fillStyle = fill;
    ctx.textAlign = "center";
    for (let k = first; k < first + count; k += 1) {
      const x = place(numbers.at(k));
      if (x > 90 * dpr && x < W - 20 * dpr) ctx.fillText(fmt(numbers.at(k), 7), x, y);
    }
  }
  /** The format's name at the left end of its lane. */
  function title(ctx, text, y, fill) {
    ctx.textAlign = "left";
    ctx.fillStyle = fill;
    ctx.font = `700 ${ctx.font.replace("700 ", "")}`;
    ctx.fillText(text, 6 * dpr, y);
    ctx.font = ctx.font.replace("700 ", "");
  }
  function mark(ctx, v, y, fill, shape) {
    if (v === null || v === undefined || !within(v)) return;
    const [x, r] = [place(v), 5 * dpr];
    ctx.fillStyle = fill;
    ctx.beginPath();
    if (shape === "circle") ctx.arc(x, y, r, 0, 7);
    else for (const [dx, dy] of [[0, -r], [r, 0], [0, r], [-r, 0]]) ctx.lineTo(x + dx, y + dy);
    ctx.fill();
    ctx.strokeStyle = colour("card");
    ctx.stroke();
  }

  const draw = () => {
    dpr = devicePixelRatio || 1;
    const size = Number(getComputedStyle(el).getPropertyValue("--qv-size")) || 1;
    [W, H] = [Math.round(stage.clientWidth * dpr), Math.round(stage.clientHeight * dpr)];
    if (W < 20 || !formats.length) return;
    canvas.width = W;
    canvas.height = H;
    const ctx = canvas.getContext("2d");
    ctx.font = `${11 * dpr * size}px ${getComputedStyle(el).fontFamily}`;
    const middle = H / 2;
    const gap = 9 * dpr * size;
    const [frame, beside] = [get("frame"), get("beside")];
    const [low, high] = get("view");
    const [codes, soft] = [colour("codes"), colour("wait")];
    const both = [columns(formats[frame]), columns(formats[beside])];
    const most = both.reduce((top, counts) => counts.reduce((a, b) => Math.max(a, b), top), 1);
    lane(both[0], most, middle - gap, NAMES * dpr * size, codes, ctx);
    lane(both[1], most, middle + gap, H - NAMES * dpr * size, soft, ctx);
    axis(ctx, middle);
    names(formats[frame], low, high, 7 * dpr * size, ctx, codes);
    names(formats[beside], low, high, H - 6 * dpr * size, ctx, colour("soft"));
    title(ctx, get("titles")[frame], 8 * dpr * size, codes);
    title(ctx, get("titles")[beside], H - 8 * dpr * size, colour("soft"));
    const number = get("number");
    [[frame, middle - gap - 12 * dpr], [beside, middle + gap + 12 * dpr]].forEach(([i, y]) => {
      const value = get("values")[i];
      if (number !== null && value !== null && value !== undefined) {
        ctx.strokeStyle = colour("error");
        ctx.lineWidth = 2.5 * dpr;
        ctx.beginPath();
        ctx.moveTo(clamp(place(number), -9, W + 9), y);
        ctx.lineTo(clamp(place(value), -9, W + 9), y);
        ctx.stroke();
      }
      ctx.lineWidth = dpr;
      mark(ctx, number, y, colour("original"), "circle");
      mark(ctx, value, y, codes, "diamond");
    });
    say();
    painted(el, frame);
  };
  const schedule = painter(draw, signal);
  let timer = 0;
  /** What is in view, in words: counted as the picture is. */
  function say() {
    const [low, high] = get("view");
    const count = (i) => {
      const n = formats[i].below(high) - formats[i].below(low);
      return `${n.toLocaleString("en").replace(/,/g, "\u202f")} of ${get("titles")[i]}`;
    };
    const [frame, beside] = [get("frame"), get("beside")];
    el.dataset.counts = [frame, beside].map((i) => formats[i].below(high) - formats[i].below(low)).join(" ");
    const text = `In view, from ${fmt(low, 4)} to ${fmt(high, 4)}: ${count(frame)} (above)`
      + (beside === frame ? "." : ` and ${count(beside)} (below).`);
    stage.setAttribute("aria-label", `${get("label")}. ${text}`);
    clearTimeout(timer);
    timer = setTimeout(() => (words.textContent = text), words.textContent ? 150 : 0);
  }
  signal.addEventListener("abort", () => clearTimeout(timer));

  const press = (text, name, act) => {
    const button = elem("button", "qv-button", text);
    button.type = "button";
    if (name) button.setAttribute("aria-label", name);
    button.addEventListener("click", act, { signal });
    bar.append(button);
    return button;
  };
  press("−", "Zoom out", () => zoom(2));
  press("+", "Zoom in", () => zoom(0.5));
  press("Whole line", "", whole);
  press("Around the number", "", around);
  press("−1 … 1", "From −1 to 1", () => look(scale().to(-1), scale().to(1)));
  const kind = press("", "", () => {
    set("scale", get("scale") === "log" ? "linear" : "log");
    settle();
  });
  const settle = () => {
    const linear = get("scale") === "linear";
    kind.textContent = "Even spacing";
    kind.setAttribute("aria-pressed", String(linear));
    kind.title = "On: equal differences are equally far apart. Off: every power of ten is equally wide.";
    schedule();
  };

  const pointers = new Map();
  const at = (event) => {
    const box = stage.getBoundingClientRect();
    return (event.clientX - box.left) / box.width;
  };
  stage.addEventListener("pointerdown", (event) => {
    if (event.button > 0) return;
    pointers.set(event.pointerId, at(event));
    stage.setPointerCapture(event.pointerId);
  }, { signal });
  stage.addEventListener("pointermove", (event) => {
    const before = pointers.get(event.pointerId);
    if (before === undefined) return;
    const here = at(event);
    const other = [...pointers].find(([id]) => id !== event.pointerId);
    const [a, b] = seen();
    if (other) {
      const [was, is] = [Math.abs(before - other[1]), Math.abs(here - other[1])];
      if (was > 0.01 && is > 0.01) zoom(was / is, a + other[1] * (b - a));
    } else look(a - (here - before) * (b - a), b - (here - before) * (b - a));
    pointers.set(event.pointerId, here);
  }, { signal });
  for (const name of ["pointerup", "pointercancel"]) {
    stage.addEventListener(name, (event) => pointers.delete(event.pointerId), { signal });
  }
  stage.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && document.activeElement !== stage) return; // the wheel scrolls the page
    const [a, b] = seen();
    const unit = event.deltaMode === 1 ? 33 : 1;
    zoom(2 ** clamp((event.deltaY * unit) / (event.ctrlKey ? 50 : 200), -1, 1), a + at(event) * (b - a));
    event.preventDefault();
  }, { signal, passive: false });
  stage.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const act = {
      ArrowLeft: () => pan(-0.1), ArrowRight: () => pan(0.1), "+": () => zoom(0.5), "=": () => zoom(0.5),
      "-": () => zoom(2), _: () => zoom(2), Home: whole, 0: whole, Enter: around,
    }[event.key];
    if (!act) return;
    act();
    event.preventDefault();
  }, { signal });

  const build = () => {
    const flat = new Float64Array(bytes(get("runs")).slice().buffer);
    formats = get("ends").map((end, i) => new Numbers(flat.subarray(3 * (get("ends")[i - 1] ?? 0), 3 * end)));
    settle();
  };
  watch(model, signal, ["runs", "ends"], build);
  watch(model, signal, ["frame", "beside", "number", "values", "view", "titles", "label"], schedule);
  watch(model, signal, ["scale"], settle);
  onTheme(signal, () => {
    colours = new Map();
    schedule();
  });
  const sizes = new ResizeObserver(schedule);
  sizes.observe(stage);
  signal.addEventListener("abort", () => sizes.disconnect());
  build();
});
