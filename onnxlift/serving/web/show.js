// How numbers, colours and bars are shown, and how an array is saved.

/** A number for people: 4 digits and a true minus. */
export function number(value) {
  if (!Number.isFinite(value)) return Number.isNaN(value) ? "not a number" : value > 0 ? "∞" : "−∞";
  const size = Math.abs(value);
  const text = size !== 0 && (size < 1e-4 || size >= 1e6) ? value.toExponential(2) : `${Number(value.toPrecision(4))}`;
  return text.replace(/-/g, "−").replace("e+", "e");
}

/** A number with its sign. */
export const signed = (value) => (value > 0 ? `+${number(value)}` : number(value));

/** A share of 1 in percent. */
export function percent(value) {
  if (value > 0 && value < 1e-4) return "< 0.01 %";
  if (value < 1 && value > 1 - 1e-4) return "> 99.99 %";
  return `${number(Math.round(value * 1e4) / 100)} %`;
}

/** A copy of a template's content. */
export const copyOf = (id) => document.getElementById(id).content.cloneNode(true);

/** An element with text. */
export function element(name, text = "", className = "") {
  const made = document.createElement(name);
  made.textContent = text;
  made.className = className;
  return made;
}

/** Fill a list with one bar for each of [{ label, value, text }], from a common zero. Returns the lines. */
export function bars(list, rows) {
  const low = Math.min(0, ...rows.map((row) => row.value).filter(Number.isFinite));
  const high = Math.max(0, ...rows.map((row) => row.value).filter(Number.isFinite));
  const place = (value) => `${(100 * (value - low)) / (high - low || 1)}%`;
  const lines = rows.map(({ label, value, text }) => {
    const line = element("li");
    const track = element("span", "", "track");
    const bar = element("span", "", value < 0 ? "bar below" : "bar above");
    const end = Number.isFinite(value) ? value : 0;
    bar.style.left = place(Math.min(0, end));
    bar.style.width = place(Math.abs(end) + low);
    track.append(bar);
    line.append(element("span", label, "label"), track, element("span", text, "value"));
    return line;
  });
  list.replaceChildren(...lines);
  return lines;
}

/** The indices of the largest of `values`, at most `count`, by `size`. */
export function largest(values, count, size = (value) => value) {
  const order = Array.from(values.keys());
  const key = (k) => (Number.isNaN(values[k]) ? -Infinity : size(values[k]));
  return order.sort((a, b) => key(b) - key(a) || a - b).slice(0, count);
}

/** The size at which a scale ends: a high percentile of the sizes that are not 0, rounded up to two digits. */
export function limitOf(values) {
  const sizes = Float64Array.from(values, Math.abs).filter((size) => size > 1e-100 && size < Infinity).sort();
  if (!sizes.length) return 1;
  const place = 0.995 * (sizes.length - 1);
  const [low, high] = [sizes[Math.floor(place)], sizes[Math.ceil(place)]];
  const limit = low + (high - low) * (place % 1);
  const unit = 10 ** (Math.floor(Math.log10(limit)) - 1);
  return Math.ceil(limit / unit) * unit;
}

// ColorBrewer's RdBu from blue to red, as matplotlib's RdBu_r.
const RAMP = "053061 2166ac 4393c3 92c5de d1e5f0 f7f7f7 fddbc7 f4a582 d6604d b2182b 67001f"
  .split(" ")
  .map((code) => [0, 2, 4].map((k) => parseInt(code.slice(k, k + 2), 16)));
const MISSING = [240, 192, 0];

/** The RGB of a value on the scale that ends at ± limit; white is 0. */
export function colour(value, limit) {
  if (Number.isNaN(value)) return MISSING;
  const place = ((Math.max(-1, Math.min(1, value / limit)) + 1) / 2) * (RAMP.length - 1);
  const k = Math.min(Math.floor(place), RAMP.length - 2);
  return RAMP[k].map((from, c) => from + (RAMP[k + 1][c] - from) * (place - k));
}

/** A float32 array as a .npy file. */
export function npy(data, dims) {
  const shape = dims.length === 1 ? `(${dims[0]},)` : `(${dims.join(", ")})`;
  const text = `{'descr': '<f4', 'fortran_order': False, 'shape': ${shape}, }`;
  const header = text.padEnd(Math.ceil((text.length + 11) / 64) * 64 - 11) + "\n";
  const start = new Uint8Array(10 + header.length);
  start.set([0x93, ...new TextEncoder().encode("NUMPY"), 1, 0, header.length & 255, header.length >> 8]);
  start.set(new TextEncoder().encode(header), 10);
  return new Blob([start, data], { type: "application/octet-stream" });
}
