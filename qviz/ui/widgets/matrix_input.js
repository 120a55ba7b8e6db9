// Pointer, wheel and keyboard on a matrix.

/** Hovering shows a cell, a click holds it, dragging moves the part that is shown, two fingers zoom. */
function pointAt(view) {
  const { signal, get, set, model, zoom, page } = view;
  const { stage, readout } = page;
  const at = (event) => {
    const box = stage.getBoundingClientRect();
    return [
      (event.clientX - box.left) * (view.W / box.width),
      (event.clientY - box.top) * (view.H / box.height),
    ];
  };
  const cellAt = ([px, py]) => {
    const [rows, cols] = get("shape");
    return [
      clamp(Math.floor(zoom.y0 + py / zoom.sy), 0, rows - 1),
      clamp(Math.floor(zoom.x0 + px / zoom.sx), 0, cols - 1),
    ];
  };
  const moveHover = painter(() => {
    if (view.hover) set("cursor", view.hover);
    view.hover = null;
  }, signal);
  const pointers = new Map();
  let dragged = false;
  let pinch = 0;
  stage.addEventListener("pointerdown", (event) => {
    if (event.button > 0) return;
    pointers.set(event.pointerId, at(event));
    dragged = pointers.size > 1;
    pinch = 0;
    stage.setPointerCapture(event.pointerId);
  }, { signal });
  stage.addEventListener("pointermove", (event) => {
    if (!view.ready()) return;
    readout.setAttribute("aria-live", "off");
    const here = at(event);
    const before = pointers.get(event.pointerId);
    if (pointers.size === 2 && before) {
      pointers.set(event.pointerId, here);
      const [a, b] = [...pointers.values()];
      const distance = Math.hypot(a[0] - b[0], a[1] - b[1]);
      if (pinch) zoom.by(Math.log(distance / pinch) / 0.35, (a[0] + b[0]) / 2, (a[1] + b[1]) / 2);
      pinch = distance;
    } else if (before) {
      const [dx, dy] = [here[0] - before[0], here[1] - before[1]];
      if (!dragged && Math.hypot(dx, dy) < 4 * view.dpr) return;
      dragged = true;
      if (zoom.t > 0) {
        zoom.look(zoom.middle(-dy / zoom.sy, -dx / zoom.sx));
        zoom.update();
        pointers.set(event.pointerId, here);
      }
    }
    if (!get("pinned") && !(dragged && zoom.t > 0)) {
      view.hover = cellAt(here);
      moveHover();
      view.schedule();
    }
  }, { signal });
  const release = (event) => {
    const was = pointers.delete(event.pointerId);
    if (!was || event.type === "pointercancel" || dragged || !view.ready()) return;
    const cell = cellAt(at(event));
    const same = get("cursor")[0] === cell[0] && get("cursor")[1] === cell[1];
    view.hover = null;
    model.set("cursor", cell);
    set("pinned", !(get("pinned") && same));
  };
  stage.addEventListener("pointerup", release, { signal });
  stage.addEventListener("pointercancel", release, { signal });
  stage.addEventListener("wheel", (event) => {
    const mine = event.ctrlKey || zoom.t > 0 || document.activeElement === stage || !scrolls(view.el);
    if (!view.ready() || !mine) return;
    const unit = event.deltaMode === 1 ? 33 : 1;
    const steps = (-event.deltaY * unit) / (event.ctrlKey ? 25 : 100);
    if (zoom.by(clamp(steps, -3, 3), ...at(event))) event.preventDefault();
  }, { signal, passive: false });
}

/** A wheel scrolls the page unless there is nothing to scroll or the learner is at this matrix. */
function scrolls(el) {
  for (let node = el.parentElement; node; node = node.parentElement) {
    const style = getComputedStyle(node).overflowY;
    const root = node === document.scrollingElement;
    if ((root || /auto|scroll/.test(style)) && node.scrollHeight > node.clientHeight + 2) return true;
  }
  return false;
}

function typeAt(view) {
  const { signal, get, set, model, zoom, page } = view;
  page.stage.addEventListener("keydown", (event) => {
    if (!view.ready() || event.altKey || event.metaKey || event.ctrlKey) return;
    const [rows, cols] = get("shape");
    let [row, col] = get("cursor");
    const inside = row >= 0 && col >= 0;
    if (!inside) [row, col] = zoom.middle().map(Math.floor);
    const far = event.shiftKey ? 10 : 1;
    const screen = Math.max(1, Math.floor(view.H / zoom.sy));
    const moves = {
      ArrowUp: [-far, 0], ArrowDown: [far, 0], ArrowLeft: [0, -far], ArrowRight: [0, far],
      Home: [0, -cols], End: [0, cols], PageUp: [-screen, 0], PageDown: [screen, 0],
    };
    const middle = inside ? [(col + 0.5 - zoom.x0) * zoom.sx, (row + 0.5 - zoom.y0) * zoom.sy] : [];
    if (moves[event.key]) {
      const [dr, dc] = inside ? moves[event.key] : [0, 0];
      const to = [clamp(row + dr, 0, rows - 1), clamp(col + dc, 0, cols - 1)];
      page.readout.setAttribute("aria-live", "polite");
      view.hover = null;
      set("cursor", to);
      follow(zoom, to);
    } else if (event.key === "+" || event.key === "=") zoom.by(2, ...middle);
    else if (event.key === "-" || event.key === "_") zoom.by(-2, ...middle);
    else if (event.key === "0") zoom.whole();
    else if (event.key === "Enter") {
      if (!inside) model.set("cursor", [row, col]);
      set("pinned", !get("pinned"));
    } else if (event.key === "Escape" && get("pinned")) set("pinned", false);
    else return;
    event.preventDefault();
    event.stopPropagation(); // the notebook has shortcuts of its own on these keys
  }, { signal });
}

/** Moves the part that is shown so that a cell is inside it, with one cell around it. */
function follow(zoom, [row, col]) {
  const v = zoom.visible();
  if (zoom.t <= 0 || (row >= v[0] + 1 && row < v[1] - 1 && col >= v[2] + 1 && col < v[3] - 1)) return;
  const off = (k, a, b) => (k < a + 1 ? k - a - 1 : k >= b - 1 ? k - b + 2 : 0);
  zoom.look(zoom.middle(off(row, v[0], v[1]), off(col, v[2], v[3])));
}
