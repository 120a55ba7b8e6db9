export default widget(({ model, el, signal }) => {
  el.classList.add("qv-guide");
  const name = elem("h2", "", "Try this");
  name.id = uid("guide");
  const list = elem("ol");
  list.setAttribute("aria-labelledby", name.id);
  const text = elem("p", "qv-watch");
  text.setAttribute("aria-live", "polite");
  el.append(name, list, text);
  let buttons = [];
  const done = () => {
    const kept = recall()[model.get("slug")]?.done ?? [];
    return model.get("steps").map((step, i) => model.get("done")[i] || kept.includes(step.title));
  };
  const show = () => {
    const [active, ticks] = [model.get("active"), done()];
    buttons.forEach((button, i) => {
      const ticked = Boolean(ticks[i]);
      button.classList.toggle("qv-done", ticked);
      button.querySelector(".qv-sr").textContent = ticked ? ", done" : "";
      if (i === active) button.setAttribute("aria-current", "step");
      else button.removeAttribute("aria-current");
    });
    rich(text, model.get("steps")[active]?.watch ?? "");
    text.hidden = active < 0;
  };
  const keep = () => {
    const titles = model.get("steps").filter((_, i) => done()[i]).map((step) => step.title);
    if (titles.length) remember(model.get("slug"), { done: titles });
    show();
  };
  const build = () => {
    buttons = [];
    list.replaceChildren(...model.get("steps").map((step, i) => {
      const item = elem("li");
      const button = elem("button");
      button.type = "button";
      button.append(elem("b", "", String(i + 1)), elem("span", "", step.title), elem("span", "qv-sr"));
      button.addEventListener("click", () => sendAfterChanges(model, { type: "step", index: i }));
      buttons.push(button);
      item.append(button);
      return item;
    }));
    show();
  };
  watch(model, signal, ["steps"], build);
  watch(model, signal, ["active"], show);
  watch(model, signal, ["done"], keep);
  build();
});
