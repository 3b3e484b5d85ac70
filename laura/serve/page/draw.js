// Elements with texts. Nothing here or elsewhere on the page reads HTML out of a text.
import { visible } from "./words.js";

export const one = (id) => document.getElementById(id);

export function element(tag, text = "", className = "") {
  const made = document.createElement(tag);
  if (text !== "") made.textContent = visible(text);
  if (className) made.className = className;
  return made;
}

/** A row of a table; the first cell is its heading, numbers stand to the right. */
export function row(cells) {
  const made = document.createElement("tr");
  cells.forEach((cell, place) => {
    const box = element(place ? "td" : "th", cell.text ?? cell, cell.number ? "number" : "");
    if (!place) box.scope = "row";
    made.append(box);
  });
  return made;
}

export const number = (text) => ({ text, number: true });

export function bytes(count) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let place = 0;
  while (count >= 1024 && place < units.length - 1) {
    count /= 1024;
    place += 1;
  }
  return count.toFixed(place && count < 100 ? 1 : 0) + " " + units[place];
}
