// A row of bits. A press flips a bit; dragging on from it gives the bits that are crossed the
// same value. One bit is the Tab stop, arrows move it; up and down go to the next code.

export default widget(({ model, el, signal }) => {
  el.classList.add("qv-bits");
  const row = elem("div", "qv-bit-row");
  row.setAttribute("role", "group");
  const about = elem("p", "qv-hint", "Press a bit, or drag to paint several. Arrow keys: ← → move, ↑ ↓ go to the next code.");
  about.id = uid("bits");
  row.setAttribute("aria-describedby", about.id);
  el.append(row, about);
  const save = saver(model, signal);
  let [buttons, notes] = [[], []];
  let built = -1; // the frame whose bits stand here
  let code = 0;
  let stop = 0; // the bit that has the Tab stop
  let [serial, own] = [0, -1]; // number of the last press here, and its frame
  let paint = null; // the value that dragging gives
  let handled = false; // the pointer has done what its click would do again

  const bit = (i) => Math.floor(code / 2 ** (buttons.length - 1 - i)) % 2;
  const show = () => {
    buttons.forEach((button, i) => {
      button.setAttribute("aria-pressed", String(bit(i) === 1));
      button.firstChild.textContent = bit(i);
      button.tabIndex = i === stop ? 0 : -1;
    });
    painted(el, built);
  };
  const press = (next) => {
    if (next === code || next < 0 || next >= 2 ** buttons.length) return;
    code = next;
    [serial, own] = [Math.max(serial, model.get("answered"), model.get("pressed")[2] ?? 0) + 1, built];
    model.set("pressed", [built, code, serial]);
    save();
    show();
  };
  const put = (i, value) => {
    if (bit(i) !== value) press(code + (value ? 1 : -1) * 2 ** (buttons.length - 1 - i));
  };
  const build = () => {
    built = model.get("frame");
    const groups = model.get("layouts")[built] ?? [];
    [buttons, notes] = [[], []];
    row.replaceChildren(...groups.map((group) => {
      const box = elem("div", `qv-bit-group qv-bit-${group.kind}`);
      box.setAttribute("role", "group");
      box.setAttribute("aria-label", group.label);
      const bits = elem("div");
      for (const name of group.names) {
        const button = elem("button");
        button.type = "button";
        button.setAttribute("aria-label", name);
        button.title = name;
        const digit = elem("span");
        digit.setAttribute("aria-hidden", "true");
        button.append(digit);
        buttons.push(button);
        bits.append(button);
      }
      const label = elem("b", "", group.label);
      const note = elem("span");
      notes.push(note);
      const words = elem("p");
      words.append(label, note);
      box.append(bits, words);
      return box;
    }));
    stop = Math.min(stop, buttons.length - 1);
  };
  const update = () => {
    const frame = model.get("frame");
    const focused = row.contains(document.activeElement);
    if (frame !== built) build();
    const waiting = own === frame && serial > model.get("answered");
    if (!waiting) code = Math.max(0, model.get("codes")[frame] ?? 0);
    (model.get("notes")[frame] ?? []).forEach((text, i) => rich(notes[i], text));
    row.setAttribute("aria-label", model.get("label"));
    show();
    if (focused && !row.contains(document.activeElement)) buttons[stop]?.focus();
  };
  const move = (i) => {
    stop = clamp(i, 0, buttons.length - 1);
    show();
    buttons[stop].focus();
  };

  row.addEventListener("pointerdown", (event) => {
    const i = buttons.indexOf(event.target.closest("button"));
    if (i < 0 || event.button > 0) return;
    handled = true;
    paint = 1 - bit(i);
    stop = i;
    put(i, paint);
    show();
  }, { signal });
  addEventListener("pointermove", (event) => {
    if (paint === null) return;
    const over = document.elementFromPoint(event.clientX, event.clientY)?.closest("button");
    const i = buttons.indexOf(over);
    if (i >= 0) put(i, paint);
  }, { signal });
  for (const name of ["pointerup", "pointercancel"]) addEventListener(name, () => (paint = null), { signal });
  row.addEventListener("click", (event) => {
    const i = buttons.indexOf(event.target.closest("button"));
    if (i >= 0 && !handled) put(i, 1 - bit(i));
    handled = false;
  }, { signal });
  row.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const to = { ArrowLeft: stop - 1, ArrowRight: stop + 1, Home: 0, End: buttons.length - 1 }[event.key];
    if (to !== undefined) move(to);
    else if (event.key === "ArrowUp") press(code + 1);
    else if (event.key === "ArrowDown") press(code - 1);
    else return;
    event.preventDefault();
  }, { signal });
  watch(model, signal, ["frame", "codes", "notes", "answered", "label"], painter(update, signal));
  update();
});
