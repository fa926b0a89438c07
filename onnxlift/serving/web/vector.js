// A row of numbers: from text to the model's input, and the largest contributions as bars.
import { Refusal } from "./engine.js";
import { bars, copyOf, largest, number, signed } from "./show.js";

const MOST_BARS = 20;

/** `shape`: of the input, a row of `length` numbers. */
export function vectorKind({ input: { shape, length } }) {
  const parsed = (text) => text.replace(/−/g, "-").split(/[\s,;]+/).filter(Boolean);

  const count = (text) => `${parsed(text).length} of ${length} numbers`;

  /** The model's input of a text. Throws Refusal. */
  function read(text) {
    const words = parsed(text);
    if (!words.length) throw new Refusal("There are no numbers: enter them first.");
    const strange = words.find((word) => !Number.isFinite(Math.fround(Number(word))));
    if (strange) throw new Refusal(`“${strange}” is not a number: separate numbers by commas, spaces or lines.`);
    if (words.length !== length) {
      throw new Refusal(`The model reads ${length} numbers, and these are ${words.length}: enter ${length}.`);
    }
    return { data: Float32Array.from(words, Number), dims: shape };
  }

  /** Draw into `place`. */
  function draw(place, { data }, contributions) {
    place.replaceChildren(copyOf("vector-picture"));
    const order = largest(contributions, MOST_BARS, Math.abs);
    const part = order.length < length ? `The ${order.length} largest of ${length} contributions` : "Contributions";
    place.querySelector("figcaption").textContent = `${part}: the number’s place, counted from 0, and its value`;
    bars(place.querySelector("ol"), order.map((k) => ({
      label: `[${k}] = ${number(data[k])}`,
      value: contributions[k],
      text: signed(contributions[k]),
    })));
  }

  return { template: "vector-input", read, count, draw };
}
