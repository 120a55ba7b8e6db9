export default widget(({ model, el, signal }) => {
  el.classList.add("qv-path");
  const begin = elem("a", "qv-begin");
  const kept = recall();
  const build = () => {
    const course = model.get("course");
    const open = course.filter((one) => one.href);
    const next = open.find((one) => !kept[one.slug]?.visited) ?? open[0];
    const begun = open.some((one) => kept[one.slug]?.visited);
    begin.href = next?.href ?? "";
    begin.hidden = !next;
    if (next) begin.textContent = begun ? `Continue with ${next.number} · ${next.title}` : `Start with ${next.number} · ${next.title}`;
    const themes = [...new Set(course.map((one) => one.theme))];
    el.replaceChildren(begin, ...themes.map((theme) => {
      const part = elem("section");
      const name = elem("h2", "", theme);
      name.id = uid("theme");
      part.setAttribute("aria-labelledby", name.id);
      const list = elem("ol");
      for (const one of course.filter((each) => each.theme === theme)) {
        const item = elem("li", one.href ? "qv-open" : "qv-later");
        item.value = one.number;
        const link = elem(one.href ? "a" : "div", "qv-lesson-link");
        if (one.href) link.href = one.href;
        link.append(elem("strong", "", `${one.number} · ${one.title}`), elem("span", "", one.question));
        if (one.promise) link.append(elem("small", "", one.promise));
        const mine = kept[one.slug] ?? {};
        const marks = [mine.visited && "visited", mine.guessed && "guessed",
          mine.done?.length && `${mine.done.length} tried`, !one.href && "not written yet"].filter(Boolean);
        if (marks.length) link.append(elem("em", "", marks.join(" · ")));
        item.append(link);
        list.append(item);
      }
      part.append(name, list);
      return part;
    }));
    painted(el, 0);
  };
  watch(model, signal, ["course"], build);
  build();
});
