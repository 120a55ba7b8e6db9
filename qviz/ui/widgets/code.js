export default widget(({ model, el, signal }) => {
  el.classList.add("qv-code");
  const pre = elem("pre");
  pre.tabIndex = 0;
  pre.setAttribute("aria-label", "Python code");
  const code = elem("code");
  const copy = elem("button", "qv-button", "Copy");
  copy.type = "button";
  pre.append(code);
  el.append(pre, copy);
  copy.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(code.textContent);
      copy.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(code); // no clipboard without https: mark it at least
      copy.textContent = "Press Ctrl+C";
    }
    setTimeout(() => (copy.textContent = "Copy"), 1500);
  }, { signal });
  const show = painter(() => {
    const texts = model.get("texts");
    const frame = model.get("frame");
    code.textContent = texts[Math.min(frame, texts.length - 1)] ?? "";
    painted(el, frame);
  }, signal);
  watch(model, signal, ["texts", "frame"], show);
  show();
});
