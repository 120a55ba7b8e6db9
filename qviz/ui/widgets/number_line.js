const AXIS = 22; // pixels below the line, for its numbers
const SVG = "http://www.w3.org/2000/svg";

function shape(tag, attributes, text) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (text !== undefined) node.textContent = text;
  return node;
}

/** Round numbers between lo and hi, about `many` of them. */
function roundNumbers(lo, hi, many) {
  const rough = (hi - lo) / Math.max(1, many);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * ([1, 2, 5, 10].find((m) => m * power >= rough) ?? 10);
  const first = Math.ceil(lo / step - 1e-9);
  const last = Math.floor(hi / step + 1e-9);
  return Array.from({ length: last - first + 1 }, (_, i) => Number(((first + i) * step).toPrecision(12)));
}

export default widget(({ model, el, signal }) => {
  el.classList.add("qv-line");
  const get = (name) => model.get(name);
  const set = setter(model, signal);
  const title = elem("p", "qv-line-label");
  title.id = uid("line");
  const stage = elem("div", "qv-line-stage");
  const picture = shape("svg", { role: "img" });
  const few = elem("p", "qv-hint");
  stage.append(picture);
  el.setAttribute("role", "group");
  el.setAttribute("aria-labelledby", title.id);
  el.append(title, stage, few);
  let knobs = [];
  let width = 0;

  const frameOf = (list) => list[clamp(get("frame"), 0, list.length - 1)];
  const x = (value) => {
    const [lo, hi] = get("bounds");
    return 8 + ((value - lo) / (hi - lo)) * (width - 16);
  };
  const valueAt = (px) => {
    const [lo, hi] = get("bounds");
    return lo + ((px - 8) / (width - 16)) * (hi - lo);
  };
  const say = (value) => fmt(value) + (get("unit") ? ` ${get("unit")}` : "");

  /** Move a handle, on multiples of the step, between its neighbours and the ends. */
  function move(i, to) {
    if (get("disabled")) return;
    const values = [...get("values")];
    const [lo, hi] = get("bounds");
    const snapped = Number((Math.round(to / get("step")) * get("step")).toPrecision(12));
    values[i] = clamp(snapped, i ? values[i - 1] : lo, i < values.length - 1 ? values[i + 1] : hi);
    if (values[i] !== get("values")[i]) set("values", values);
  }

  // ---- drawing ---------------------------------------------------------------------------------
  const show = painter(() => {
    width = stage.clientWidth;
    if (width < 30) return;
    const [lo, hi] = get("bounds");
    const tall = get("height");
    const base = tall - AXIS;
    picture.setAttribute("viewBox", `0 0 ${width} ${tall}`);
    picture.setAttribute("width", width);
    picture.setAttribute("height", tall);
    const parts = [];
    const bars = get("bars");
    if (bars.length) {
      const [counts, edges] = frameOf(bars);
      const high = counts.map((c) => (get("root") ? Math.sqrt(c) : c));
      const most = Math.max(...high, Number.MIN_VALUE);
      const path = high.map((h, i) => {
        const [a, b] = [clamp(edges[i], lo, hi), clamp(edges[i + 1], lo, hi)];
        if (!h || b <= a) return "";
        const y = base - Math.max(1, (h / most) * (base - 16));
        return `M${x(a).toFixed(1)} ${base}V${y.toFixed(1)}H${x(b).toFixed(1)}V${base}Z`;
      });
      parts.push(shape("path", { class: "qv-line-bars", d: path.join("") }));
    }
    const values = get("values");
    const [a, b] = [x(values[0]), x(values.at(-1))];
    const tint = (from, to) => parts.push(shape("rect", {
      class: "qv-line-shade", x: from, y: 0, width: Math.max(0, to - from), height: base,
    }));
    if (values.length && get("shade") === "between") tint(a, b);
    if (values.length && get("shade") === "outside") [[0, a], [b, width]].forEach((ends) => tint(...ends));
    parts.push(shape("line", { class: "qv-line-axis", x1: 0, x2: width, y1: base, y2: base }));
    for (const tick of roundNumbers(lo, hi, width / 80)) {
      parts.push(shape("line", { class: "qv-line-axis", x1: x(tick), x2: x(tick), y1: base, y2: base + 4 }));
      parts.push(shape("text", { class: "qv-line-tick", x: x(tick), y: base + 17 }, fmt(tick)));
    }
    if (get("levels").length) {
      const inside = frameOf(get("levels")).filter((level) => level >= lo && level <= hi);
      const path = inside.map((level) => `M${x(level).toFixed(1)} ${base}V${(base * 0.55).toFixed(1)}`);
      parts.push(shape("path", { class: "qv-line-levels", d: path.join("") }));
    }
    picture.replaceChildren(...parts);
    picture.setAttribute("aria-label", frameOf(get("summaries")) || get("label"));
    placeKnobs(base);
    painted(el, get("frame"));
  }, signal);

  function placeKnobs(base) {
    const values = get("values");
    const [lo, hi] = get("bounds");
    knobs.forEach((knob, i) => {
      knob.style.transform = `translateX(${x(values[i]).toFixed(1)}px)`;
      knob.style.height = `${base}px`;
      knob.firstChild.textContent = say(values[i]);
      knob.classList.toggle("qv-left", x(values[i]) > width - 70);
      knob.setAttribute("aria-valuemin", i ? values[i - 1] : lo);
      knob.setAttribute("aria-valuemax", i < values.length - 1 ? values[i + 1] : hi);
      knob.setAttribute("aria-valuenow", values[i]);
      knob.setAttribute("aria-valuetext", say(values[i]));
    });
  }

  // ---- handles ---------------------------------------------------------------------------------
  function keys(i, event) {
    if (event.altKey || event.metaKey || event.ctrlKey) return;
    const [lo, hi] = get("bounds");
    const by = get("step") * (event.shiftKey || event.key.startsWith("Page") ? 10 : 1);
    const now = get("values")[i];
    const to = {
      ArrowLeft: now - by, ArrowDown: now - by, PageDown: now - by,
      ArrowRight: now + by, ArrowUp: now + by, PageUp: now + by, Home: lo, End: hi,
    }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    move(i, to);
  }
  const build = () => {
    title.textContent = get("label");
    few.textContent = get("root") ? "Bar heights are square roots of the counts, so that small counts stay visible." : "";
    few.hidden = !few.textContent;
    const names = get("handles");
    if (knobs.length !== names.length) {
      knobs.forEach((knob) => knob.remove());
      knobs = names.map((_, i) => {
        const knob = elem("div", "qv-knob");
        knob.setAttribute("role", "slider");
        knob.append(elem("output"));
        knob.addEventListener("keydown", (event) => keys(i, event), { signal });
        stage.append(knob);
        return knob;
      });
    }
    knobs.forEach((knob, i) => {
      knob.setAttribute("aria-label", names[i]);
      knob.tabIndex = get("disabled") ? -1 : 0;
      knob.setAttribute("aria-disabled", String(get("disabled")));
    });
    el.classList.toggle("qv-many", names.length > 3);
    el.classList.toggle("qv-off", get("disabled"));
    show();
  };

  // The whole line takes the pointer: the nearest handle follows it.
  let held = -1;
  stage.addEventListener("pointerdown", (event) => {
    if (!knobs.length || get("disabled") || event.button) return;
    const at = event.clientX - stage.getBoundingClientRect().left;
    const values = get("values");
    const gaps = values.map((v) => Math.abs(x(v) - at));
    held = gaps.indexOf(Math.min(...gaps));
    // of several on one spot, the one that can follow the pointer
    if (at > x(values[held])) held = values.lastIndexOf(values[held]);
    stage.setPointerCapture(event.pointerId);
    event.preventDefault();
    knobs[held].focus();
    move(held, valueAt(at));
  }, { signal });
  stage.addEventListener("pointermove", (event) => {
    if (held >= 0) move(held, valueAt(event.clientX - stage.getBoundingClientRect().left));
  }, { signal });
  for (const end of ["pointerup", "pointercancel", "lostpointercapture"])
    stage.addEventListener(end, () => (held = -1), { signal });

  watch(model, signal, ["frame"], () => {
    const places = get("places")[get("frame")];
    if (places?.length) set("values", [...places]);
  });
  watch(model, signal, ["label", "handles", "root", "disabled"], build);
  watch(model, signal, ["bounds", "values", "shade", "unit", "height", "bars", "levels", "summaries", "frame"], show);
  const sizes = new ResizeObserver(() => {
    if (stage.clientWidth !== width) show();
  });
  sizes.observe(stage);
  signal.addEventListener("abort", () => sizes.disconnect());
  build();
});
