// What a model learned and forgot, as `short_record` (laura/serve/library.py) makes it of laura.json.
import { element, number, row } from "./draw.js";

const share = (unit) => unit === "share";
const signed = (text, value) => (value > 0 ? "+" : "") + text;
const minus = (text) => text.replace("-", "−");

function measured(value, error, unit, withSign = false) {
  const scale = share(unit) ? 100 : 1, digits = share(unit) ? 1 : 3;
  const text = (value * scale).toFixed(digits);
  return minus(withSign ? signed(text, value) : text) + " ± " + (error * scale).toFixed(digits);
}

function scoreText(score, unit, withSign) {
  return score ? measured(score.value, score.stderr, unit, withSign) : "–";
}

function estimate(title, found) {
  const scale = share(found.unit) ? 100 : 1, digits = share(found.unit) ? 1 : 3;
  const ends = found.interval.map((end) => minus((end * scale).toFixed(digits))).join(" to ");
  const unit = share(found.unit) ? "percentage points" : found.unit;
  const line = element("p");
  line.append(
    element("b", title + ": "),
    element("span", measured(found.value, found.stderr, found.unit, true), "figure"), " ",
    element("span", unit + " on " + found.tasks.join(", ") + ", "
      + (found.level * 100).toFixed(found.level > 0.99 ? 1 : 0) + " % interval " + ends + "; seeds: "
      + found.seeds, "soft"),
  );
  return line;
}

function scores(found) {
  const table = document.createElement("table");
  const head = document.createElement("tr");
  for (const title of ["Task", "Before", "After", "Change"]) {
    const cell = element("th", title, title === "Task" ? "" : "number");
    cell.scope = "col";
    head.append(cell);
  }
  table.append(element("caption", "Scores with standard errors; shares in %"),
    document.createElement("thead"), document.createElement("tbody"));
  table.tHead.append(head);
  for (const task of Object.values(found)) {
    const name = task.title + (share(task.unit) ? "" : ", " + task.unit)
      + (task.higher_is_better ? "" : " (lower is better)");
    table.tBodies[0].append(row([
      name, number(scoreText(task.base, task.unit)), number(scoreText(task.tuned, task.unit)),
      number(scoreText(task.change, task.unit, true)),
    ]));
  }
  const box = element("div", "", "scroll");
  box.tabIndex = 0;
  box.setAttribute("role", "region");
  box.setAttribute("aria-label", "Scores");
  box.append(table);
  return box;
}

function claims(found) {
  const box = document.createElement("details"), list = document.createElement("ul");
  const verdicts = Object.values(found);
  const told = [...new Set(verdicts)].map((verdict) =>
    verdicts.filter((one) => one === verdict).length + " " + verdict);
  box.append(element("summary", "Claims: " + told.join(", ")));
  for (const [name, verdict] of Object.entries(found)) {
    const item = document.createElement("li");
    item.append(element("b", name + ": "), element("span", verdict));
    list.append(item);
  }
  box.append(list);
  return box;
}

/** The card of one model: its name, and what is known of it. */
export function card(model, isBase) {
  const box = element("article", "", "card");
  const { record = null, warnings = [] } = model.laura ?? {};
  box.append(element("h4", model.id));
  if (isBase && !record) {
    box.append(element("p", "The base: the model before adaptation.", "soft"));
    return box;
  }
  if (isBase) box.append(element("p", "The base here: a model that a study has tuned.", "soft"));
  for (const warning of warnings) {
    const line = element("p", "", "notice warns");
    line.append(element("b", "Warning: "), element("span", warning));
    box.append(line);
  }
  if (!record) {
    box.append(element("p", "No laura.json: nobody recorded what it learned and forgot.", "soft"));
    return box;
  }
  const rate = Number(record.learning_rate).toExponential().replace("e-", "e−");
  box.append(
    estimate("Learned", record.learning),
    estimate("Forgot", record.forgetting),
    element("p", "On " + record.base.model + "; " + record.method + ", arm " + record.arm
      + ", learning rate " + rate, "soft"),
  );
  const more = document.createElement("details");
  more.append(element("summary", "Scores"), scores(record.scores));
  box.append(more);
  if (Object.keys(record.claims).length) box.append(claims(record.claims));
  return box;
}
