export default widget(({ model, el, signal }) => {
  const button = elem("button", "qv-button");
  button.type = "button";
  button.addEventListener("click", () => sendAfterChanges(model, { type: "click" }), { signal });
  el.append(button);
  const show = () => {
    button.textContent = model.get("label");
    button.disabled = model.get("disabled");
  };
  watch(model, signal, ["label", "disabled"], show);
  show();
});
