// Images: from a file to the model's input, and contributions over the picture.
import { Refusal } from "./engine.js";
import { colour, copyOf, limitOf, number, signed } from "./show.js";

const MOST_PIXELS = 1 << 24; // what a canvas can hold everywhere
const UNIT = 1 << 22; // of Pillow's whole-number weights
const SMALL = 128; // pixels of a side up to which the pixels are shown as squares

/** `shape`: of the explainer's input, with channels first or last or without an axis of their own. */
export function imageKind({ input: { shape, channels, height, width, channelsLast }, preprocessing }) {
  // What the levels of a channel become.
  const { scale, mean, std } = preprocessing;
  const levels = Array.from({ length: channels }, (_, c) =>
    Float32Array.from({ length: 256 }, (_, level) => (level / scale - mean[c]) / std[c]),
  );

  /** The model's input of a file or Blob. */
  async function read(file) {
    const { pixels, note } = fitted(await decoded(file));
    const data = new Float32Array(pixels.length);
    pixels.forEach((value, k) => {
      const c = k % channels;
      data[channelsLast ? k : c * height * width + (k - c) / channels] = levels[c][value];
    });
    return { data, dims: shape, pixels, note };
  }

  /** Pixels and size of a file, turned upright: { values, width, height }, `channels` bytes for each pixel. */
  async function decoded(file) {
    const options = { imageOrientation: "from-image", colorSpaceConversion: "none", premultiplyAlpha: "none" };
    let bitmap = await createImageBitmap(file, options).catch(() => {
      throw new Refusal("This is not an image that the browser can read: choose a PNG or JPEG file.");
    });
    const shrink = Math.sqrt(MOST_PIXELS / (bitmap.width * bitmap.height));
    if (shrink < 1) {
      const [resizeWidth, resizeHeight] = [bitmap.width, bitmap.height].map((side) => Math.floor(side * shrink) || 1);
      bitmap = await createImageBitmap(bitmap, { resizeWidth, resizeHeight, resizeQuality: "high" });
    }
    const { width: w, height: h } = bitmap;
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [w, h];
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(bitmap, 0, 0);
    const rgba = context.getImageData(0, 0, w, h).data;
    const values = new Uint8ClampedArray(w * h * channels);
    for (let k = 0, from = 0; k < values.length; from += 4) {
      if (channels === 3) for (let c = 0; c < 3; c++) values[k++] = rgba[from + c];
      // As Pillow does, in whole numbers.
      else values[k++] = (19595 * rgba[from] + 38470 * rgba[from + 1] + 7471 * rgba[from + 2] + 0x8000) >> 16;
    }
    return { values, width: w, height: h };
  }

  /**
   * The picture at the model's size: resized to cover it, the centre cut out. To the bit as Pillow does it, but for
   * pictures over twice as tall as wide, of which Pillow 13 resizes the height first: these differ by a level of 256.
   */
  function fitted(picture) {
    const from = `${picture.width} × ${picture.height}`;
    if (picture.width === width && picture.height === height) return { pixels: picture.values, note: from };
    const wide = picture.width * height > picture.height * width;
    const w = wide ? Math.floor((picture.width * height) / picture.height) : width;
    const h = wide ? height : Math.floor((picture.height * width) / picture.width);
    const resized = transposed(resampled(transposed(resampled(picture, w)), h));
    const half = (size) => (size % 2 ? 2 * Math.round(size / 4) : size / 2); // to even, as Python rounds
    const [left, top] = [half(w - width), half(h - height)];
    const pixels = new Uint8ClampedArray(height * width * channels);
    for (let y = 0; y < height; y++) {
      const start = ((y + top) * w + left) * channels;
      pixels.set(resized.values.subarray(start, start + width * channels), y * width * channels);
    }
    return { pixels, note: `${from}, fitted to ${width} × ${height} around its centre` };
  }

  /** Resized to a width: bilinear with antialiasing. */
  function resampled({ values, width: w, height: h }, wanted) {
    const step = w / wanted;
    const reach = Math.max(step, 1);
    const result = new Uint8ClampedArray(wanted * h * channels);
    for (let x = 0; x < wanted; x++) {
      const centre = (x + 0.5) * step;
      const first = Math.max(0, Math.trunc(centre - reach + 0.5));
      const last = Math.min(w, Math.trunc(centre + reach + 0.5));
      const weights = Array.from({ length: last - first }, (_, k) =>
        Math.max(0, 1 - Math.abs((first + k + 0.5 - centre) / reach)),
      );
      const total = weights.reduce((sum, weight) => sum + weight, 0);
      const whole = weights.map((weight) => Math.floor(0.5 + (weight / total) * UNIT));
      for (let y = 0; y < h; y++) {
        for (let c = 0; c < channels; c++) {
          let sum = UNIT / 2;
          for (let k = 0; k < whole.length; k++) sum += whole[k] * values[(y * w + first + k) * channels + c];
          result[(y * wanted + x) * channels + c] = Math.floor(sum / UNIT);
        }
      }
    }
    return { values: result, width: wanted, height: h };
  }

  function transposed({ values, width: w, height: h }) {
    const result = new Uint8ClampedArray(values.length);
    for (let y = 0; y < h; y++) {
      for (let x = 0; x < w; x++) {
        for (let c = 0; c < channels; c++) result[(x * h + y) * channels + c] = values[(y * w + x) * channels + c];
      }
    }
    return { values: result, width: h, height: w };
  }

  /** The contributions of a pixel, its channels together. */
  function perPixel(contributions) {
    const size = height * width;
    return Float64Array.from({ length: size }, (_, k) => {
      let sum = 0;
      for (let c = 0; c < channels; c++) sum += contributions[channelsLast ? k * channels + c : c * size + k];
      return sum;
    });
  }

  /** Draw into `place`, which is empty or holds an older picture whose opacity is kept. */
  function draw(place, { pixels, note }, contributions) {
    const values = perPixel(contributions);
    const limit = limitOf(values);
    const opacity = place.querySelector("input")?.value;
    place.replaceChildren(copyOf("image-picture"));
    const [photo, map] = place.querySelectorAll("canvas");
    const [least, , most] = place.querySelectorAll(".scale span");
    const slider = place.querySelector("input");
    paint(photo, (k) => [0, 1, 2].map((c) => pixels[k * channels + Math.min(c, channels - 1)]));
    paint(map, (k) => colour(values[k], limit));
    [least.textContent, most.textContent] = [number(-limit), signed(limit)];
    slider.value = opacity ?? slider.value;
    slider.oninput = () => (map.style.opacity = slider.value);
    slider.oninput();
    readout(place, values, note);
  }

  function paint(canvas, rgb) {
    [canvas.width, canvas.height] = [width, height];
    canvas.classList.toggle("pixels", Math.max(width, height) <= SMALL);
    const context = canvas.getContext("2d");
    const image = context.createImageData(width, height);
    for (let k = 0; k < width * height; k++) image.data.set([...rgb(k), 255], 4 * k);
    context.putImageData(image, 0, 0);
  }

  /** Say what the pixel below the pointer contributes, or the one that the arrow keys lead to. */
  function readout(place, values, note) {
    const [stage, text, cursor] = [".stage", ".readout", ".cursor"].map((name) => place.querySelector(name));
    const strongest = values.reduce((best, value, k) => (Math.abs(value) > Math.abs(values[best]) ? k : best), 0);
    let [row, column] = [Math.floor(strongest / width), strongest % width];
    const rest = () => {
      text.textContent = `Image: ${note}`;
      cursor.hidden = true;
    };
    const show = () => {
      text.textContent = `Row ${row}, column ${column}: ${signed(values[row * width + column])}`;
      cursor.hidden = false;
      cursor.style.left = `${(100 * column) / width}%`;
      cursor.style.top = `${(100 * row) / height}%`;
      cursor.style.width = `${100 / width}%`;
      cursor.style.height = `${100 / height}%`;
    };
    const within = (value, end) => Math.max(0, Math.min(end - 1, value));
    stage.setAttribute("aria-label", "Contributions of the pixels; arrow keys read them one by one");
    stage.onpointermove = (event) => {
      const box = stage.getBoundingClientRect();
      row = within(Math.floor(((event.clientY - box.top) / box.height) * height), height);
      column = within(Math.floor(((event.clientX - box.left) / box.width) * width), width);
      show();
    };
    stage.onpointerleave = stage.onblur = rest;
    stage.onkeydown = (event) => {
      const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
      if (!step) return;
      event.preventDefault();
      [row, column] = [within(row + step[0], height), within(column + step[1], width)];
      show();
    };
    rest();
  }

  return { template: "image-input", read, draw };
}
