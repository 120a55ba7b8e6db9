// plotly.js once per page: over HTTP from this origin if the server has it, else from the kernel.

function baseUrl() {
  try {
    const config = JSON.parse(document.getElementById("jupyter-config-data").textContent);
    return new URL(config.baseUrl || "/", location.href);
  } catch {
    return new URL("/", location.href);
  }
}

function runScript(url) {
  return new Promise((resolve, reject) => {
    const script = elem("script");
    script.src = url;
    script.onload = () => (globalThis.Plotly ? resolve(globalThis.Plotly) : reject(new Error("plotly.js did not start")));
    script.onerror = () => reject(new Error("plotly.js could not be read"));
    document.head.append(script);
  });
}

async function overHttp(path) {
  const url = new URL(path, baseUrl());
  if (url.origin !== location.origin) throw new Error("not of this origin");
  // asked first, because a script tag would also run a login page
  const head = await fetch(url, { method: "HEAD", credentials: "same-origin", redirect: "error" });
  if (!head.ok || !/javascript/.test(head.headers.get("content-type") ?? "")) throw new Error("not served");
  return runScript(url);
}

function fromKernel(model) {
  return new Promise((resolve, reject) => {
    const done = () => {
      clearTimeout(timer);
      model.off("msg:custom", take);
    };
    const take = (msg, buffers) => {
      if (msg?.type !== "plotly") return;
      done();
      if (msg.error) return void reject(new Error(msg.error));
      const url = URL.createObjectURL(new Blob([buffers[0]], { type: "text/javascript" }));
      runScript(url).then(resolve, reject).finally(() => URL.revokeObjectURL(url));
    };
    const timer = setTimeout(() => {
      done();
      reject(new Error("the kernel did not send plotly.js within a minute"));
    }, 60000);
    model.on("msg:custom", take);
    model.send({ type: "plotly" });
  });
}

/** All charts on the page wait for the same copy; a request after a failure tries again. */
function getPlotly(model) {
  const page = globalThis;
  page.qvPlotly ??= (page.Plotly
    ? Promise.resolve(page.Plotly)
    : overHttp(model.get("url")).catch(() => fromKernel(model))
  ).catch((error) => {
    page.qvPlotly = undefined;
    throw error;
  });
  return page.qvPlotly;
}
