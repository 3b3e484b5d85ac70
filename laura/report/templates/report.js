// The report: a trade-off to explore, the questions behind it, the rows of evidence, tables.
const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const press = (host, options, chosen, choose) => $(host).replaceChildren(...options.map(([value, text]) =>
  node("button", { type: "button", "aria-pressed": String(value === chosen), onclick: () => choose(value) }, text)));
const select = (label, options, chosen, choose) => node("label", {}, label, node("select", { onchange: (event) => choose(Number(event.target.value)) },
  options.map((text, place) => node("option", { value: place, selected: place === chosen ? "" : null }, text))));
const same = (one, other) => one && other && one.arm === other.arm && one.rate === other.rate && one.budget === other.budget;
const NINE = 9;
let D, looks, state;

function enter(place) {
  D = data.settings[place];
  looks = dress(D.arms);
  const beside = D.beside.map((one) => find(one)).filter(Boolean), modelled = D.configs.filter((one) => model(one) >= 0);
  const order = [...beside.filter((one) => one.tuned), ...beside, ...modelled].filter((one) => model(one) >= 0);
  const first = order[0], second = order.find((one) => first && one.arm !== first.arm) || order.find((one) => !same(one, first));
  state = { place, x: 0, y: 0, zoom: null, pair: [first, second].filter(Boolean), last: 0, task: null, way: "lost", who: "any", count: NINE };
  draw();
}
const find = (one) => D.configs.find((config) => same(config, one));
const model = (config) => (D.questions.models || []).findIndex((one) => same(one, config));
const called = (config) => `${shortened(config.arm)} ${rateText(config.rate)}${several() ? `, ${budgetText(config.budget, D.unit)}` : ""}`;
const several = () => new Set(D.configs.map((one) => one.budget)).size > 1;
const seedsText = (one) => `${one.seeds.length} seed${one.seeds.length > 1 ? "s" : ""}`;
const inked = (arm, ...text) => node("b", { style: `color:${looks.get(arm).colour}` }, ...text);

// ----- beside the answer -----
function beside() {
  const x = D.x[0], y = D.y[0], sides = [x, y];
  const rows = D.beside.map((one) => [find(one), one.word])
    .filter(([one]) => one && sides.every((measure) => measure && one.values[measure.key]));
  $("beside").replaceChildren();
  if (!rows.length || data.settings.length > 1) return;  // a series speaks of no single configuration
  const most = sides.map((measure) => measure.unit === "points" ? 100 : Math.max(...rows.map(([one]) => Math.abs(valueOf(one, measure)))));
  const cell = (one, measure, side) => {
    const share = Math.max(0, Math.min(100, 100 * valueOf(one, measure) / most[side]));
    const meter = node("span", { class: `meter ${side ? "lost" : "soft"}`, style: `width:${share}%` });
    return node("td", { class: "amount" }, amount(valueOf(one, measure)), meter);
  };
  const head = ([one, word]) => node("th", { scope: "row" }, inked(one.arm, `${shortened(one.arm)} ${rateText(one.rate)}`),
    node("span", { class: "soft" }, ` ${word}, ${seedsText(one)}`));
  $("beside").append(
    node("caption", {}, node("span", { class: "hidden" }, "What these configurations learnt and forgot")),
    node("thead", {}, node("tr", {}, ["", "learnt", "forgot"].map((text) => node("th", { scope: "col" }, text)))),
    node("tbody", {}, rows.map((row) => node("tr", {}, head(row), sides.map((measure, side) => cell(row[0], measure, side))))));
}

// ----- the trade-off -----
function hero() {
  const x = D.x[state.x], y = D.y[state.y], asked = Boolean(D.questions.models?.length);
  const redraw = () => { hero(); rates(); };
  const axis = (label, list, side) => select(label, list.map((one) => one.unit === "points" ? one.name : `${one.name}, ${one.unit}`), state[side],
    (place) => { state[side] = place; state.zoom = null; redraw(); });
  $("axes").replaceChildren(...[["Learnt", D.x, "x"], ["Forgotten", D.y, "y"]].filter(([, list]) => list.length > 1).map((one) => axis(...one)));
  if (!x || !y || !D.configs.length) {
    $("hero").replaceChildren(node("p", { class: "soft" }, "Nothing to draw: the study holds no measured run."));
    $("note").replaceChildren();
    return;
  }
  const box = decisive(D.configs.filter((one) => shownArms().has(one.arm)), x, y);
  const parts = box ? [[null, "Everything"], ["end", "Where it is decided"]] : [];
  press("zooms", parts, state.zoom, (zoom) => { state.zoom = zoom; hero(); });
  const reading = node("p", { class: "reading" });
  const read = (learnt, forgot) => reading.replaceChildren(node("b", {}, `At ${amount(learnt)} learnt`), ": ",
    ...Object.entries(forgot).flatMap(([arm, value], place) =>
      [place ? ", " : "", inked(arm, shortened(arm)), value === null ? " did not reach it" : ` forgot ${amount(value)}`]), ".");
  const key = (arm) => node("button", {
    type: "button", "aria-pressed": String(arm.shown), style: `color:${looks.get(arm.name).colour}`,
    onclick: () => { arm.shown = !arm.shown; redraw(); },
  }, keyMark(looks.get(arm.name)), arm.name);
  $("note").replaceChildren(
    node("p", { class: "key" }, D.arms.map(key)),
    node("p", { class: "soft" }, "Filled: three seeds or more, 95 % interval. Hollow: fewer. Larger: a larger budget."), reading,
    node("p", { class: "soft noprint" }, `Move across to compare at equal learning. Press a name to leave it out${asked ? ", a point for its questions" : ""}.`));
  tradeoff($("hero"), {
    configs: D.configs, arms: D.arms, x, y, budgetUnit: D.unit, zoom: state.zoom && box, chosen: state.pair,
    read, note: $("note"), pick: asked ? pick : null,
    tell: (one) => one.validation === null ? [] : [`validation ${one.validation} nats`],
  });
}
const shownArms = () => new Set(D.arms.filter((arm) => arm.shown).map((arm) => arm.name));
function pick(config) {
  if (model(config) < 0) { $("left").textContent = `The questions of ${called(config)} are not on this page.`; return; }
  // What was chosen last stays, unless both are of one arm.
  const alike = state.pair.flatMap((one, place) => one.arm === config.arm ? [place] : []);
  if (!state.pair.some((one) => same(one, config))) state.pair[alike.length === 1 ? alike[0] : state.last = 1 - state.last] = config;
  hero();
  look();
  $("lost").scrollIntoView();
  $("lost-title").focus({ preventScroll: true });
}

// ----- over the rate: what was learnt, what was forgotten, and the loss that chose -----
function rates() {
  const x = D.x[state.x], y = D.y[state.y], arms = shownArms(), last = Math.max(...D.configs.map((one) => one.budget));
  const known = D.configs.filter((one) => arms.has(one.arm) && one.budget === last);
  const found = [...new Set(known.map((one) => one.rate))].sort((a, b) => a - b);
  $("rates").replaceChildren();
  $("rates-told").textContent = "";
  if (found.length < 2 || !x || !y) return;
  const kinds = [
    ["Learnt", x.unit, (one) => one.values[x.key]],
    ["Forgot", y.unit, (one) => one.values[y.key]],
    ["Validation loss", "nats", (one) => one.validation === null ? undefined : [one.validation, null]],
  ];
  for (const [title, unit, value] of kinds) {
    const host = node("figure"), measured = known.filter(value).sort((a, b) => a.rate - b.rate), values = measured.map((one) => value(one)[0]);
    const wide = title === "Validation loss" && Math.max(...values) / Math.min(...values) > 8;
    const point = (one) => ({
      x: one.rate, y: value(one)[0], half: value(one)[2] === "seeds" ? value(one)[1] : null, filled: one.seeds.length >= 3, ringed: one.tuned,
    });
    $("rates").append(host);
    panel(host, {
      title, unit: wide ? `${unit}, log` : unit, arms: D.arms, logX: true, logY: wide, xText: rateText, xTicks: found,
      lines: [...arms].map((arm) => ({ arm, points: measured.filter((one) => one.arm === arm).map(point) })),
    });
  }
  $("rates-told").textContent = `By learning rate, at ${budgetText(last, D.unit)}${D.unit === "tokens" ? " tokens" : ""}. Rings: rates that validation loss chose; it cannot see what is forgotten.`;
}

// ----- what was lost: scores by task, then the very questions -----
const marks = (task, config) => task.tuned[model(config)];
const flip = (task, config, place) => Number(marks(task, config)[place]) - Number(task.base[place]);  // NaN where one was not measured
function counts(task, config) {
  const found = { lost: 0, won: 0 };
  for (let place = 0; place < task.n; place++) {
    const turned = flip(task, config, place);
    if (turned < 0) found.lost++;
    if (turned > 0) found.won++;
  }
  return found;
}
function below() {
  const tasks = [...D.questions.tasks || []].sort((one, other) => one.learnt - other.learnt), ready = tasks.length && state.pair.length;
  $("asked").hidden = !ready;
  if (!ready) {
    $("lost-told").textContent = "No questions of the base and of an arm lie in the folder; they are in the study’s own folder (runs/ID/evals).";
    return;
  }
  const kept = tasks.filter((task) => !task.learnt), total = kept.reduce((sum, task) => sum + task.n, 0);
  const lost = (one) => kept.reduce((sum, task) => sum + counts(task, one).lost, 0);
  const told = [`Of ${total.toLocaleString("en")} questions on what the base could do, `,
    ...state.pair.flatMap((one, place) => [place ? " and " : "", inked(one.arm, called(one)), ` turned ${lost(one)}`]), " from right to wrong. "];
  $("lost-told").replaceChildren(...(kept.length ? told : []), "Choose a task to see only its questions.");
  const options = D.configs.filter((one) => model(one) >= 0), names = options.map(called);
  $("pair").replaceChildren(...state.pair.map((one, side) => select(side ? "with" : "Compare", names, options.findIndex((other) => same(one, other)),
    (place) => { state.pair[side] = options[place]; hero(); look(); })));
  taskRows(tasks);
  itemRows(tasks);
}
// The questions anew, from the first.
function look(change = {}) {
  Object.assign(state, change, { count: NINE });
  below();
}
function taskRows(tasks) {
  const told = (task, one) => {
    const { lost, won } = counts(task, one);
    return node("div", {}, inked(one.arm, called(one)), task.learnt ? ` won ${won}, lost ${lost}` : ` lost ${lost}, won ${won}`);
  };
  const toggle = (task) => look(state.task === task.id ? { task: null } : { task: task.id, way: task.learnt ? "won" : "lost" });
  $("by-task").replaceChildren(...tasks.map((task) => node("button", { type: "button", "aria-pressed": String(state.task === task.id), onclick: () => toggle(task) },
    node("span", {}, node("b", {}, task.title), node("span", { class: "soft small", style: "display:block" }, `${task.n} questions${task.learnt ? ", the new skill" : ""}`)),
    node("span"), node("span", { class: "small counts" }, state.pair.map((one) => told(task, one))))));
  [...$("by-task").children].forEach((row, place) =>
    row.children[1].append(scoreAxis(tasks[place], Math.max(180, row.children[1].clientWidth), place === tasks.length - 1)));
}
function scoreAxis(task, width, named) {
  const height = named ? 54 : 44, foot = 40, X = (value) => 8 + value / 100 * (width - 16);
  const svg = node("s:svg", { viewBox: `0 0 ${width} ${height}`, width, height, "aria-hidden": "true" });
  const line = (x, x2, y, y2, more) => svg.append(node("s:line", { x1: x, x2, y1: y, y2, ...more }));
  line(X(0), X(100), foot, foot, { stroke: "var(--rule)" });
  for (const tick of [0, 50, 100]) {
    line(X(tick), X(tick), foot - 2, foot + 2, { stroke: "var(--soft)" });
    if (named) svg.append(node("s:text", { x: X(tick), y: height, "text-anchor": ["start", "middle", "end"][tick / 50], style: "font-size:10.5px" }, tick === 100 ? "100 % right" : tick));
  }
  if (task.chance !== null) {
    line(X(task.chance), X(task.chance), 2, foot, { stroke: "var(--soft)", "stroke-dasharray": "2 3" });
    svg.append(node("s:text", { x: X(task.chance) + (task.chance < 30 ? 4 : -4), y: 9, "text-anchor": task.chance < 30 ? "start" : "end", style: "font-size:10.5px" }, "guessing"));
  }
  const base = 100 * [...task.base].filter((mark) => mark === "1").length / Math.max(1, task.n);
  state.pair.forEach((one, place) => {
    const own = [...marks(task, one)], measured = own.filter((mark) => mark !== "-").length, y = 18 + 12 * place, score = 100 * own.filter((mark) => mark === "1").length / measured;
    if (!measured) return;
    line(X(base), X(score), y, y, { stroke: looks.get(one.arm).colour, "stroke-width": 3, opacity: .45 });
    svg.append(marker(looks.get(one.arm), X(score), y, 5, true));
  });
  line(X(base), X(base), 3, foot, { stroke: "var(--ink)", "stroke-width": 2.5 });
  return svg;
}
function itemRows(tasks) {
  const sign = state.way === "lost" ? -1 : 1, [a, b] = state.pair, found = [];
  const hits = (task, place) => {
    const [one, other] = state.pair.map((config) => flip(task, config, place) === sign);
    return { any: one || other, a: one && !other, b: other && !one, both: one && other }[b ? state.who : "any"];
  };
  let whole = 0;
  for (const task of tasks) {
    if (state.task ? task.id !== state.task : task.learnt && tasks.some((one) => !one.learnt)) continue;
    for (let place = 0; place < task.n; place++) whole += Boolean(hits(task, place));
    task.items.filter((item) => hits(task, item[0])).forEach((item, turn) => found.push([turn, task, item]));
  }
  found.sort((one, other) => one[0] - other[0]);  // every task has its turn
  press("ways", [["lost", "✗ Right, then wrong"], ["won", "✓ Wrong, then right"]], state.way, (way) => look({ way }));
  const whos = b ? [["any", "By either"], ["a", `Only ${called(a)}`], ["b", `Only ${called(b)}`], ["both", "By both"]] : [];
  press("whos", whos, state.who, (who) => look({ who }));
  const head = (one) => node("span", {}, inked(one.arm, `${called(one)}, seed ${D.questions.models[model(one)].seed}`));
  $("items").replaceChildren(
    node("div", { class: "item head" }, node("span", { role: "status" }, `${whole.toLocaleString("en")} question${whole === 1 ? "" : "s"}`), node("span", {}, "Base model"), ...state.pair.map(head)),
    ...found.slice(0, state.count).map(([, task, item]) => itemRow(task, item)), ...(whole ? [] : [node("p", { class: "soft" }, "None.")]));
  $("more").hidden = found.length <= state.count;
  $("more").textContent = `Show ${Math.min(NINE, found.length - state.count)} more of ${found.length}`;
  $("more").onclick = () => { state.count += NINE; itemRows(tasks); };
  $("left").textContent = found.length < whole ? `Texts of ${found.length} of these ${whole} are on this page; \`laura show STUDY --forgotten\` pages through all.` : "";
}
function itemRow(task, [place, question, choices, answers]) {
  const long = (text) => node("span", { class: /\n|^.{120}/.test(text) ? "long" : null }, text || "(no text was kept)");
  const ticked = (mark) => {
    const [kind, sign, word] = mark === "1" ? ["won", "✓ ", "right: "] : ["lost", "✗ ", "wrong: "];
    return node("i", { class: kind }, node("span", { "aria-hidden": "true" }, sign), node("span", { class: "hidden" }, word));
  };
  const answer = (who, colour, mark, text) => node("div", {}, node("span", { class: "who", style: colour && `color:${colour}` }, who),
    mark === "-" ? "not measured" : [ticked(mark), long(text)]);
  const pool = D.questions.pool, offered = choices.length ? `; choices: ${choices.join(" · ")}` : "";
  return node("div", { class: "item" },
    node("div", {}, node("span", { class: question.includes("\n") ? "long" : null }, question), node("small", {}, task.title + offered)),
    answer("Base", null, task.base[place], pool[answers[0]]),
    ...state.pair.map((one) => answer(called(one), looks.get(one.arm).colour, marks(task, one)[place], pool[answers[model(one) + 1]])));
}

// ----- how sure: every row of one unit on one axis -----
function evidence() {
  for (const host of document.querySelectorAll(".axis")) {
    const row = data.evidence[host.dataset.row], alike = data.evidence.filter((one) => one.unit === row.unit);
    const ends = alike.flatMap((one) => [one.low, one.high, 0, ...one.dots]), low = Math.min(...ends), high = Math.max(...ends), wide = high - low || 1;
    const width = Math.max(160, host.clientWidth), X = (value) => 8 + (value - low) / wide * (width - 16);
    const dots = row.dots.length ? `; ${row.of}: ${row.dots.map(amount).join(", ")}` : "";
    const svg = node("s:svg", { viewBox: `0 0 ${width} 46`, height: 46, role: "img", "aria-label": row.told + dots });
    for (const tick of ticks(low, high, Math.max(3, Math.floor(width / 70))))
      svg.append(
        node("s:line", { x1: X(tick), x2: X(tick), y1: 4, y2: 32, stroke: tick ? "var(--grid)" : "var(--ink)" }),
        node("s:text", { x: X(tick), y: 45, "text-anchor": "middle", style: "font-size:11px" }, plain(tick)));
    svg.append(
      node("s:line", { x1: X(row.low), x2: X(row.high), y1: 16, y2: 16, stroke: "var(--ink)", "stroke-width": 2.5 }),
      node("s:circle", { cx: X(row.value), cy: 16, r: 5, fill: "var(--ink)" }),
      ...row.dots.map((dot) => node("s:circle", { cx: X(dot), cy: 27, r: 2.5, fill: "var(--soft)" })));
    if (row.unit !== "points") svg.append(node("s:text", { x: width, y: 2, "text-anchor": "end", style: "font-size:10.5px" }, row.unit));
    host.replaceChildren(svg);
  }
}

function draw() {
  if (data.settings.length > 1) press("setting", data.settings.map((one, place) => [place, one.name]), state.place, enter);
  beside();
  hero();
  rates();
  below();
}
if (data.settings.length) {
  enter(0);
  const drawing = () => $("hero").querySelector("svg"), name = () => `tradeoff${data.settings.length > 1 ? `-${state.place + 1}` : ""}`;
  const ways = [
    ["SVG", () => drawing() && save(still(drawing()), "image/svg+xml", `${name()}.svg`)],
    ["PNG", () => drawing() && savePng(drawing(), `${name()}.png`)],
    ["CSV", () => save(csv(points()), "text/csv", `${name()}.csv`)],
    ["LaTeX", () => save(latex(points(), "Trade-off"), "text/x-tex", `${name()}.tex`)],
    ["Markdown", () => save(markdown(points()), "text/markdown", `${name()}.md`)],
  ];
  $("tradeoff-files").append(...ways.map(([text, go]) => node("button", { type: "button", class: "quiet", onclick: go }, text)));
}
// Every configuration with all that was measured, as rows of a table.
function points() {
  const sides = [...D.x.map((one) => [one, "learnt"]), ...D.y.map((one) => [one, "forgot"])];
  const head = sides.flatMap(([one, verb]) => [`${verb}: ${one.name} (${one.unit})`, "±"]);
  const row = (one) => [one.arm, rateText(one.rate), String(one.budget), String(one.seeds.length),
    ...sides.flatMap(([measure]) => (one.values[measure.key] || ["", ""]).slice(0, 2).map(String))];
  return [["arm", "rate", "budget", "seeds", ...head], ...D.configs.map(row)];
}
evidence();
theme(() => { if (data.settings.length) draw(); evidence(); });
if ($("copy")) $("copy").addEventListener("click", () => navigator.clipboard.writeText($("command").textContent).then(() => { $("copy").textContent = "Copied"; }));

// ----- tables as files -----
const csv = (rows) => rows.map((row) => row.map((text) => /[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text).join(",")).join("\n") + "\n";
function markdown(rows) {
  const safe = (text) => text.replace(/[\\|*_`<>[\]]/g, "\\$&").replaceAll("\n", " ");
  const lines = rows.map((row) => `| ${row.map(safe).join(" | ")} |`);
  return [lines[0], `| ${rows[0].map(() => "---").join(" | ")} |`, ...lines.slice(1), ""].join("\n");
}
const TEX = { "\\": "\\textbackslash{}", "±": "$\\pm$", "−": "$-$", "–": "--", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}" };
function latex(rows, caption) {
  const safe = (text) => text.replace(/[\\±−–~^&%$#_{}]/g, (one) => TEX[one] || `\\${one}`).replaceAll("\n", " ");
  const [head, ...body] = rows.map((row) => `${row.map(safe).join(" & ")} \\\\`);
  return ["\\begin{table}", "\\centering", `\\caption{${safe(caption)}}`, `\\begin{tabular}{${"l".repeat(rows[0].length)}}`,
    "\\hline", head, "\\hline", ...body, "\\hline", "\\end{tabular}", "\\end{table}", ""].join("\n");
}
function tableRows(table) {
  const text = (cell) => [...cell.childNodes].map((part) => part.nodeName === "SMALL" ? `(${part.textContent})` : part.nodeName === "BR" ? " " : part.textContent).join("").trim();
  return [...table.rows].filter((row) => !row.hidden).map((row) => [...row.cells].map(text));
}
for (const table of document.querySelectorAll(".scroll table")) {
  const caption = table.caption.textContent;
  const files = [["CSV", "csv", (rows) => csv(rows)], ["LaTeX", "tex", (rows) => latex(rows, caption)], ["Markdown", "md", (rows) => markdown(rows)]];
  table.closest(".scroll").after(node("div", { class: "group files noprint" }, files.map(([name, ending, write]) =>
    node("button", { type: "button", class: "quiet", "aria-label": `${name} of ${caption}`, onclick: () => save(write(tableRows(table)), "text/plain", `${table.id}.${ending}`) }, name))));
}

// ----- tables: sorted by a press on a heading, filtered by words and by the texts of some columns -----
function value(row, place) {
  const cell = row.cells[place];
  if (cell.dataset.order !== undefined) return Number(cell.dataset.order);
  const text = cell.textContent.trim();
  if (cell.querySelector("code")) return text;  // an ID such as 12e4 is no number
  return /^[+−-]?[\d.]+(e[+-]?\d+)?$/i.test(text) ? Number(text.replace("−", "-")) : text;
}
function compare(first, second) {
  if (typeof first === "number" && typeof second === "number") return first - second;
  if (typeof first !== typeof second) return typeof first === "number" ? -1 : 1;
  return first.localeCompare(second);
}
function sortable(table) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, place) => {
    const name = head.querySelector("span");
    const press = document.createElement("button");
    press.type = "button";
    press.textContent = name.textContent;
    name.replaceWith(press);
    press.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = [...table.tBodies[0].rows];
      rows.sort((a, b) => compare(value(a, place), value(b, place)) * (down ? -1 : 1));
      table.tBodies[0].append(...rows);
    });
  });
}
function labelled(text, control) {
  const label = document.createElement("label");
  label.append(text, control);
  return label;
}
function filtered(table) {
  const tools = document.createElement("div"), words = document.createElement("input");
  const told = document.createElement("output"), rows = [...table.tBodies[0].rows], wanted = [];
  tools.className = "tools";
  words.type = "search";
  tools.append(labelled("Search", words));
  [...table.tHead.rows[0].cells].forEach((head, place) => {
    if (head.dataset.filter === undefined) return;
    const select = document.createElement("select");
    select.add(new Option("all", ""));
    const texts = new Set(rows.map((row) => row.cells[place].textContent.trim()));
    for (const text of texts) if (text) select.add(new Option(text, text));
    wanted.push((row) => !select.value || row.cells[place].textContent.trim() === select.value);
    tools.append(labelled(head.firstElementChild.textContent, select));
  });
  const apply = () => {
    const parts = words.value.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !(parts.every((part) => text.includes(part)) && wanted.every((ok) => ok(row)));
      count += !row.hidden;
    }
    told.textContent = count + " of " + rows.length + " rows";
  };
  tools.append(told);
  tools.addEventListener("input", apply);
  table.closest(".scroll").before(tools);
  apply();
}
for (const table of document.querySelectorAll("table[data-interactive]")) {
  filtered(table);
  sortable(table);
}

// ----- a link opens what holds its place, and print opens all -----
function unfold() {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  for (let fold = target; fold; fold = fold.parentElement) if (fold.nodeName === "DETAILS") fold.open = true;
  if (target) target.scrollIntoView();
}
addEventListener("hashchange", unfold);
unfold();
addEventListener("beforeprint", () => { for (const fold of document.querySelectorAll("details")) fold.open = true; });
