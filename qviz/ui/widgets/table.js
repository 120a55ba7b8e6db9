export default widget(({ model, el, signal }) => {
  el.classList.add("qv-numbers");
  const box = elem("div", "qv-scroll-x");
  box.tabIndex = 0;
  box.setAttribute("role", "region");
  // A table taller than the screen would show its end, or hide behind the bar of steps.
  box.addEventListener("focus", () => {
    const room = innerHeight - 300;
    if (box.matches(":focus-visible") && box.offsetHeight > room) box.scrollIntoView({ block: "start" });
  }, { signal });
  const table = elem("table");
  const caption = elem("caption");
  const body = elem("tbody");
  const head = elem("tr");
  const top = elem("thead");
  top.append(head);
  table.append(caption, top, body);
  box.append(table);
  el.append(box);
  const show = painter(() => {
    const frames = model.get("frames");
    const frame = model.get("frame");
    const rows = frames[Math.min(frame, frames.length - 1)] ?? [];
    body.replaceChildren(...rows.map((row, at) => {
      const tr = elem("tr");
      if (at === model.get("row")) tr.setAttribute("aria-current", "true");
      const th = rich(elem("th"), row.label);
      th.scope = "row";
      if (row.role) th.dataset.role = row.role;
      tr.append(th, ...row.cells.map((text, i) => {
        const td = rich(elem("td"), text);
        if (row.lit.includes(i)) td.className = "qv-lit";
        return td;
      }));
      return tr;
    }));
    painted(el, frame);
  }, signal);
  const build = () => {
    rich(caption, model.get("label"));
    box.setAttribute("aria-label", model.get("label"));
    head.replaceChildren(elem("td"), ...model.get("columns").map((name) => {
      const th = rich(elem("th"), name);
      th.scope = "col";
      return th;
    }));
    show();
  };
  watch(model, signal, ["label", "columns"], build);
  watch(model, signal, ["frames", "frame", "row"], show);
  build();
});
