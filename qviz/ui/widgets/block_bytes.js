// The bytes of a block. One of them at a time has the Tab stop; arrows move it, and what it means
// is said below. A press holds a byte: then pointing elsewhere changes nothing.

export default widget(({ model, el, signal }) => {
  el.classList.add("qv-bytes");
  const all = elem("div", "qv-byte-sections");
  all.setAttribute("role", "group");
  const about = elem("div", "qv-byte-about");
  about.setAttribute("aria-live", "polite");
  const hint = elem("p", "qv-hint", "Point at a byte, or use the arrow keys; press to hold it.");
  hint.id = uid("bytes");
  all.setAttribute("aria-describedby", hint.id);
  el.append(all, about, hint);
  const set = setter(model, signal);
  const get = (name) => model.get(name);
  let cells = [];
  let [stop, over] = [0, -1]; // who has the Tab stop; who is pointed at

  const frame = () => clamp(get("frame"), 0, get("written").length - 1);
  const there = (i) => i < (get("written")[frame()] ?? 0);
  const hex = (v) => v.toString(16).padStart(2, "0");
  const binary = (v) => v.toString(2).padStart(8, "0");
  const sectionOf = (i) => {
    let first = 0;
    for (const [name, size] of get("sections")) {
      if (i < first + size) return [name, i - first];
      first += size;
    }
    return ["", 0];
  };

  /** What is explained while nobody points at a byte: of the section that is being written, the
   *  first one that is lit, else its first. */
  const usual = () => {
    const s = get("now")[frame()] ?? -1;
    if (s < 0 || cells.includes(document.activeElement)) return stop;
    const first = get("sections").slice(0, s).reduce((sum, [, size]) => sum + size, 0);
    const end = first + get("sections")[s][1];
    return get("lit").map(([b]) => b).find((b) => b >= first && b < end) ?? first;
  };
  const explain = () => {
    const i = get("chosen") >= 0 ? get("chosen") : over >= 0 ? over : usual();
    const value = get("values")[i];
    if (value === undefined) return about.replaceChildren();
    const [name, at] = sectionOf(i);
    const head = elem("p", "qv-byte-head");
    if (!there(i)) {
      head.textContent = `Byte ${i}: ${name}[${at}], not written yet.`;
      return about.replaceChildren(head);
    }
    head.textContent = `Byte ${i}: ${name}[${at}] = 0x${hex(value)} = ${value}`;
    const bits = binary(value);
    const list = elem("dl", "qv-byte-bits");
    for (const [low, count, words] of get("meanings")[i]) {
      const lit = get("lit").some(([b, l, n]) => b === i && l < low + count && low < l + n);
      const digits = elem("dt", lit ? "qv-lit" : "", bits.slice(8 - low - count, 8 - low));
      list.append(digits, rich(elem("dd", lit ? "qv-lit" : ""), words));
    }
    about.replaceChildren(head, list);
  };

  const show = painter(() => {
    const [values, others, lit] = [get("values"), get("others"), new Set(get("lit").map(([b]) => b))];
    const now = get("now")[frame()] ?? -1;
    cells.forEach((cell, i) => {
      const known = there(i);
      const differs = known && others.length > 0 && others[i] !== values[i];
      cell.textContent = known ? hex(values[i]) : "··";
      cell.className = [lit.has(i) && known ? "qv-lit" : "", differs ? "qv-byte-differs" : ""].join(" ").trim();
      cell.tabIndex = i === stop ? 0 : -1;
      cell.setAttribute("aria-pressed", String(i === get("chosen")));
      const [name, at] = sectionOf(i);
      const what = known ? `0x${hex(values[i])}${differs ? `, 0x${hex(others[i])} in the second run` : ""}` : "not written yet";
      cell.setAttribute("aria-label", `byte ${i}, ${name}[${at}]: ${what}`);
    });
    all.querySelectorAll(".qv-byte-section").forEach((box, s) => {
      box.classList.toggle("qv-byte-now", s === now);
      box.classList.toggle("qv-byte-waits", !there(Number(box.dataset.first)));
    });
    explain();
    painted(el, get("frame"));
  }, signal);

  const build = () => {
    all.setAttribute("aria-label", get("label"));
    cells = [];
    let first = 0;
    all.replaceChildren(...get("sections").map(([name, size, words]) => {
      const box = elem("div", "qv-byte-section");
      box.dataset.first = first;
      const head = elem("p");
      head.append(elem("b", "", name), rich(elem("span"), words));
      const row = elem("div", "qv-byte-row");
      for (let i = 0; i < size; i += 1) {
        const cell = elem("button");
        cell.type = "button";
        cells.push(cell);
        row.append(cell);
      }
      first += size;
      box.append(head, row);
      return box;
    }));
    stop = clamp(stop, 0, Math.max(0, cells.length - 1));
    show();
  };

  const go = (i) => {
    stop = clamp(i, 0, cells.length - 1);
    show();
    cells[stop].focus();
  };
  const across = () => { // how many bytes a line has on the screen
    const top = cells[stop]?.offsetTop;
    return Math.max(1, cells.filter((c) => c.offsetTop === top).length);
  };
  all.addEventListener("pointerover", (event) => {
    const i = cells.indexOf(event.target.closest("button"));
    if (i < 0 || i === over) return;
    over = i;
    explain();
  }, { signal });
  all.addEventListener("pointerleave", () => {
    over = -1;
    explain();
  }, { signal });
  all.addEventListener("focusin", (event) => {
    const i = cells.indexOf(event.target);
    if (i < 0 || i === stop) return explain();
    stop = i;
    show();
  }, { signal });
  all.addEventListener("click", (event) => {
    const i = cells.indexOf(event.target.closest("button"));
    if (i < 0) return;
    stop = i;
    set("chosen", get("chosen") === i ? -1 : i);
    show();
  }, { signal });
  all.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const line = across();
    const to = {
      ArrowLeft: stop - 1, ArrowRight: stop + 1, ArrowUp: stop - line, ArrowDown: stop + line,
      Home: 0, End: cells.length - 1,
    }[event.key];
    if (event.key === "Escape" && get("chosen") >= 0) set("chosen", -1);
    else if (to !== undefined) go(to);
    else return;
    event.preventDefault();
    show();
  }, { signal });
  watch(model, signal, ["sections", "label"], build);
  watch(model, signal, ["values", "others", "meanings", "written", "now", "frame", "lit", "chosen"], show);
  build();
});
