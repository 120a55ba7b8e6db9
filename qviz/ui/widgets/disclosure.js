export default widget(({ model, el, signal }) => {
  el.classList.add("qv-disclosure");
  const button = elem("button");
  button.type = "button";
  el.append(button);
  const show = () => {
    rich(button, model.get("summary"));
    button.setAttribute("aria-expanded", String(model.get("expanded")));
    // the body is the next box of the same parent; the page attaches both a moment later
    requestAnimationFrame(() => {
      const body = el.nextElementSibling;
      if (!body) return;
      body.id ||= uid("body");
      button.setAttribute("aria-controls", body.id);
    });
  };
  button.addEventListener("click", () => {
    model.set("expanded", !model.get("expanded"));
    model.save_changes();
  }, { signal });
  watch(model, signal, ["summary", "expanded"], show);
  show();
});
