// The page's own few lines: what is being prepared, when it is ready, and when the connection to
// Python is gone. Everything else on the page is Voilà's and the widgets'.
window.qvizPage = (() => {
  const byId = (id) => document.getElementById(id);
  let heartbeats = 0;
  let cause = ""; // what the alarm on the page is about

  function say(text) {
    const place = byId("loading_text");
    if (place) place.textContent = text;
  }

  // The first reason is the cause, and later ones only follow from it; but a connection may come
  // back, and what is found out then is truer.
  function alarm(text, about = "end") {
    if (cause && cause !== "connection") return;
    if (cause === about) return;
    cause = about;
    const notice = document.createElement("p");
    notice.className = "qv-notice";
    notice.textContent = text;
    notice.append(about === "frame" ? ownTab() : startAgain());
    byId("qv-alarm").replaceChildren(notice);
    byId("loading")?.remove();
    byId("qv-cells")?.classList.remove("qv-waiting");
    notice.scrollIntoView({ block: "nearest" });
  }

  function startAgain() {
    const again = document.createElement("button");
    again.type = "button";
    again.textContent = "Start again";
    again.onclick = () => location.reload(); // the address holds what was chosen
    return again;
  }

  function ownTab() {
    const link = document.createElement("a");
    Object.assign(link, { href: location.href, target: "_blank", textContent: "Open it in a tab" });
    return link;
  }

  async function withdraw() {
    // A kernel that ended meanwhile was started anew, and knows nothing of this page.
    const kernel = window.jupyterapp?.widgetManager?.kernel;
    const answer = await kernel?.requestCommInfo({ target_name: "jupyter.widget" });
    if (answer && !Object.keys(answer.content.comms ?? {}).length) return lost();
    if (cause !== "connection") return;
    cause = "";
    const notice = document.createElement("p");
    notice.className = "qv-notice";
    notice.textContent = "The connection is back.";
    byId("qv-alarm").replaceChildren(notice);
    setTimeout(() => notice.remove(), 5000);
  }

  /** Code of the prose may be wider than the page: whoever has no pointer scrolls it by keyboard. */
  function reachCode() {
    for (const [i, code] of [...document.querySelectorAll(".qv-prose pre")].entries()) {
      code.tabIndex = 0;
      code.setAttribute("role", "region");
      code.setAttribute("aria-label", `Code ${i + 1} of the text`);
    }
  }

  function reveal() {
    reachCode();
    byId("loading")?.remove();
    byId("qv-cells").classList.remove("qv-waiting");
    document.body.dataset.qvizReady = "yes";
  }

  // Ready means: every widget that the notebook shows has drawn its first element.
  function cellsSent() {
    if (window !== window.top && !/\b_xsrf=/.test(document.cookie)) {
      return alarm("Your browser keeps no cookies of pages that are shown inside another site, and this lesson needs one. ", "frame");
    }
    prepareGoodbye();
    const root = byId("qv-cells");
    const WIDGET = "application/vnd.jupyter.widget-view+json";
    const scripts = root.querySelectorAll('script[type="application/vnd.voila.cell-output+json"]');
    const expected = [...scripts].filter((script) => script.textContent.includes(WIDGET)).length;
    if (expected === 0) return reveal();
    say("Loading the controls…");
    const drawn = () => root.querySelectorAll(".jp-OutputArea-output .jupyter-widgets:not(.jp-OutputArea-output)").length;
    const watch = new MutationObserver(() => {
      if (drawn() >= expected) {
        watch.disconnect();
        reveal();
      }
    });
    watch.observe(root, { childList: true, subtree: true });
    setTimeout(() => {
      if (byId("loading")) say("This takes longer than usual. The page appears as soon as it can.");
    }, 20000);
  }

  /** To what the lesson is about: its own slider, the bar of steps, or the first of its controls. */
  function skip() {
    const places = [".qv-lead input", ".qv-foot [aria-label='Play']", ".qv-controls :is(input, select, button)", ".qv-page :is(a, button)"];
    const there = places.flatMap((place) => [...document.querySelectorAll(place)]);
    const first = there.find((one) => one.getClientRects().length);
    first?.focus();
    first?.scrollIntoView({ block: "center" });
  }

  const base = () => JSON.parse(byId("jupyter-config-data").textContent).baseUrl;

  // Voilà ends the kernel when the page is closed, if this cookie is there to prove where we are.
  function prepareGoodbye() {
    if (!/\b_xsrf=/.test(document.cookie)) fetch(`${base()}qviz/cookie`).catch(() => {});
  }

  // Voilà's own goodbye comes with the widgets; a page that is left earlier says it here.
  addEventListener("pagehide", (event) => {
    const config = byId("jupyter-config-data");
    if (event.persisted || !config || window.jupyterapp?.widgetManager) return;
    const proof = new FormData();
    proof.append("_xsrf", /\b_xsrf=([^;]*)/.exec(document.cookie)?.[1] ?? "");
    const { baseUrl, kernelId } = JSON.parse(config.textContent);
    navigator.sendBeacon(`${baseUrl}voila/api/shutdown/${kernelId}`, proof);
  });

  // Voilà calls these by name while the notebook runs and when its theme is there.
  window.voila_process = (index, count) => say(`Preparing step ${index} of ${count}…`);
  window.voila_finish = () => {};
  window.voila_heartbeat = () => {
    heartbeats += 1;
    say(
      heartbeats < 6
        ? "Still computing. The first opening takes longest."
        : "No answer for a minute. The server's terminal may say why.",
    );
  };

  // A kernel that is gone leaves a page that looks alive and answers nothing. The socket to it is
  // the only witness, and it is opened by scripts that load later: so listen where it is made.
  let open = null; // the socket to the kernel
  const Plain = window.WebSocket;
  window.WebSocket = class extends Plain {
    constructor(...args) {
      super(...args);
      const kernel = /\/api\/kernels\/([\w-]+)\/channels/.exec(this.url);
      if (!kernel) return;
      this.addEventListener("open", () => {
        open = this;
        rounds = 0;
        if (cause === "connection") withdraw();
      });
      this.addEventListener("close", () => {
        if (open === this) open = null;
        setTimeout(lookAfter, 1500, kernel[1]);
      });
      this.addEventListener("message", (event) => {
        const size = event.data.byteLength ?? event.data.length;
        if (size > 4000) return; // status messages are short; never decode a picture
        const text = typeof event.data === "string" ? event.data : new TextDecoder().decode(event.data);
        if (/"execution_state":\s*"(restarting|dead)"/.test(text)) lost();
      });
    }
  };

  const lost = () =>
    alarm("The Python process behind this page has ended, so the controls no longer answer.");

  let leaving = false;
  addEventListener("beforeunload", () => {
    leaving = true;
    setTimeout(() => (leaving = false), 5000); // a download also fires this, and then we stay
  });

  let looking = 0; // one round at a time
  let rounds = 0; // in which the server answered and the socket stayed closed

  /** What has become of the kernel whose socket has closed? Asked until the answer is final. */
  async function lookAfter(id) {
    clearTimeout(looking);
    if (leaving || open || cause === "end") return;
    try {
      const signal = AbortSignal.timeout(8000);
      const answer = await fetch(`${base()}api/kernels/${id}`, { cache: "no-store", signal });
      if (answer.status >= 500) throw new Error("a proxy answers, and not the server");
      if (!answer.ok || answer.redirected) return lost();
      // The kernel is there and the way to it is not, which the learner must know after a while.
      rounds += 1;
      if (rounds > 3) alarm("The server answers, but the connection to Python does not come back. This page keeps trying.", "connection");
      // Jupyter tries by itself, but less and less often, and not for ever.
      window.jupyterapp?.widgetManager?.kernel.reconnect().catch(() => {});
    } catch {
      alarm("The server does not answer: it was stopped, or the connection is down. This page keeps trying.", "connection");
    }
    looking = setTimeout(lookAfter, 4000, id);
  }
  // A laptop that wakes, a network that comes back: no need to wait for the next round.
  addEventListener("online", () => cause === "connection" && lookAfter(kernelId()));
  const kernelId = () => JSON.parse(byId("jupyter-config-data").textContent).kernelId;

  return { cellsSent, alarm, skip };
})();
