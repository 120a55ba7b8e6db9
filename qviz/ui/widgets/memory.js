// What the browser keeps of the course: for each lesson whether it was visited, what was guessed and
// which steps of its guide were done. It never leaves the browser.

const QV_COURSE = "qviz:course";
const qvKept = (globalThis.qvKept ??= {}); // where the browser keeps nothing: for this page alone

function recall() {
  try {
    return JSON.parse(localStorage.getItem(QV_COURSE) ?? "{}") ?? {};
  } catch {
    return qvKept;
  }
}

function remember(slug, news) {
  if (!slug) return;
  const all = recall();
  all[slug] = { ...all[slug], ...news };
  qvKept[slug] = all[slug];
  try {
    localStorage.setItem(QV_COURSE, JSON.stringify(all));
  } catch {
    // storage is refused in some frames: then qvKept has to do
  }
}
