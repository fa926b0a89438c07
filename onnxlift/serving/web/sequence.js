// DNA: from text or FASTA to one-hot, and contributions as letters whose height is what they contribute.
import { Refusal } from "./engine.js";
import { copyOf, element, signed } from "./show.js";

const BASES = "ACGT";
const UNKNOWN = "NRYSWKMBDHV"; // the other letters of IUPAC's code: no base is set
const WIDEST = 28; // CSS pixels of a letter
const LEGIBLE = 7; // from here on letters are drawn, below bars
const ROOMY = 14; // from here on nobody needs wider ones
const HEIGHT = 240;
const MARGIN = { top: 14, bottom: 24 };
const scheme = matchMedia("(prefers-color-scheme: dark)");

/** `length`: of the model's sequences, or null for any. `shape`: of the input, with that axis null too. */
export function sequenceKind({ input: { shape, length, positionsFirst } }) {
  /** The bases of a text or of the first record of a FASTA: { bases, name, note }. Throws Refusal. */
  function parsed(text) {
    const [before, ...records] = text.split(/^\s*>/m);
    const record = before.trim() || !records.length ? { name: "", body: before } : first(records[0]);
    const bases = record.body.replace(/\s+/g, "").toUpperCase().replace(/U/g, "T");
    const strange = [...bases].find((letter) => !BASES.includes(letter) && !UNKNOWN.includes(letter));
    if (strange) throw new Refusal(`The sequence holds “${strange}”, which is no base: use A, C, G, T, or N.`);
    const more = records.length > 1 ? `the first of ${records.length} sequences` : "";
    return { bases, note: [record.name, more].filter(Boolean).join(", ") };
  }

  function first(record) {
    const [head, ...lines] = record.split(/\r?\n/);
    return { name: head.trim().split(/\s+/)[0], body: lines.join("\n") };
  }

  /** What stands in the box, for the line below it. */
  function count(text) {
    try {
      const size = parsed(text).bases.length;
      return length === null ? `${size} bases` : `${size} of ${length} bases`;
    } catch (error) {
      return error.message;
    }
  }

  /** The model's input of a text. Throws Refusal. */
  function read(text) {
    const { bases, note } = parsed(text);
    if (!bases.length) throw new Refusal("There is no sequence: enter one first.");
    if (length !== null && bases.length !== length) {
      throw new Refusal(`The model reads ${length} bases, and this sequence has ${bases.length}: enter ${length}.`);
    }
    const size = bases.length;
    const data = new Float32Array(4 * size);
    for (let k = 0; k < size; k++) {
      const base = BASES.indexOf(bases[k]);
      if (base >= 0) data[positionsFirst ? 4 * k + base : base * size + k] = 1;
    }
    return { data, dims: shape.map((extent) => extent ?? size), bases, note };
  }

  /** Draw into `place`, which is empty or holds an older picture. */
  function draw(place, { bases, note }, contributions) {
    const size = bases.length;
    const values = Float64Array.from(bases, (_, k) => {
      let sum = 0;
      for (let c = 0; c < 4; c++) sum += contributions[positionsFirst ? 4 * k + c : c * size + k];
      return sum;
    });
    const zoom = place.querySelector("input")?.value;
    place.replaceChildren(copyOf("sequence-picture"));
    const slider = place.querySelector("input");
    slider.value = zoom ?? slider.value;
    logo(place, bases, values, note);
  }

  return { template: "sequence-input", read, count, draw };
}

/** The logo of `bases` with heights `values`: as wide as the slider says, scrolled by the browser, drawn where seen. */
function logo(place, bases, values, note) {
  const [view, canvas, spacer, text] = [".logo", "canvas", ".width", ".readout"].map((q) => place.querySelector(q));
  const slider = place.querySelector("input");
  const finite = values.filter(Number.isFinite);
  const high = finite.reduce((a, b) => Math.max(a, b), 0);
  const low = finite.reduce((a, b) => Math.min(a, b), 0);
  let cursor = null;

  const fit = () => view.clientWidth / bases.length;
  const letter = () => (fit() >= WIDEST ? WIDEST : fit() * (WIDEST / fit()) ** slider.value);

  function render() {
    const [width, ratio, step] = [view.clientWidth, devicePixelRatio, letter()];
    spacer.style.width = `${Math.max(step * bases.length, width)}px`;
    slider.closest("label").hidden = fit() >= ROOMY;
    [canvas.width, canvas.height] = [width * ratio, HEIGHT * ratio];
    [canvas.style.width, canvas.style.height] = [`${width}px`, `${HEIGHT}px`];
    const context = canvas.getContext("2d");
    context.scale(ratio, ratio);
    const style = getComputedStyle(document.documentElement);
    const colours = Object.fromEntries([...BASES].map((base) => [base, style.getPropertyValue(`--${base}`)]));
    const y = (value) => {
      const inside = HEIGHT - MARGIN.top - MARGIN.bottom;
      return MARGIN.top + (inside * (high - value)) / (high - low || 1);
    };
    const start = Math.floor(view.scrollLeft / step);
    const stop = Math.min(bases.length, Math.ceil((view.scrollLeft + width) / step));
    const x = (k) => k * step - view.scrollLeft;
    if (cursor !== null) {
      context.fillStyle = style.getPropertyValue("--hover");
      context.fillRect(x(cursor), 0, Math.max(step, 1), HEIGHT - MARGIN.bottom);
    }
    for (let k = start; k < stop; k++) {
      context.fillStyle = colours[bases[k]] ?? style.getPropertyValue("--faint");
      if (!Number.isFinite(values[k])) continue;
      const [top, bottom] = [y(Math.max(values[k], 0)), y(Math.min(values[k], 0))];
      if (step < LEGIBLE) context.fillRect(x(k), top, Math.max(step, 0.5), bottom - top);
      else glyph(context, bases[k], x(k) + 0.04 * step, step * 0.92, top, bottom, values[k] < 0);
    }
    axes(context, { style, width, start, stop, step, x, y });
  }

  /** The line at 0, the range at the left, and positions below. */
  function axes(context, { style, width, start, stop, step, x, y }) {
    context.fillStyle = style.getPropertyValue("--axis");
    context.fillRect(0, y(0) - 0.5, Math.min(width, x(bases.length)), 1);
    context.fillStyle = style.getPropertyValue("--faint");
    context.font = `12px ${style.getPropertyValue("--sans")}`;
    if (high > 0) context.fillText(signed(high), 0, MARGIN.top - 4);
    if (low < 0) context.fillText(signed(low), 0, HEIGHT - MARGIN.bottom + 2);
    const tick = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4].find((n) => n * step >= 56) ?? 1e5;
    context.textAlign = "center";
    for (let k = Math.ceil(Math.max(start, 1) / tick) * tick; k < stop; k += tick) {
      context.fillText(`${k}`, x(k) + step / 2, HEIGHT - 6);
    }
  }

  function point(k) {
    cursor = k;
    const base = bases[k];
    text.textContent = k === null ? rest : `Position ${k}, ${base}: ${signed(values[k])}`;
    render();
  }

  const rest = [note, `${bases.length} bases, counted from 0`].filter(Boolean).join("; ");
  const within = (k) => Math.max(0, Math.min(bases.length - 1, k));
  view.setAttribute("aria-label", "Contributions of the bases; arrow keys read them one by one");
  view.onscroll = render;
  view.onpointermove = (event) => {
    const left = event.clientX - view.getBoundingClientRect().left + view.scrollLeft;
    point(left < letter() * bases.length ? within(Math.floor(left / letter())) : null);
  };
  view.onpointerleave = view.onblur = () => point(null);
  view.onkeydown = (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const k = cursor === null ? Math.floor(view.scrollLeft / letter()) : within(cursor + step);
    const [left, right] = [k * letter(), (k + 1) * letter()];
    if (left < view.scrollLeft) view.scrollLeft = left;
    else if (right > view.scrollLeft + view.clientWidth) view.scrollLeft = right - view.clientWidth;
    point(k);
  };
  slider.oninput = () => {
    const before = letter();
    const middle = (view.scrollLeft + view.clientWidth / 2) / (spacer.clientWidth || 1);
    render();
    if (before) view.scrollLeft = middle * spacer.clientWidth - view.clientWidth / 2;
    render();
  };
  place.querySelector(".letters").replaceChildren(...[...BASES].map((base) => element("span", base, base)));
  scheme.onchange = render;
  new ResizeObserver(render).observe(view);
  point(null);
}

/** One letter, stretched into a box; upside down where it is negative. */
function glyph(context, base, left, width, top, bottom, flipped) {
  if (bottom - top < 0.2) return;
  context.save();
  context.font = "bold 100px Arial, Helvetica, sans-serif";
  const box = context.measureText(base);
  const across = box.actualBoundingBoxLeft + box.actualBoundingBoxRight;
  const up = box.actualBoundingBoxAscent + box.actualBoundingBoxDescent;
  context.translate(left, flipped ? top : bottom);
  context.scale(width / across, ((flipped ? -1 : 1) * (bottom - top)) / up);
  context.fillText(base, box.actualBoundingBoxLeft, -box.actualBoundingBoxDescent);
  context.restore();
}
