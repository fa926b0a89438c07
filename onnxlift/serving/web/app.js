// The page: what is entered is explained, and the explanation is shown.
import { Refusal, start } from "./engine.js";
import { imageKind } from "./image.js";
import { sequenceKind } from "./sequence.js";
import { bars, copyOf, element, largest, npy, number, percent, signed } from "./show.js";
import { vectorKind } from "./vector.js";

const KINDS = { image: imageKind, sequence: sequenceKind, vector: vectorKind };
const MOST_BYTES = 1 << 26; // of a file that is entered
const SHOWN_CLASSES = 5;
const TOLERANCE = 1e-3; // of the completeness gap, as in Python
const ROUNDING = 16 * 2 ** -23; // the same of t(x) and t(r), for float32

const at = (id) => document.getElementById(id);
let page, kind, engine;
let shown = null; // the input and its explanation
let latest = 0; // the request that may show its result

main().catch(complain);

async function main() {
  const response = await fetch("page.json").catch(() => null);
  if (!response?.ok) throw new Refusal("page.json could not be loaded: is the whole folder on the server?");
  page = await response.json();
  document.title = page.title;
  at("title").textContent = page.title;
  at("about").textContent = page.description;
  at("versions").textContent = `onnxlift ${page.onnxlift}, ONNX Runtime ${page.runtime.version}`;
  document.body.classList.add(page.input.kind);
  kind = KINDS[page.input.kind](page);
  takeInput();
  page.labels.forEach((label, k) => at("target").append(new Option(label, k)));
  at("classes").hidden = page.target !== "input";
  at("target").onchange = () => attempt(() => explain(shown.input, Number(at("target").value)));
  at("download").onclick = download;
  tell("Loading the model", 0);
  engine = start(page, (loaded, total) => tell(`Loading the model, ${megabytes(loaded, total)}`, loaded / total));
  await engine;
  if (!latest) at("status").hidden = true;
}

const megabytes = (loaded, total) => `${(loaded / 1e6).toFixed(1)} of ${(total / 1e6).toFixed(1)} MB`;

// ---------------------------------------------------------------------------------------------- what is entered

function takeInput() {
  const form = at("input");
  form.append(copyOf(kind.template));
  const [box, file, sample] = ["textarea", "input", ".sample"].map((query) => form.querySelector(query));
  const enter = (source) => attempt(() => take(source, box));
  form.onsubmit = (event) => {
    event.preventDefault();
    enter(box.value);
  };
  file.onchange = () => {
    if (file.files.length) enter(file.files[0]);
    file.value = "";
  };
  sample.hidden = !page.sample;
  sample.onclick = () => enter(fetch(page.sample).then((response) => response.blob()));
  if (box) {
    box.oninput = () => (at("count").textContent = box.value ? kind.count(box.value) : "");
    box.onkeydown = (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
    };
  }
  const transferred = (event, data) => {
    const source = data?.files[0] ?? (box && data?.getData("text"));
    if (event.target === box && typeof source === "string") return; // the box takes text itself
    event.preventDefault();
    document.body.classList.remove("dragging");
    if (source) enter(source);
  };
  document.onpaste = (event) => transferred(event, event.clipboardData);
  document.ondrop = (event) => transferred(event, event.dataTransfer);
  document.ondragover = (event) => {
    event.preventDefault();
    document.body.classList.add("dragging");
  };
  document.ondragleave = (event) => {
    if (!event.relatedTarget) document.body.classList.remove("dragging");
  };
}

/** Explain a File, Blob or text. */
async function take(given, box) {
  let source = await given;
  if (source.size > MOST_BYTES) throw new Refusal(`The file is over ${MOST_BYTES >> 20} MB: choose a smaller one.`);
  if (box) {
    source = typeof source === "string" ? source : await source.text();
    box.value = source;
    box.oninput();
  }
  await explain(await kind.read(source), null);
}

// ------------------------------------------------------------------------------------------------- explanations

/** Run the explainer and show what it finds. `target`: the class to explain; null for the largest. */
async function explain(input, target) {
  const mine = ++latest;
  tell("Explaining");
  const run = await engine;
  let found = await run(request(input, target ?? 0));
  const prediction = page.prediction && found[page.prediction.name].data;
  const top = prediction && largest(prediction, 1)[0];
  if (page.target === "input" && target === null && top) {
    found = await run(request(input, (target = top)));
  }
  if (mine !== latest) return;
  at("status").hidden = true;
  const explained = { input: target ?? 0, argmax: top }[page.target] ?? page.target;
  shown = { input, found };
  at("result").hidden = false;
  kind.draw(at("picture"), input, found[page.contributions].data);
  if (page.target === "input") at("target").value = explained;
  showPrediction(prediction, explained);
  showSums(found, explained);
}

function request(input, target) {
  const inputs = { [page.input.name]: { type: "float32", data: input.data, dims: input.dims } };
  if (page.target === "input") {
    inputs.target = { type: "int64", data: BigInt64Array.of(BigInt(target)), dims: page.targetShape };
  }
  const outputs = [page.contributions, "target_output", "target_reference", "completeness_gap"];
  return { inputs, outputs: page.prediction ? [page.prediction.name, ...outputs] : outputs };
}

/** The value of a single neuron; the largest of several with bars, and where they exclude each other the class. */
function showPrediction(values, explained) {
  at("prediction").hidden = !values;
  if (!values) return;
  const { op } = page.prediction;
  const shownAs = op === "Softmax" || op === "Sigmoid" ? percent : number;
  const alone = values.length === 1;
  const order = largest(values, SHOWN_CLASSES);
  at("answer").hidden = !alone && op === "Sigmoid";
  at("answer").textContent = alone ? shownAs(values[0]) : page.labels[order[0]];
  at("predictions").hidden = alone;
  if (alone) return;
  if (explained !== null && explained !== undefined && !order.includes(explained)) order.push(explained);
  const lines = bars(at("predictions"), order.map((k) => ({
    label: page.labels[k],
    value: values[k],
    text: shownAs(values[k]),
  })));
  lines.forEach((line, place) => {
    if (order[place] === explained) line.setAttribute("aria-current", "true");
    if (page.target !== "input") return;
    line.classList.add("choice");
    line.onclick = () => attempt(() => explain(shown.input, order[place]));
  });
}

/** What the contributions add up to, and whether they do. */
function showSums(found, explained) {
  const [t, r, gap] = ["target_output", "target_reference", "completeness_gap"].map((name) => found[name].data[0]);
  const facts = {
    Explained: [page.labels[explained] ?? page.explained.name, page.explained.before].filter(Boolean).join(", "),
    "at this input, t(x)": number(t),
    "at the reference, t(r)": number(r),
    difference: signed(t - r),
  };
  const list = Object.entries(facts).map(([name, value]) => {
    const line = element("div");
    line.append(element("dt", name), element("dd", value));
    return line;
  });
  at("sums").replaceChildren(...list);
  const allowed = TOLERANCE * Math.abs(t - r) + ROUNDING * (Math.abs(t) + Math.abs(r));
  const complete = Math.abs(gap) <= allowed; // false of NaN
  const share = Number.isFinite(gap) && t !== r ? ` (${percent(Math.abs(gap / (t - r)))})` : "";
  at("gap").className = complete ? "good" : page.conserves ? "bad" : "faint";
  at("gap").textContent = complete
    ? `The contributions add up to the difference (gap ${number(gap)}).`
    : page.conserves
      ? `The contributions miss the difference by ${number(gap)}${share}: do not rely on them for this input.`
      : `The contributions of this rule need not add up to the difference; they miss it by ${number(gap)}${share}.`;
}

function download() {
  const { data, dims } = shown.found[page.contributions];
  const link = element("a");
  link.href = URL.createObjectURL(npy(data, dims));
  link.download = `${page.contributions.replace(/[^\w.-]+/g, "_")}.npy`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

// ----------------------------------------------------------------------------------------------------- messages

/** Run an action; what it refuses is shown. */
async function attempt(action) {
  at("error").hidden = true;
  await action().catch(complain);
}

function complain(error) {
  at("status").hidden = at("result").hidden = true; // what is shown would be of another input
  at("error").hidden = false;
  at("error").textContent = error instanceof Refusal ? error.message : `This went wrong: ${error.message}.`;
}

/** What the page is busy with. `share`: of it done, or undefined. */
function tell(text, share) {
  const [said, bar, late] = at("status").children;
  said.textContent = text;
  if (share === undefined) bar.removeAttribute("value");
  else bar.value = share;
  late?.remove();
  at("status").hidden = false;
}
