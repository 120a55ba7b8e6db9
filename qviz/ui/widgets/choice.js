export default widget(({ model, el, signal }) => {
  el.classList.add("qv-control");
  const id = uid("choice");
  const set = setter(model, signal);
  const about = elem("p", "qv-hint");
  about.id = `${id}-about`;
  let select = null;
  let radios = [];

  const show = () => {
    const index = model.get("index");
    if (select) select.selectedIndex = index;
    radios.forEach((radio, i) => (radio.checked = i === index));
    painted(el, index);
  };
  const build = () => {
    const options = model.get("options");
    const segmented = model.get("kind") === "segmented";
    const focused = el.contains(document.activeElement);
    const box = elem(segmented ? "fieldset" : "div", segmented ? "qv-segments" : "");
    const label = elem(segmented ? "legend" : "label", "qv-label", model.get("label"));
    select = null;
    radios = [];
    if (segmented) {
      const row = elem("div", "qv-segment-row");
      options.forEach((option, i) => {
        const one = elem("label");
        const radio = elem("input");
        Object.assign(radio, { type: "radio", name: id, value: i });
        radio.addEventListener("change", () => set("index", i));
        radios.push(radio);
        one.append(radio, elem("span", "", option));
        row.append(one);
      });
      box.append(label, row);
      box.disabled = model.get("disabled");
    } else {
      select = elem("select", "qv-select");
      select.id = id;
      label.htmlFor = id;
      select.append(...options.map((option) => elem("option", "", option)));
      select.disabled = model.get("disabled");
      select.addEventListener("input", () => set("index", select.selectedIndex));
      box.append(label, select);
    }
    about.textContent = model.get("description");
    about.hidden = !about.textContent;
    if (!about.hidden) (select ?? box).setAttribute("aria-describedby", about.id);
    el.replaceChildren(box, about);
    show();
    if (focused) (select ?? radios[model.get("index")])?.focus();
  };
  watch(model, signal, ["label", "description", "options", "disabled", "kind"], build);
  watch(model, signal, ["index"], show);
  build();
});
