export default widget(({ model, el, signal }) => {
  el.classList.add("qv-status");
  const show = () => {
    const [kind, text] = [model.get("kind"), model.get("text")];
    if (!text) return el.replaceChildren();
    const box = elem("div");
    box.setAttribute("role", kind === "error" ? "alert" : "status");
    box.append(elem("b", "", kind === "error" ? "Not possible" : "Working"), " ", elem("span", "", text));
    el.replaceChildren(box);
  };
  watch(model, signal, ["kind", "text"], show);
  show();
});
