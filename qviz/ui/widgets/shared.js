// Helpers in front of every widget module. No imports: the page may be offline.

/** Makes a module out of setup({model, el, signal}); the signal ends every listener of one view. */
function widget(setup) {
  return {
    render({ model, el }) {
      const stop = new AbortController();
      el.classList.add("qv");
      // a notebook has shortcuts on plain keys, arrows among them; here they belong to the control
      el.addEventListener("keydown", (event) => {
        if (!event.ctrlKey && !event.metaKey && !event.altKey && event.key !== "Escape") event.stopPropagation();
      }, { signal: stop.signal });
      setup({ model, el, signal: stop.signal });
      return () => stop.abort();
    },
  };
}

/** Calls fn when one of the traits changes, until the view is gone. */
function watch(model, signal, names, fn) {
  for (const name of names) {
    const event = name.startsWith("msg:") ? name : `change:${name}`;
    model.on(event, fn);
    signal.addEventListener("abort", () => model.off(event, fn));
  }
}

function elem(tag, cls, text) {
  const node = document.createElement(tag);
  if (cls) node.className = cls;
  if (text !== undefined) node.textContent = text;
  return node;
}

/** Text with _{…} and ^{…} as sub- and superscripts; everything else stays text. */
function rich(node, text) {
  node.replaceChildren();
  for (const part of String(text ?? "").split(/([_^]\{[^{}]*\})/)) {
    const mark = /^([_^])\{(.*)\}$/.exec(part);
    node.append(mark ? elem(mark[1] === "_" ? "sub" : "sup", "", mark[2]) : part);
  }
  return node;
}

/** At most one call of draw per animation frame. */
function painter(draw, signal) {
  let waiting = 0;
  signal.addEventListener("abort", () => cancelAnimationFrame(waiting));
  return () => {
    if (!waiting && !signal.aborted) {
      waiting = requestAnimationFrame(() => {
        waiting = 0;
        draw();
      });
    }
  };
}

/** Tells tests and benchmarks that this frame is on the canvas now. */
function painted(el, frame) {
  el.dataset.qvPainted = frame;
  el.dispatchEvent(new CustomEvent("qv-painted", { bubbles: true, detail: { frame } }));
}

/** Saves changes at most once per animation frame. The kernel hears of a further one only when it has
 *  answered the last. */
function saver(model, signal) {
  const later = painter(() => model.save_changes(), signal);
  return () => {
    window.qvChanges = (window.qvChanges ?? 0) + 1;
    later();
  };
}

/** Sends a message after every change that was made before it. By itself a message goes out at once
 *  and overtakes a change that waits for the kernel's answer to the one before it; so, where there
 *  were changes, an answer of the kernel is awaited first. */
function sendAfterChanges(model, content) {
  const changes = window.qvChanges;
  if (changes === window.qvHeard) {
    model.send(content);
    return;
  }
  const id = uid("heard");
  const answered = (answer) => {
    if (answer?.heard !== id) return;
    model.off("msg:custom", answered);
    window.qvHeard = changes;
    model.send(content);
  };
  model.on("msg:custom", answered);
  requestAnimationFrame(() => model.send({ type: "hear", id })); // behind what is saved in this frame
}

/** Sets a trait in the browser at once and tells the kernel at most once per animation frame. */
function setter(model, signal) {
  const save = saver(model, signal);
  return (name, value) => {
    model.set(name, value);
    save();
  };
}

let qvCount = 0;
function uid(prefix) {
  qvCount += 1;
  return `qv-${prefix}-${qvCount}-${Math.random().toString(36).slice(2, 7)}`;
}

/** A number as the pages write it; the same rules as number() in Python. */
function fmt(value, digits = 4) {
  if (Number.isNaN(value)) return "NaN";
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  const [mantissa, exponent] = value.toExponential(digits - 1).split("e");
  const power = Number(exponent);
  const text =
    value === 0 ? "0"
    : power < -4 || power >= digits ? `${Number(mantissa)}e${power}`
    : String(Number(Number(value).toFixed(Math.max(0, digits - 1 - power))));
  return text.replace(/-/g, "−");
}

function isDark(el) {
  return cssColor(el, "light-dark(rgb(1, 1, 1), rgb(2, 2, 2))") === "rgb(2, 2, 2)";
}

/** Calls fn when the page turns light or dark. */
function onTheme(signal, fn) {
  const media = matchMedia("(prefers-color-scheme: dark)");
  media.addEventListener("change", fn, { signal });
  const seen = new MutationObserver(fn);
  const what = { attributes: true, attributeFilter: ["data-jp-theme-light", "data-qv-theme", "class"] };
  seen.observe(document.body, what);
  seen.observe(document.documentElement, what);
  seen.observe(document.head, { childList: true }); // the stylesheet may come after the widget
  signal.addEventListener("abort", () => seen.disconnect());
}

/** Calls fn when a pixel of the page has become more or fewer of the screen's: by zoom, or because
 *  the window was dragged to another screen. */
function onResolution(signal, fn) {
  if (signal.aborted) return;
  const media = matchMedia(`(resolution: ${devicePixelRatio}dppx)`);
  media.addEventListener("change", () => {
    fn();
    onResolution(signal, fn);
  }, { signal, once: true });
}

/** A colour of the stylesheet as the browser resolves it here and now. */
function cssColor(el, value) {
  const probe = elem("span");
  probe.style.color = value.startsWith("--") ? `var(${value})` : value;
  probe.style.forcedColorAdjust = "none"; // else all curves of a chart would be of one colour
  probe.hidden = true;
  el.append(probe);
  const color = getComputedStyle(probe).color;
  probe.remove();
  return color;
}

function bytes(view) {
  return view ? new Uint8Array(view.buffer, view.byteOffset, view.byteLength) : new Uint8Array(0);
}

const clamp = (v, lo, hi) => Math.min(hi, Math.max(lo, v));

