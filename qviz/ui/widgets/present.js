// For a projector: larger type, and what stands around folded away, so that pictures, caption and
// the lead control stand in one view. Pictures and charts share the height that is left.

const SHORTEST = 0.45; // of a picture's usual height; below it nothing could be seen
const TALLEST = 1.7;
const STILL = 24; // pixels that pictures may be off, so that a longer caption does not move them

/** The height that can be seen of the page: of the window, or of the part of JupyterLab. */
function seenHeight(root) {
  let box = root;
  while (box && !/auto|scroll/.test(getComputedStyle(box).overflowY)) box = box.parentElement;
  const inner = box && box !== document.body ? box.clientHeight : innerHeight;
  return Math.min(innerHeight, inner);
}

/** Makes pictures and charts as tall as the view allows; charts hear of it by "qv-tall". */
function fitView(root) {
  const grid = root.querySelector(".qv-page");
  const main = grid.querySelector(":scope > .qv-main");
  const bar = grid.querySelector(":scope > .qv-foot");
  const sticks = bar?.querySelector(".qv-transport")?.getClientRects().length;
  const edge = clamp(grid.getBoundingClientRect().top + scrollY, 0, 40);
  const above = main.getBoundingClientRect().top - grid.getBoundingClientRect().top;
  const room = seenHeight(root) - edge - above - (sticks ? bar.offsetHeight + 14 : 14);
  const heightAt = (tall) => {
    root.style.setProperty("--qv-tall", String(tall));
    dispatchEvent(new Event("qv-tall"));
    return main.getBoundingClientRect().height;
  };
  const before = Number(root.style.getPropertyValue("--qv-tall")) || 1;
  const spare = room - heightAt(before);
  if (spare >= 0 && spare <= STILL) return;
  let [low, high] = [SHORTEST, TALLEST]; // charts stop shrinking earlier than pictures: so halve
  if (heightAt(high) > room) {
    for (let i = 0; i < 7; i += 1) {
      const middle = (low + high) / 2;
      if (heightAt(middle) > room) high = middle;
      else low = middle;
    }
  } else if (heightAt(low) === heightAt(high)) low = 1; // there is nothing that could grow
  else low = high;
  heightAt(low);
}

/** The two buttons: into presentation and back, and what is folded meanwhile. */
function presenter(el, signal, button) {
  let root = null;
  const refit = painter(() => root && fitView(root), signal);
  const sizes = new ResizeObserver(refit);
  signal.addEventListener("abort", () => sizes.disconnect());
  addEventListener("resize", refit, { signal });
  const present = button("Present", "For a projector: larger type, pictures in one view, controls folded away", () => {
    const page = el.closest(".qv-root");
    const on = page.classList.toggle("qv-present");
    document.body.classList.toggle("qv-presenting", on);
    present.setAttribute("aria-pressed", String(on));
    fold.hidden = !on;
    unfold(false, page);
    sizes.disconnect();
    root = on ? page : null;
    if (!on) {
      page.style.removeProperty("--qv-tall");
      dispatchEvent(new Event("qv-tall"));
      return;
    }
    for (const part of [...page.querySelector(".qv-page").children]) sizes.observe(part);
  });
  const unfold = (shown, page) => {
    page.classList.toggle("qv-unfolded", shown);
    fold.setAttribute("aria-expanded", String(shown));
    refit();
  };
  const fold = button("Controls", "Show or hide the controls (Alt+C)", () =>
    unfold(!root.classList.contains("qv-unfolded"), root));
  present.setAttribute("aria-pressed", "false");
  fold.setAttribute("aria-expanded", "false");
  fold.setAttribute("aria-keyshortcuts", "Alt+C");
  fold.hidden = true;
  addEventListener("keydown", (event) => {
    if (!root || !event.altKey || event.ctrlKey || event.metaKey || event.code !== "KeyC") return;
    event.preventDefault();
    fold.click();
  }, { signal });
  return [fold, present];
}

