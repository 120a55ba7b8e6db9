export default widget(({ model, el, signal }) => {
  el.classList.add("qv-text");
  const show = () => {
    const tag = ["h1", "h2", "h3", "p"].includes(model.get("tag")) ? model.get("tag") : "p";
    const node = rich(elem(tag), model.get("text"));
    node.id = uid("text");
    if (model.get("role")) node.dataset.role = model.get("role");
    el.replaceChildren(node);
    // A heading names its region, for people who move by landmarks.
    requestAnimationFrame(() => {
      if (signal.aborted || !model.get("names")) return;
      const region = el.closest(`.${CSS.escape(model.get("names"))}`);
      if (!region) return;
      // One main landmark: the page's own template and JupyterLab have one already.
      const main = model.get("names") === "qv-page" && !region.closest("main, [role=main]");
      region.setAttribute("role", main ? "main" : "region");
      region.setAttribute("aria-labelledby", node.id);
    });
  };
  watch(model, signal, ["text", "tag", "role", "names"], show);
  show();
});
