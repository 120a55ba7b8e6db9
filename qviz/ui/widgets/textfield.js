export default widget(({ model, el, signal }) => {
  el.classList.add("qv-control");
  const id = uid("text");
  const label = elem("label", "qv-label");
  label.htmlFor = id;
  const input = elem("input", "qv-input");
  Object.assign(input, { type: "text", id, spellcheck: false, autocomplete: "off" });
  const about = elem("p", "qv-hint");
  about.id = `${id}-about`;
  el.append(label, input, about);
  const save = saver(model, signal);
  let timer = 0;
  const send = () => {
    clearTimeout(timer);
    if (input.value === model.get("value")) return;
    model.set("value", input.value);
    save();
  };
  signal.addEventListener("abort", () => clearTimeout(timer));
  input.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(send, 250);
  }, { signal });
  input.addEventListener("change", send, { signal });
  input.addEventListener("keydown", (event) => {
    event.stopPropagation(); // letters are shortcuts of the notebook
    if (event.key !== "Enter") return;
    send();
    model.set("submitted", model.get("submitted") + 1);
    save();
  }, { signal });
  const show = () => {
    label.textContent = model.get("label");
    about.textContent = model.get("description");
    about.hidden = !about.textContent;
    if (!about.hidden) input.setAttribute("aria-describedby", about.id);
    input.placeholder = model.get("placeholder");
    input.disabled = model.get("disabled");
    if (document.activeElement !== input || !timer) input.value = model.get("value");
  };
  watch(model, signal, ["label", "description", "placeholder", "value", "disabled"], show);
  show();
});
