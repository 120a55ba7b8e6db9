export default widget(({ model, el, signal }) => {
  el.classList.add("qv-control");
  const set = setter(model, signal);
  const label = elem("label", "qv-toggle");
  const input = elem("input");
  input.type = "checkbox";
  const text = elem("span");
  const about = elem("p", "qv-hint");
  about.id = uid("about");
  label.append(input, text);
  el.append(label, about);
  const show = () => {
    text.textContent = model.get("label");
    about.textContent = model.get("description");
    about.hidden = !about.textContent;
    if (!about.hidden) input.setAttribute("aria-describedby", about.id);
    input.checked = model.get("value");
    input.disabled = model.get("disabled");
    painted(el, Number(input.checked));
  };
  input.addEventListener("input", () => set("value", input.checked), { signal });
  watch(model, signal, ["label", "description", "value", "disabled"], show);
  show();
});
