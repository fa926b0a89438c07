// The thread that holds the model, so that the page answers while it computes.
import * as ort from "./ort.js";

let session;

/** Start ONNX Runtime and load the explainer. `runtime`, `model`: bytes. `weights`: bytes by file name. */
async function load({ runtime, model, weights }) {
  ort.env.wasm.wasmBinary = runtime;
  ort.env.wasm.numThreads = 1; // more need headers that a plain web host does not send
  ort.env.logLevel = "error";
  session = await ort.InferenceSession.create(model, {
    executionProviders: ["wasm"],
    externalData: Object.entries(weights).map(([path, data]) => ({ path, data })),
  });
}

/** Run the explainer. `inputs`: { name: { type, data, dims } }. Returns { name: { data, dims } } of `outputs`. */
async function run({ inputs, outputs }) {
  const feeds = {};
  for (const [name, { type, data, dims }] of Object.entries(inputs)) feeds[name] = new ort.Tensor(type, data, dims);
  const results = await session.run(feeds, outputs);
  return Object.fromEntries(outputs.map((name) => [name, { data: results[name].data, dims: results[name].dims }]));
}

const calls = { load, run };

self.onmessage = async ({ data: { id, call, given } }) => {
  try {
    self.postMessage({ id, result: await calls[call](given) });
  } catch (error) {
    self.postMessage({ id, error: String(error?.message ?? error) });
  }
};
