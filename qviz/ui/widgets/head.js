export default widget(({ model, el, signal }) => {
  el.classList.add("qv-heading");
  const voila = document.body.hasAttribute("data-voila");
  const nav = elem("nav", "qv-course");
  nav.setAttribute("aria-label", "Course");
  const words = elem("div", "qv-title");
  const title = elem("h1");
  title.id = uid("title");
  const question = elem("p", "qv-question");
  words.append(title, question);
  const tools = elem("div", "qv-tools");
  const said = elem("span", "qv-sr");
  said.setAttribute("aria-live", "polite");
  const button = (text, about, act) => {
    const b = elem("button", "qv-button", text);
    b.type = "button";
    b.title = about;
    b.addEventListener("click", act, { signal });
    return b;
  };
  const copy = button("Copy link", "A link to this page as it is now", async () => {
    const there = new URL(location.href);
    there.search = ""; // the server's token travels there; the link is for others
    try {
      await navigator.clipboard.writeText(there.href);
      copy.textContent = "Copied";
    } catch { // no clipboard without https: show it, marked
      shown.value = there.href;
      shown.hidden = false;
      shown.focus();
      shown.select();
      copy.textContent = "Press Ctrl+C";
    }
    said.textContent = copy.textContent;
    setTimeout(() => (copy.textContent = "Copy link"), 2500);
  });
  const shown = elem("input", "qv-input");
  Object.assign(shown, { type: "text", readOnly: true, hidden: true });
  shown.setAttribute("aria-label", "Link to this page as it is now");
  shown.addEventListener("blur", () => (shown.hidden = true), { signal });
  tools.append(copy, ...presenter(el, signal, button), said);
  copy.hidden = !voila; // in JupyterLab the address is the notebook's
  el.append(nav, words, tools, shown);

  const anchor = (text, href, about) => {
    const a = elem("a", "", text);
    a.href = href;
    if (about) {
      a.title = about;
      a.setAttribute("aria-label", about);
    }
    return a;
  };
  const list = () => {
    const box = elem("details", "qv-course-list");
    box.append(elem("summary", "", "Lessons"));
    const items = elem("ol");
    const kept = recall();
    for (const one of model.get("course")) {
      const item = elem("li");
      item.value = one.number;
      const here = one.slug === model.get("slug");
      if (one.href && !here) item.append(anchor(one.title, one.href));
      else item.append(elem("span", here ? "qv-here" : "qv-later", one.title));
      if (here) item.firstChild.setAttribute("aria-current", "page");
      item.append(elem("small", "", one.href ? (kept[one.slug]?.visited && !here ? " visited" : "") : " not written yet"));
      items.append(item);
    }
    box.append(items);
    box.addEventListener("keydown", (event) => {
      if (event.key !== "Escape") return;
      box.open = false;
      box.firstChild.focus();
    });
    document.addEventListener("pointerdown", (event) => {
      if (!box.contains(event.target)) box.open = false;
    }, { signal });
    return box;
  };
  const build = () => {
    title.textContent = model.get("title");
    question.textContent = model.get("question");
    const course = model.get("course");
    const there = Object.fromEntries(course.map((one) => [one.slug, one]));
    const [before, after] = [there[model.get("before")], there[model.get("after")]];
    nav.replaceChildren();
    if (model.get("gallery")) nav.append(anchor("qviz", model.get("gallery"), "All lessons"), list());
    if (before) nav.append(anchor(`‹ ${before.title}`, before.href, `Previous lesson: ${before.title}`));
    if (after) nav.append(anchor(`${after.title} ›`, after.href, `Next lesson: ${after.title}`));
    nav.hidden = !nav.childNodes.length;
    if (voila) document.title = `${model.get("tab")} · qviz`;
    requestAnimationFrame(() => {
      if (signal.aborted) return;
      const page = el.closest(".qv-page");
      if (!page) return;
      // One main landmark: the page's own template and JupyterLab have one already.
      page.setAttribute("role", page.closest("main, [role=main]") ? "region" : "main");
      page.setAttribute("aria-labelledby", title.id);
      remember(model.get("slug"), { visited: true });
    });
  };
  watch(model, signal, ["title", "question", "course", "slug", "before", "after", "gallery", "tab"], build);
  watch(model, signal, ["guessed"], () => {
    if (model.get("guessed")) remember(model.get("slug"), { guessed: true });
  });
  build();
});
