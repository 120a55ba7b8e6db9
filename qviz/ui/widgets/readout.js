export default widget(({ model, el, signal }) => {
  el.classList.add("qv-readout");
  const table = elem("table");
  const caption = elem("caption");
  const body = elem("tbody");
  table.append(caption, body);
  el.append(table);
  let cells = [];
  const show = painter(() => {
    const frame = model.get("frame");
    model.get("rows").forEach((row, i) => {
      const text = row.texts[Math.min(frame, row.texts.length - 1)];
      if (cells[i] && cells[i].dataset.text !== text) {
        cells[i].dataset.text = text;
        rich(cells[i], text);
      }
    });
    painted(el, frame);
  }, signal);
  const build = () => {
    rich(caption, model.get("label"));
    caption.hidden = !model.get("label");
    cells = [];
    body.replaceChildren(...model.get("rows").map((row) => {
      const tr = elem("tr");
      const th = rich(elem("th"), row.label);
      th.scope = "row";
      if (row.role) th.dataset.role = row.role;
      const td = elem("td");
      cells.push(td);
      tr.append(th, td);
      return tr;
    }));
    show();
  };
  watch(model, signal, ["rows", "label"], build);
  watch(model, signal, ["frame"], show);
  build();
});
