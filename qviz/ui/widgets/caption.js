export default widget(({ model, el, signal }) => {
  const text = elem("p", "qv-caption");
  const spoken = elem("p", "qv-sr");
  spoken.setAttribute("aria-live", "polite");
  text.setAttribute("aria-hidden", "true"); // said by the twin, which waits for the slider to rest
  const line = elem("span");
  const source = elem("small", "qv-hint");
  text.append(line, " ", source);
  el.append(text, spoken);
  let timer = 0;
  const show = painter(() => {
    const texts = model.get("texts");
    const frame = model.get("frame");
    const now = texts[Math.min(frame, texts.length - 1)] ?? "";
    rich(line, now);
    source.textContent = model.get("source");
    clearTimeout(timer);
    timer = setTimeout(() => (spoken.textContent = text.textContent), 500);
    painted(el, frame);
  }, signal);
  signal.addEventListener("abort", () => clearTimeout(timer));
  watch(model, signal, ["texts", "source", "frame"], show);
  show();
});
