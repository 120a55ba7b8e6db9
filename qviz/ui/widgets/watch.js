// Three witnesses, the first that speaks decides: the connection (closed for good, or for long),
// the kernel's own state (dead, or restarted: then its widgets are gone), and a ping that an idle
// kernel leaves unanswered. A busy kernel answers late, so silence counts only while it is idle.

export default {
  initialize({ model }) {
    const kernel = model.widget_manager?.kernel ?? null;
    const inLab = !document.body.dataset.voila;
    let banner = null;
    let waiting = null; // the ping under way: {id, at}
    let quietSince = 0; // since when the kernel is idle with a ping unanswered
    let downSince = 0; // since when the connection is not up
    let count = 0;
    let gone = false;

    function raise(text) {
      if (banner || gone) return;
      gone = true;
      if (globalThis.qvizPage?.alarm) return void globalThis.qvizPage.alarm(text); // the page has a place for it
      banner = elem("div", "qv qv-banner");
      banner.setAttribute("role", "alert");
      const again = elem("button", "qv-button", inLab ? "Reload the page" : "Start again");
      again.type = "button";
      again.addEventListener("click", () => location.reload());
      banner.append(elem("p", "", text), again);
      document.body.append(banner);
    }
    function lower() {
      banner?.remove();
      banner = null;
      gone = false;
    }
    const cure = inLab ? "Run the notebook's cells again." : "Start again to get a new one; the page begins from its first state.";
    const onStatus = (_, status) => {
      if (["dead", "autorestarting", "restarting", "terminating"].includes(status)) {
        raise(`Python behind this page has stopped. ${cure}`);
      }
    };
    const onConnection = (_, status) => {
      if (status === "connected") {
        downSince = 0;
        if (gone && kernel?.status !== "dead") ping(); // an answer takes the banner down
      } else {
        downSince ||= performance.now();
        if (status === "disconnected") raise(`The connection to Python is lost. ${cure}`);
      }
    };
    kernel?.statusChanged?.connect(onStatus);
    kernel?.connectionStatusChanged?.connect(onConnection);

    function ping() {
      count += 1;
      waiting = { id: count, at: performance.now() };
      quietSince = 0;
      try {
        model.send({ type: "ping", id: count });
      } catch {
        raise(`The connection to Python is lost. ${cure}`);
      }
    }
    const onPong = (msg) => {
      if (msg?.type !== "pong") return;
      waiting = null;
      lower();
    };
    model.on("msg:custom", onPong);

    let lastSent = performance.now();
    let lastTick = performance.now();
    const timer = setInterval(() => {
      const now = performance.now();
      const slept = now - lastTick > 10000; // the computer was asleep: give the connection a chance
      lastTick = now;
      if (slept) {
        waiting = null;
        downSince = downSince && now;
        lastSent = now;
        return;
      }
      if (downSince && now - downSince > 15000) {
        raise(`The connection to Python is lost. ${cure}`);
      }
      if (waiting) {
        const idle = kernel ? kernel.status === "idle" && kernel.connectionStatus === "connected" : true;
        quietSince = idle ? quietSince || now : 0;
        // without a view of the kernel's state only a very long silence means something
        const patience = (kernel ? model.get("patience") : Math.max(120, model.get("patience"))) * 1000;
        if (quietSince && now - quietSince > patience) {
          raise(`Python behind this page does not answer any more. ${cure}`);
        }
      } else if (!gone && now - lastSent > model.get("every") * 1000) {
        lastSent = now;
        ping();
      }
    }, 1000);
    return () => {
      clearInterval(timer);
      model.off("msg:custom", onPong);
      kernel?.statusChanged?.disconnect(onStatus);
      kernel?.connectionStatusChanged?.disconnect(onConnection);
      banner?.remove();
    };
  },
  render({ el }) {
    el.hidden = true;
  },
};
