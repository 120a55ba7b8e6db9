export default widget(({ model, el, signal }) => {
  el.classList.add("qv-code");
  const pre = elem("pre");
  pre.tabIndex = 0;
  pre.setAttribute("role", "group"); // a name needs a role
  pre.setAttribute("aria-label", model.get("label"));
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
  let shown = null;
  const show = painter(() => {
    const texts = model.get("texts");
    const frame = model.get("frame");
    const text = texts[Math.min(frame, texts.length - 1)] ?? "";
    if (text !== shown) code.replaceChildren(...text.split(/(?<=\n)/).map((line) => elem("span", "", line)));
    shown = text;
    const lit = model.get("lit")[frame] ?? [];
    [...code.children].forEach((line, i) => line.classList.toggle("qv-lit", lit.includes(i + 1)));
    const first = code.querySelector(".qv-lit"); // in sight, without moving the page
    if (first) pre.scrollTop = first.offsetTop - pre.clientHeight / 3;
    painted(el, frame);
  }, signal);
  watch(model, signal, ["texts", "lit", "frame"], show);
  show();
});
