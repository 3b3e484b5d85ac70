// Chat: one question to the base and up to three adapters, their answers side by side.
import { element, one } from "./draw.js";
import { card } from "./record.js";
import { answer, keys, models, ServerError, USER } from "./server.js";
import { difference, visible } from "./words.js";

const MOST_ADAPTERS = 3;
// Lines that begin with white space, as code's do, need letters of one width.
const INDENTED = /^(?: {2,}|\t)\S/m;
// Every turn: {question, answers: Map of a model's name to its answer}.
const turns = [];
let known = [], base = null, running = null;

/** The models that are asked, the base first. */
function asked() {
  const chosen = [...document.querySelectorAll("#choices select")].map((list) => list.value);
  const names = [...(base ? [base.id] : []), ...chosen.filter(Boolean)];
  return [...new Set(names)].map((name) => known.find((model) => model.id === name));
}

function drawChoices() {
  const adapters = known.filter((model) => model !== base);
  const lists = [];
  for (let place = 0; place < Math.min(MOST_ADAPTERS, adapters.length); place += 1) {
    const field = element("div", "", "field"), label = element("label", "Adapter " + (place + 1));
    const list = document.createElement("select");
    list.id = label.htmlFor = "adapter-" + (place + 1);
    list.append(new Option("none", ""));
    for (const model of adapters) list.append(new Option(visible(model.id), model.id));
    list.value = place ? "" : adapters[0].id;
    list.addEventListener("change", drawRecords);
    field.append(label, list);
    lists.push(field);
  }
  one("choices").replaceChildren(...lists);
  if (!lists.length) one("choices").append(element("p", "This server offers no adapter.", "soft"));
  drawRecords();
}

function drawRecords() {
  one("records").replaceChildren(...asked().map((model) => card(model, model === base)));
}

async function load() {
  tell("");
  try {
    known = await models();
  } catch (error) {
    fail(error);
    return;
  }
  // An adapter's parent is its base, which a tenant may not be allowed to ask.
  base = known.find((model) => !model.parent) ?? null;
  one("key-form").hidden = true;
  drawChoices();
}

function tell(text) {
  one("trouble").textContent = visible(text);
  one("trouble").hidden = !text;
}

function fail(error) {
  if (error.status === 401) {
    const note = keys.read(USER) ? error.message : "Kept in this tab only, until it is closed.";
    one("key-note").textContent = visible(note);
    one("key-form").hidden = false;
    one("key").focus();
  } else tell(error.message);
}

/** What a model has been asked and has answered, and the new question. */
function conversation(name, question) {
  const messages = [];
  for (const turn of turns) {
    const found = turn.answers.get(name);
    if (!found?.text || found.trouble) continue;  // what was stopped stands as it is
    messages.push({ role: "user", content: turn.question });
    messages.push({ role: "assistant", content: found.text });
  }
  return [...messages, { role: "user", content: question }];
}

function settings() {
  return {
    temperature: one("temperature").valueAsNumber,
    max_tokens: one("max-tokens").valueAsNumber,
    seed: one("seed").valueAsNumber,
  };
}

async function ask() {
  const chosen = asked();
  if (!one("settings-form").checkValidity()) one("settings").open = true;
  if (running || !one("settings-form").reportValidity() || !one("composer").reportValidity()) return;
  if (!chosen.length) {
    fail(new ServerError("Choose a model first."));
    return;
  }
  const turn = { question: one("question").value.trim(), answers: new Map() };
  const messages = chosen.map((model) => conversation(model.id, turn.question));
  draw(turn, chosen);
  turns.push(turn);
  one("question").value = "";
  busy(new AbortController());
  one("status").textContent = "Answers are being written.";
  const stop = running.signal;
  await Promise.all(chosen.map((model, place) => write(turn, model.id, messages[place], stop)));
  busy(null);
  const troubled = [...turn.answers.values()].filter((found) => found.trouble).length;
  if (stop.aborted) one("status").textContent = "Stopped.";
  else if (troubled) one("status").textContent = troubled + " of " + chosen.length + " failed.";
  else one("status").textContent = "The answers are complete.";
}

function busy(work) {
  running = work;
  one("ask").disabled = Boolean(work);
  one("stop").disabled = !work;
}

/** Room for a turn: its question, and a column for each model. */
function draw(turn, chosen) {
  const box = element("section", "", "turn"), columns = element("div", "", "columns");
  const title = element("h4", "Question " + (turns.length + 1));
  title.id = "turn-" + (turns.length + 1);
  box.setAttribute("aria-labelledby", title.id);
  for (const model of chosen) {
    const column = element("article", "", model === base ? "answer" : "answer tuned");
    const text = element("div", "", "text"), state = element("p", "waiting", "soft state");
    text.dir = "auto";
    column.append(element("h5", model.id), text, state);
    columns.append(column);
    turn.answers.set(model.id, { text: "", trouble: "", whole: false, place: text, state });
  }
  const asked = element("p", turn.question, "question");
  asked.classList.toggle("indented", INDENTED.test(turn.question));
  box.append(title, asked, columns);
  one("turns").append(box);
  one("empty").hidden = true;
  box.scrollIntoView({ block: "start" });
}

/** One answer, as it comes. */
async function write(turn, name, messages, signal) {
  const found = turn.answers.get(name);
  const began = performance.now();
  const shown = document.createTextNode("");
  found.place.append(shown);
  let tokens = null, finish = "";
  try {
    for await (const piece of answer(name, messages, settings(), signal)) {
      if (piece.text) {
        found.text += piece.text;
        shown.appendData(visible(piece.text));
        found.place.classList.toggle("indented", INDENTED.test(found.text));
        found.state.textContent = "writing";
      }
      tokens = piece.tokens ?? tokens;
      finish = piece.finish ?? finish;
    }
  } catch (error) {
    if (error.name === "AbortError") finish = "stopped";
    else {
      found.trouble = error.message;
      if (error.status === 401) fail(error);
    }
  }
  found.whole = finish !== "stopped" && !found.trouble;
  const told = [((performance.now() - began) / 1000).toFixed(1) + " s"];
  if (tokens !== null) told.unshift(tokens + (tokens === 1 ? " token" : " tokens"));
  if (finish === "stopped") told.unshift("stopped");
  if (finish === "length") told.unshift("cut at the limit of tokens");
  found.state.textContent = told.join(", ");
  if (found.trouble) {
    found.state.textContent = visible(found.trouble);
    found.state.className = "bad state";
  }
  markTurn(turn);
}

/** Show every whole answer of a turn, with what differs from the base's or without. */
function markTurn(turn) {
  const own = base && turn.answers.get(base.id);
  for (const [name, found] of turn.answers) {
    if (!found.whole || name === base?.id) continue;
    found.summary?.remove();
    if (!own?.whole || !one("mark").checked) {
      found.place.textContent = visible(found.text);
      continue;
    }
    const pieces = difference(own.text, found.text);
    // Where nothing is the same, marks would strike out and underline everything.
    if (pieces.some((piece) => piece.kind === "same")) {
      found.place.replaceChildren(...pieces.flatMap(marked));
    } else found.place.textContent = visible(found.text);
    found.summary = element("p", summary(pieces), "soft");
    found.state.after(found.summary);
  }
}

/** A piece as nodes; the line under or through it does not reach over the space around it. */
function marked(piece) {
  if (piece.kind === "same") return [visible(piece.text)];
  const [, before, words, after] = /^(\s*)(.*?)(\s*)$/s.exec(piece.text);
  return [before, element(piece.kind === "added" ? "ins" : "del", words), after];
}

function summary(pieces) {
  const count = (kind) => pieces.reduce((sum, one) => sum + (one.kind === kind) * one.words, 0);
  const removed = count("removed"), added = count("added");
  if (!removed && !added) return "The same words as the base.";
  if (!count("same")) return "No word in common with the base's answer.";
  return "Against the base: " + removed + " words removed, " + added + " added, "
    + count("same") + " the same.";
}

function clear() {
  running?.abort();
  turns.length = 0;
  one("turns").replaceChildren();
  one("empty").hidden = false;
  one("status").textContent = "The conversation is cleared.";
  one("question").focus();
}

export function startChat() {
  one("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    ask();
  });
  one("settings-form").addEventListener("submit", (event) => event.preventDefault());
  one("question").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    ask();
  });
  addEventListener("keydown", (event) => {
    if (event.key === "Escape") running?.abort();
  });
  one("stop").addEventListener("click", () => {
    running?.abort();
    one("question").focus();
  });
  one("clear").addEventListener("click", clear);
  one("mark").addEventListener("change", () => turns.forEach(markTurn));
  one("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    keys.keep(USER, one("key").value.trim());
    one("key").value = "";
    load();
  });
  load();
}
