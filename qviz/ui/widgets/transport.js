const ICONS = {
  start: "M4 3v10M13 3L6 8l7 5z", back: "M11 3L4 8l7 5z", play: "M4 3l9 5-9 5z",
  pause: "M5 3v10M11 3v10", forward: "M5 3l7 5-7 5z", end: "M12 3v10M3 3l7 5-7 5z",
};

function draw(button, path) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 16 16");
  svg.setAttribute("aria-hidden", "true");
  const shape = document.createElementNS("http://www.w3.org/2000/svg", "path");
  shape.setAttribute("d", path);
  shape.setAttribute("fill", "currentColor");
  svg.append(shape);
  button.replaceChildren(svg);
}

export default widget(({ model, el, signal }) => {
  el.classList.add("qv-transport");
  el.setAttribute("role", "group");
  const get = (name) => model.get(name);
  const set = setter(model, signal);
  const caption = elem("p", "qv-caption");
  const spoken = elem("p", "qv-sr"); // the caption once the step has come to rest
  caption.setAttribute("aria-hidden", "true"); // said by the twin
  let rest = 0;
  signal.addEventListener("abort", () => clearTimeout(rest));
  const bar = elem("div", "qv-bar");
  const go = (to) => set("index", clamp(to, 0, get("n") - 1));
  const stopAnd = (to) => {
    if (get("playing")) set("playing", false);
    go(to);
  };
  const button = (name, label, act) => {
    const b = elem("button", "qv-button");
    b.type = "button";
    b.title = label;
    b.setAttribute("aria-label", label);
    draw(b, ICONS[name]);
    b.addEventListener("click", act, { signal });
    return b;
  };
  const first = button("start", "To the start", () => stopAnd(0));
  const back = button("back", "One step back", () => stopAnd(get("index") - 1));
  const toggle = () => {
    if (!get("playing") && get("index") >= get("n") - 1) go(0);
    set("playing", !get("playing"));
  };
  const play = button("play", "Play", toggle);
  const forward = button("forward", "One step forward", () => stopAnd(get("index") + 1));
  const last = button("end", "To the end", () => stopAnd(get("n") - 1));
  const scrub = elem("input", "qv-range");
  Object.assign(scrub, { type: "range", min: 0, step: 1 });
  scrub.addEventListener("input", () => stopAnd(Number(scrub.value)), { signal });
  const count = elem("span", "qv-count");
  const speed = elem("select", "qv-select");
  speed.setAttribute("aria-label", "Speed");
  speed.addEventListener("input", () => set("speed", speed.selectedIndex), { signal });
  const jump = elem("select", "qv-select");
  jump.setAttribute("aria-label", "Jump to");
  jump.addEventListener("input", () => {
    if (jump.value !== "") stopAnd(Number(jump.value));
    jump.selectedIndex = 0;
  }, { signal });
  const keys = elem("p", "qv-sr");
  keys.id = uid("keys");
  scrub.setAttribute("aria-describedby", keys.id);
  bar.append(first, back, play, forward, last, scrub, count, speed, jump);
  el.append(caption, spoken, bar, keys);
  /** To the nearest step of the first events before (−1) or after (1) this one. */
  const seek = (way) => {
    const steps = Object.values(get("events"))[0] ?? [];
    const there = steps.filter((step) => (step - get("index")) * way > 0);
    if (there.length) stopAnd(way * Math.min(...there.map((step) => step * way)));
  };

  const textNow = () => get("captions")[get("index")] ?? get("caption");
  const show = painter(() => {
    const [i, n] = [get("index"), get("n")];
    scrub.max = n - 1;
    scrub.value = i;
    scrub.style.setProperty("--qv-part", n > 1 ? i / (n - 1) : 0);
    scrub.setAttribute("aria-valuetext", `${get("label")} ${i} of ${n - 1}`);
    count.textContent = `${get("label")} ${i} / ${n - 1}`;
    // not `disabled`: the button would lose the keyboard at the ends
    for (const b of [first, back]) b.setAttribute("aria-disabled", String(i <= 0));
    for (const b of [forward, last]) b.setAttribute("aria-disabled", String(i >= n - 1));
    const text = textNow();
    caption.hidden = !text;
    rich(caption, text);
    clearTimeout(rest);
    rest = setTimeout(() => (spoken.textContent = caption.textContent), 600);
    painted(el, i);
  }, signal);
  const build = () => {
    el.setAttribute("aria-label", `Steps: ${get("label")}`);
    scrub.setAttribute("aria-label", get("label"));
    speed.replaceChildren(...get("speeds").map((s) => elem("option", "", `${s}×`)));
    speed.selectedIndex = get("speed");
    speed.hidden = get("speeds").length < 2;
    const all = Object.entries(get("events"));
    jump.hidden = !all.length;
    const event = all.length ? all[0][0] : "";
    keys.textContent = "Keys: Space plays and pauses, arrow keys step (with Shift by ten), Home and End go to the ends"
      + (event ? `, [ and ] or Page Down and Page Up to the previous and next ${event}.` : ".");
    scrub.title = keys.textContent;
    const pick = elem("option", "", "Jump to …");
    pick.value = "";
    jump.replaceChildren(pick, ...all.map(([name, steps]) => {
      const group = elem("optgroup");
      group.label = name;
      group.append(...steps.map((step) => {
        const option = elem("option", "", `${get("label")} ${step}`);
        option.value = step;
        return option;
      }));
      return group;
    }));
    show();
  };

  // ---- playing: as many steps as the clock asks for, however slow the page is -----------------
  let timer = 0;
  let since = 0;
  let owed = 0;
  let moved = 0; // when
  const calm = matchMedia("(prefers-reduced-motion: reduce)");
  function tick(now) {
    timer = 0;
    if (!get("playing")) return;
    owed += (Math.min(now - since, 500) / 1000) * get("rate") * get("speeds")[get("speed")];
    since = now;
    // reduced motion: just as fast, but no more than one change a second
    const rests = calm.matches && now - moved < 1000;
    const steps = rests ? 0 : Math.floor(owed);
    if (steps) moved = now;
    owed -= steps;
    if (steps) go(get("index") + steps);
    if (get("index") >= get("n") - 1) set("playing", false);
    else timer = requestAnimationFrame(tick);
  }
  const onPlaying = () => {
    const on = get("playing");
    draw(play, on ? ICONS.pause : ICONS.play);
    play.setAttribute("aria-label", on ? "Pause" : "Play");
    play.title = on ? "Pause" : "Play";
    // while it plays, captions change too fast to be spoken
    spoken.setAttribute("aria-live", on ? "off" : "polite");
    cancelAnimationFrame(timer);
    timer = 0;
    if (on) {
      owed = 0;
      since = moved = performance.now();
      timer = requestAnimationFrame(tick);
    }
  };
  signal.addEventListener("abort", () => cancelAnimationFrame(timer));

  el.addEventListener("keydown", (event) => {
    // many keyboards write brackets with AltGr, which also reads as Ctrl and Alt
    const plain = !(event.altKey || event.metaKey || event.ctrlKey) || event.getModifierState("AltGraph");
    if (!plain || event.target.tagName === "SELECT") return;
    const far = event.shiftKey ? 10 : 1;
    const onButton = event.target.tagName === "BUTTON";
    const some = Object.keys(get("events")).length > 0; // else a slider's own paging
    const act = {
      "[": () => seek(-1), "]": () => seek(1),
      PageDown: some && (() => seek(-1)), PageUp: some && (() => seek(1)),
      " ": onButton && event.target !== play ? null : toggle,
      ArrowLeft: () => stopAnd(get("index") - far), ArrowDown: () => stopAnd(get("index") - far),
      ArrowRight: () => stopAnd(get("index") + far), ArrowUp: () => stopAnd(get("index") + far),
      Home: () => stopAnd(0), End: () => stopAnd(get("n") - 1),
    }[event.key];
    if (!act) return;
    event.preventDefault();
    event.stopPropagation();
    act();
  }, { signal });

  watch(model, signal, ["label", "n", "speeds", "events"], build);
  watch(model, signal, ["index", "caption", "captions"], show);
  watch(model, signal, ["speed"], () => (speed.selectedIndex = get("speed")));
  watch(model, signal, ["playing"], onPlaying);
  build();
  onPlaying();
});
