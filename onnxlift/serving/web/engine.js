// ONNX Runtime in a worker, as two asynchronous functions: load and run.

/** What went wrong, as one line that a visitor can do something with. */
export class Refusal extends Error {}

/**
 * Download the runtime and the explainer, and start them. `page`: page.json. `progress(loaded, total)`: in bytes.
 * Returns run({ inputs, outputs }), see worker.js. Throws Refusal.
 */
export async function start(page, progress) {
  if (typeof WebAssembly !== "object") {
    throw new Refusal("This browser does not run WebAssembly, or it is switched off: use a current browser.");
  }
  const call = connect();
  const total = Object.values(page.files).reduce((sum, size) => sum + size, 0);
  let loaded = 0;
  const download = (name) => fetched(name, page.files[name], (bytes) => progress((loaded += bytes), total));
  const names = [page.runtime.file, page.model, ...page.weights];
  const [runtime, model, ...weights] = await Promise.all(names.map(download));
  const given = { runtime, model, weights: Object.fromEntries(page.weights.map((name, k) => [name, weights[k]])) };
  const buffers = [runtime, model, ...weights].map((bytes) => bytes.buffer); // handed over, not copied
  await call("load", given, buffers).catch((error) => {
    throw new Refusal(`The model could not be started in this browser (${firstLine(error)}).`);
  });
  return (given) =>
    call("run", given).catch((error) => {
      throw new Refusal(`ONNX Runtime could not explain this input (${firstLine(error)}).`);
    });
}

/** A worker's functions: call(name, given, buffers that it gets for good). */
function connect() {
  // A worker made of a blob is under the page's Content-Security-Policy; one made of a file would have none.
  const source = `import ${JSON.stringify(new URL("worker.js", document.baseURI).href)}; self.postMessage({ id: 0 });`;
  const address = URL.createObjectURL(new Blob([source], { type: "text/javascript" }));
  const worker = new Worker(address, { type: "module" });
  const waiting = new Map();
  const ready = new Promise((resolve, reject) => waiting.set(0, { resolve, reject }));
  ready.catch(() => {}); // whoever calls is told
  const failed = () => {
    const error = new Error("worker.js or ort.js did not load, or the memory is full");
    for (const { reject } of waiting.values()) reject(error);
    waiting.clear();
  };
  worker.onerror = failed;
  worker.onmessageerror = failed;
  worker.onmessage = ({ data: { id, result, error } }) => {
    const { resolve, reject } = waiting.get(id) ?? {};
    waiting.delete(id);
    if (error === undefined) resolve?.(result);
    else reject?.(new Error(error));
  };
  let count = 0;
  return async (name, given, buffers = []) => {
    await ready;
    const id = ++count;
    return new Promise((resolve, reject) => {
      waiting.set(id, { resolve, reject });
      worker.postMessage({ id, call: name, given }, buffers);
    });
  };
}

/** The bytes of a file of this package, `size` of them. */
async function fetched(name, size, progress) {
  const missing = new Refusal(`${name} could not be loaded: is the whole folder on the server, and the network up?`);
  try {
    const response = await fetch(name);
    if (!response.ok) throw missing;
    const bytes = new Uint8Array(size); // what comes goes to its place at once: a model may be large
    let at = 0;
    for (const reader = response.body.getReader(); ; ) {
      const { done, value } = await reader.read();
      if (done) break;
      bytes.set(value, at); // which throws where there are more
      at += value.length;
      progress(value.length);
    }
    if (at < size) throw missing;
    return bytes;
  } catch {
    throw missing;
  }
}

const firstLine = (error) => String(error.message ?? error).split("\n")[0].trim();
