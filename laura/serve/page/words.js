// Texts of models and names of adapters are others': what is shown of them goes through here.

// As laura/report/visible.py: what a reader's screen would obey is shown as its escape.
const OBEYED = new RegExp(
  "[\\u0000-\\u0008\\u000b-\\u001f\\u007f-\\u009f\\u00ad\\u061c\\u180e\\u200b\\u200e\\u200f"
  + "\\u2028-\\u202e\\u2060-\\u206f\\ud800-\\udfff\\ufeff\\ufff9-\\ufffb\\u{e0000}-\\u{e007f}]",
  "gu",
);

export function visible(text) {
  return String(text).replace(OBEYED, (sign) => {
    const code = sign.codePointAt(0);
    if (code === 13) return "\\r";
    const digits = code.toString(16);
    if (code < 256) return "\\x" + digits.padStart(2, "0");
    return code < 65536 ? "\\u" + digits.padStart(4, "0") : "\\U" + digits.padStart(8, "0");
  });
}

// A word with the white space before it; a sign, and a sign of a script without spaces, alone.
const WORD = /\s*(?:[\u3040-\u30ff\u3400-\u9fff]|[\p{L}\p{M}\p{N}_]+|\S)|\s+$/gu;
// Cells of the table of common words: above this, a middle counts as replaced.
const MOST_CELLS = 4_000_000;

export function words(text) {
  return text.match(WORD) ?? [];
}

/**
 * What turns one text into another, by words.
 *
 * Returns pieces {kind, text, words}, kind "same", "removed" or "added". Those that are the
 * same or added are `after`, character by character; white space alone is no difference.
 */
export function difference(before, after) {
  const old = words(before), fresh = words(after);
  const pieces = [];
  const put = (kind, word) => {
    const last = pieces.at(-1);
    if (last?.kind === kind) {
      last.text += word;
      last.words += 1;
    } else pieces.push({ kind, text: word, words: 1 });
  };
  const equal = (i, j) => old[i].trim() === fresh[j].trim();
  let start = 0;
  while (start < old.length && start < fresh.length && equal(start, start)) start += 1;
  let tail = 0;
  while (
    start + tail < old.length && start + tail < fresh.length
    && equal(old.length - 1 - tail, fresh.length - 1 - tail)
  ) tail += 1;
  for (const word of fresh.slice(0, start)) put("same", word);
  for (const [kind, word] of middle(old.slice(start, old.length - tail),
    fresh.slice(start, fresh.length - tail))) put(kind, word);
  for (const word of fresh.slice(fresh.length - tail)) put("same", word);
  return pieces;
}

// The longest common subsequence; what goes stands before what comes.
function* middle(old, fresh) {
  const height = old.length, width = fresh.length, row = width + 1;
  if ((height + 1) * row > MOST_CELLS) {
    for (const word of old) yield ["removed", word];
    for (const word of fresh) yield ["added", word];
    return;
  }
  const a = old.map((word) => word.trim()), b = fresh.map((word) => word.trim());
  const common = new Uint16Array((height + 1) * row);
  for (let i = height - 1; i >= 0; i -= 1) {
    for (let j = width - 1; j >= 0; j -= 1) {
      common[i * row + j] = a[i] === b[j]
        ? common[(i + 1) * row + j + 1] + 1
        : Math.max(common[(i + 1) * row + j], common[i * row + j + 1]);
    }
  }
  let i = 0, j = 0;
  while (i < height || j < width) {
    if (i < height && j < width && a[i] === b[j]) {
      yield ["same", fresh[j]];
      i += 1;
      j += 1;
    } else if (i < height && (j === width || common[(i + 1) * row + j] >= common[i * row + j + 1])) {
      yield ["removed", old[i]];
      i += 1;
    } else {
      yield ["added", fresh[j]];
      j += 1;
    }
  }
}
