// The page's state is kept behind the # of its address. The kernel writes it. Anyone who opens a
// link, goes back or edits the address asks the kernel for that state. A kernel that was started
// before anyone visited knows no address, so it is read here, when the page is shown.

const PAUSE = 300; // milliseconds: browsers refuse an address that changes with every move

export default widget(({ model, el, signal }) => {
  el.hidden = true;
  if (!document.body.hasAttribute("data-voila")) return; // JupyterLab's address is not the page's
  const now = () => location.hash.slice(1);
  let written = null; // what the address says, as far as the kernel knows
  let waiting = false; // for the kernel to answer
  let timer = 0;

  const ask = () => {
    if (now() === written) return;
    written = now();
    waiting = true;
    clearTimeout(timer);
    sendAfterChanges(model, { type: "go", state: written });
  };
  const write = () => {
    timer = 0;
    if (waiting) return;
    if (written !== null && now() !== written) {
      ask(); // edited a moment ago: the browser's own event is still to come
      return;
    }
    written = model.get("state");
    const there = `${location.pathname}${location.search}${written ? `#${written}` : ""}`;
    if (now() !== written) history.replaceState(history.state, "", there);
    document.body.dataset.qvAddress = written; // tells tests what the kernel has confirmed
  };
  const later = () => {
    clearTimeout(timer);
    timer = setTimeout(write, PAUSE);
  };
  watch(model, signal, ["state"], later);
  watch(model, signal, ["answered"], () => {
    waiting = false;
    later();
  });
  addEventListener("hashchange", ask, { signal });
  signal.addEventListener("abort", () => clearTimeout(timer));
  if (now()) ask();
  else later();
});
