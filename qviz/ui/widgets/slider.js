export default widget(({ model, el, signal }) => {
  el.classList.add("qv-control");
  const id = uid("slider");
  const set = setter(model, signal);
  const head = elem("div", "qv-control-head");
  const label = elem("label");
  label.htmlFor = id;
  const chosen = elem("output", "qv-chosen");
  chosen.htmlFor = id;
  chosen.setAttribute("aria-live", "off"); // the slider itself already says its value
  head.append(label, chosen);
  const input = elem("input", "qv-range");
  Object.assign(input, { type: "range", id, min: 0, step: 1 });
  const ticks = elem("div", "qv-ticks");
  ticks.setAttribute("aria-hidden", "true");
  const about = elem("p", "qv-hint");
  about.id = `${id}-about`;
  el.append(head, input, ticks, about);

  const show = () => {
    const options = model.get("options");
    const index = clamp(model.get("index"), 0, options.length - 1);
    input.max = options.length - 1;
    input.value = index;
    input.style.setProperty("--qv-part", options.length > 1 ? index / (options.length - 1) : 0);
    input.setAttribute("aria-valuetext", options[index]);
    chosen.textContent = options[index];
    ticks.childNodes.forEach((tick, i) => tick.classList.toggle("qv-on", i === index));
    painted(el, index);
  };
  const build = () => {
    label.textContent = model.get("label");
    about.textContent = model.get("description");
    about.hidden = !about.textContent;
    if (about.hidden) input.removeAttribute("aria-describedby");
    else input.setAttribute("aria-describedby", about.id);
    input.disabled = model.get("disabled") || model.get("options").length < 2;
    ticks.hidden = !model.get("ticks");
    ticks.replaceChildren(...(ticks.hidden ? [] : model.get("options").map((o) => elem("span", "", o))));
    show();
  };
  input.addEventListener("input", () => set("index", Number(input.value)), { signal });
  watch(model, signal, ["label", "description", "options", "disabled", "ticks"], build);
  watch(model, signal, ["index"], show);
  build();
});
