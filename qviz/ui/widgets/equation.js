const MATHML = "http://www.w3.org/1998/Math/MathML";
const KEEP = new Set(["data-term", "mathvariant", "display", "stretchy", "fence", "form", "separator",
  "lspace", "rspace", "width", "height", "depth", "accent", "accentunder", "displaystyle",
  "scriptlevel", "linethickness", "columnalign", "rowspacing", "columnspacing", "movablelimits",
  "largeop", "minsize", "maxsize", "class"]);

/** A copy of MathML elements only, with harmless attributes: nothing in it can run. */
function copy(node) {
  if (node.nodeType === Node.TEXT_NODE) return document.createTextNode(node.textContent);
  if (node.nodeType !== Node.ELEMENT_NODE || node.namespaceURI !== MATHML) return null;
  if (!/^(math|m[a-z]+|semantics|none)$/.test(node.localName)) return null;
  const out = document.createElementNS(MATHML, node.localName);
  for (const { name, value } of node.attributes) if (KEEP.has(name)) out.setAttribute(name, value);
  for (const child of node.childNodes) {
    const made = copy(child);
    if (made) out.append(made);
  }
  return out;
}

export default widget(({ model, el, signal }) => {
  el.classList.add("qv-equation");
  const box = elem("div", "qv-math");
  const meaning = elem("p", "qv-hint");
  meaning.id = uid("meaning");
  meaning.setAttribute("aria-live", "polite");
  el.append(box, meaning);
  const nodes = () => box.querySelectorAll("[data-term]");
  // one stop for Tab, arrows inside: a formula of twenty symbols must not be twenty stops
  const known = () => [...nodes()].filter((node) => model.get("terms")[node.dataset.term]);

  const light = () => {
    const frame = model.get("frame");
    const on = new Set(model.get("actives")[frame] ?? model.get("active"));
    for (const node of nodes()) {
      node.classList.toggle("qv-lit", on.has(node.dataset.term));
      node.classList.toggle("qv-hot", node.dataset.term === model.get("hovered"));
    }
    const formulas = [...box.children];
    const some = model.get("calm") && formulas.some((one) => one.querySelector(".qv-lit"));
    for (const one of formulas) one.style.display = some && !one.querySelector(".qv-lit") ? "none" : "";
    rich(meaning, model.get("terms")[model.get("hovered")] ?? "");
    painted(el, frame);
  };
  const build = () => {
    const parsed = new DOMParser().parseFromString(model.get("mathml"), "text/html");
    box.replaceChildren();
    for (const child of parsed.body.children) {
      const made = copy(child);
      if (!made) continue;
      made.setAttribute("role", "math");
      if (model.get("aria")) made.setAttribute("aria-label", model.get("aria"));
      box.append(made);
    }
    for (const node of nodes()) {
      const text = model.get("terms")[node.dataset.term];
      if (!text) continue;
      node.setAttribute("tabindex", known().indexOf(node) === 0 ? "0" : "-1");
      node.setAttribute("role", "note"); // a stop for the keyboard needs a role and a name
      node.setAttribute("aria-label", text);
    }
    meaning.hidden = !Object.keys(model.get("terms")).length;
    light();
  };
  const point = (event) => {
    const term = event.target.closest?.("[data-term]")?.dataset.term ?? "";
    const known = model.get("terms")[term] ? term : "";
    if (known === model.get("hovered")) return;
    model.set("hovered", known);
    model.save_changes();
  };
  for (const name of ["pointerover", "focusin"]) box.addEventListener(name, point, { signal });
  const leave = () => {
    if (!model.get("hovered")) return;
    model.set("hovered", "");
    model.save_changes();
  };
  for (const name of ["pointerleave", "focusout"]) box.addEventListener(name, leave, { signal });
  box.addEventListener("keydown", (event) => {
    const all = known();
    const at = all.indexOf(document.activeElement);
    const to = { ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at - 1, ArrowUp: at - 1,
      Home: 0, End: all.length - 1 }[event.key];
    if (at < 0 || to === undefined) return;
    event.preventDefault();
    const next = all[clamp(to, 0, all.length - 1)];
    for (const node of all) node.setAttribute("tabindex", node === next ? "0" : "-1");
    next.focus();
  }, { signal });
  watch(model, signal, ["mathml", "terms", "aria"], build);
  watch(model, signal, ["active", "actives", "frame", "hovered", "calm"], light);
  build();
});
