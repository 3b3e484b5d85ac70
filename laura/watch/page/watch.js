"use strict";
/* A study while it goes on. All that is shown comes from /state, which reads the study's own files,
   so a reload forgets nothing; every text is set as text. */
const $ = (id) => document.getElementById(id);
const shown = { picked: location.hash.slice(1), painted: new Map(), state: null, timer: 0 };
const minutes = (seconds) => seconds < 50 ? "under a minute" : seconds < 5400 ? `${Math.ceil(seconds / 60)} min`
  : `${Math.floor(seconds / 3600)} h ${String(Math.round(seconds % 3600 / 60)).padStart(2, "0")}`;
const spread = (low, high) => minutes(low) === minutes(high) ? minutes(low).replace(/^u/, "U")
  : `Between ${minutes(low)} and ${minutes(high)}`;
const clock = (seconds) => {
  const at = new Date(seconds * 1000), day = Math.abs(Date.now() - at) > 20 * 3600e3;
  return at.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", hour12: false, ...(day ? { day: "numeric", month: "short" } : {}) });
};
const keyOf = (run) => `${run.arm}@${run.rate}@${run.seed}`;
const nameOf = (run) => `${run.arm} ${rateText(run.rate)}, seed ${run.seed}`;
const plural = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;
const bold = (text, looks, arm) => node("b", { style: `color:${looks.get(arm)?.colour || "inherit"}` }, text);

function say(text) {
  $("toast").textContent = text;
  $("toast").hidden = false;
  clearTimeout(shown.toast);
  shown.toast = setTimeout(() => { $("toast").hidden = true; }, 5000);
}
// A part of the page is made anew only when what it shows has changed, and keeps the focus.
function paint(id, value, draw) {
  const now = JSON.stringify([value, innerWidth]);
  if (shown.painted.get(id) === now) return;
  shown.painted.set(id, now);
  const kept = document.activeElement?.dataset?.key;
  draw($(id), value);
  if (kept && document.activeElement?.dataset?.key !== kept) document.querySelector(`[data-key="${CSS.escape(kept)}"]`)?.focus({ preventScroll: true });
}
async function ask(what, value, words) {
  let told;
  try {
    const answer = await fetch(what, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(value) });
    told = answer.ok ? words : (await answer.json()).error;
  } catch {
    told = "Nobody answers: `laura watch` has ended. Start it again and open the address it tells.";
  }
  say(told);
  look();
}

// ----- what stands above -----
function total(host, s) {
  const looks = dress(s.arms), order = { done: 0, diverged: 0, pruned: 0, measuring: 1, running: 1, open: 2, line: 3, skipped: 4 };
  const runs = [...s.cells].sort((a, b) => order[a.state] - order[b.state] || (a.began || 0) - (b.began || 0));
  host.setAttribute("aria-label", `${counted(s).done} of ${s.cells.length} runs done`);
  host.replaceChildren(...runs.map((run) => node("span", { title: nameOf(run) },
    node("i", { style: `width:${run.state === "skipped" ? 0 : run.share * 100}%;background:${looks.get(run.arm).colour}` }))));
}
const counted = (s) => {
  const count = (...states) => s.cells.filter((run) => states.includes(run.state)).length;
  return { done: count("done", "diverged", "pruned"), live: count("running", "measuring"), skipped: count("skipped") };
};
function status(s) {
  const { done, live, skipped } = counted(s), left = s.left;
  $("status").textContent = s.finished ? "Finished" : s.stopping ? "Stopping" : !s.running ? "Stopped" : left ? `${minutes(left.seconds)} left`.replace(/^u/, "U") : "Running";
  const runs = `${done} of ${plural(s.cells.length, "run")} done${live ? `, ${live} running` : ""}${skipped ? `, ${skipped} skipped` : ""}`;
  const grows = s.growing.length && left ? ` A list whose best rate lies at its end grows: about ${minutes(s.run_seconds * s.lists[s.growing[0]].runs / left.workers)} more for each rate.` : "";
  const when = s.finished ? "" : s.stopping ? "Each run is being saved where it is; the same laura compare continues. " : !s.running ? "Nobody is at it: the same laura compare continues. "
    : left ? `${spread(left.low, left.high)}, done about ${clock(s.now + left.seconds)}. ` : "How long it takes is known once a run has begun. ";
  $("more").replaceChildren(node("span", {}, `${when}${runs}.`), node("span", { class: "soft" }, grows));
  $("about").textContent = `Study ${s.name}, base ${s.base}${s.began ? `, began ${clock(s.began)}` : ""}`;
  document.title = `${$("status").textContent} · ${s.name}`;
  $("controls").replaceChildren(...[
    s.running ? node("button", { "data-key": "stop", onclick: () => ask("stop", { wanted: !s.stopping }, s.stopping ? "It goes on where it has not ended yet." : "Stopping: each run is saved where it is, at most a step is lost. The same laura compare continues.") }, s.stopping ? "Do not stop" : "Stop") : null,
    s.report ? node("a", { href: "report", target: "_blank", rel: "noopener" }, "Open the report") : null].filter(Boolean));
}

// ----- the grid: arm, rate, seed -----
const heads = { line: "in line", open: "stopped", skipped: "skipped", measuring: "● tasks", diverged: "✗ diverged", pruned: "given up", failed: "✗ failed" };
function head(run) {
  const last = run.results.at(-1);
  if (run.state === "running") return `● ${Math.round(run.share * 100)} %`;
  if (run.state === "done" && last && last[1] !== null) return `✓ ${last[1] < 0 ? "" : "+"}${amount(last[1])}${last[2] === null ? "" : ` ${last[2] < 0 ? "+" : "−"}${amount(Math.abs(last[2]))}`}`;
  return run.state === "done" ? "✓" : heads[run.state];
}
function sparkline(run, colour, [low, high]) {
  const svg = node("s:svg", { viewBox: "0 0 100 34", preserveAspectRatio: "none", "aria-hidden": "true" }), end = shown.state.longest;
  if (run.curve.length > 1) svg.append(node("s:polyline", {
    points: run.curve.map(([x, y]) => `${(x / end * 100).toFixed(1)},${(2 + 30 * (high - Math.log(y)) / (high - low || 1)).toFixed(1)}`).join(" "),
    fill: "none", stroke: colour, "stroke-width": 1.5, "vector-effect": "non-scaling-stroke", opacity: run.state === "done" ? .55 : 1 }));
  return svg;
}
function labs(host, s) {
  const looks = dress(s.arms), losses = s.cells.flatMap((run) => run.curve.map((point) => Math.log(point[1])));
  const scale = losses.length ? [Math.min(...losses), Math.max(...losses)] : [0, 1];
  const by = new Map(s.cells.map((run) => [keyOf(run), run]));
  host.replaceChildren(...s.arms.flatMap((arm) => {
    const mine = s.cells.filter((run) => run.arm === arm.name), list = s.lists[arm.name], look = looks.get(arm.name);
    const rates = [...new Set(mine.map((run) => run.rate))].sort((a, b) => a - b), seeds = s.seeds.filter((seed) => mine.some((run) => run.seed === seed));
    const grid = node("div", { class: "lab", style: `grid-template-columns:4.4em repeat(${seeds.length},minmax(4.6em,1fr))` },
      node("span"), ...seeds.map((seed) => node("span", { class: "soft" }, `seed ${seed}${s.recipe_seeds.includes(seed) ? "" : ", fresh"}`)));
    for (const rate of rates) {
      grid.append(node("span", {}, rateText(rate)));
      for (const seed of seeds) {
        const run = by.get(`${arm.name}@${rate}@${seed}`);
        grid.append(run ? cell(run, look, scale) : node("span"));
      }
    }
    return [node("h3", { class: "arm", style: `color:${look.colour}` }, keyMark(look), arm.name), grid, adder(arm, list, rates, s)];
  }));
}
function cell(run, look, scale) {
  const live = ["running", "measuring"].includes(run.state), key = keyOf(run);
  return node("button", { class: `cell ${run.state}`, "data-key": key, "aria-pressed": String(shown.picked === key), "aria-label": `${nameOf(run)}: ${run.state === "measuring" ? "measuring" : head(run)}`,
    title: run.reason || null, onclick: () => { shown.picked = key; history.replaceState(null, "", `#${key}`); draw(shown.state); } },
    sparkline(run, look.colour, scale), node("span", { style: live ? "font-weight:650" : "" }, head(run)),
    live ? node("i", { style: `width:${run.share * 100}%;background:${look.colour}` }) : null);
}
const costOf = (count, seconds) => seconds ? `${plural(count, "run")}, about ${minutes(count * seconds / (shown.state.left?.workers || 1))} more` : plural(count, "run");
const onRecord = (s) => s.measured ? ` The record will say that it was added after ${plural(s.measured, "point")} had been measured.` : "";
function adder(arm, list, rates, s) {
  if (list.fixed) return null;
  const add = (rate) => {
    if (!(rate > 0 && rate <= 1)) return say("A rate must be above 0 and at most 1.");
    const cost = costOf(list.runs, s.run_seconds);
    if (confirm(`Add ${arm.name} at ${rateText(rate)}? ${cost}.${onRecord(s)}`)) ask("rate", { arm: arm.name, learning_rate: rate }, `Added ${arm.name} at ${rateText(rate)}: ${cost}${s.running ? "" : "; the next laura compare carries it out"}.`);
  };
  const other = node("input", { "aria-label": `Another rate of ${arm.name}`, placeholder: "another rate", inputmode: "decimal", "data-key": `other ${arm.name}` });
  return node("form", { class: "add", onsubmit: (event) => { event.preventDefault(); add(Number(other.value)); } },
    ...list.beyond.map((rate) => node("button", { type: "button", "data-key": `add ${arm.name} ${rate}`, onclick: () => add(rate) }, `+ rate ${rateText(rate)}`)), other, node("button", {}, "Add"));
}
function seedAdder(host, s) {
  const seed = s.next_seed, cost = costOf(s.seed_runs, s.run_seconds);
  host.replaceChildren(node("button", { "data-key": "seed", onclick: () => {
    if (confirm(`Run everything with seed ${seed} too? ${cost}.${onRecord(s)}`)) ask("seed", { seed }, `Added seed ${seed}: ${cost}${s.running ? "" : "; the next laura compare carries it out"}.`);
  } }, `+ seed ${seed}`));
}

// ----- the front -----
function sofar(host, s) {
  const looks = dress(s.arms), [x, y] = [s.x[0], s.y[0]];
  if (s.answer) return host.replaceChildren(s.answer);
  const known = x && y ? s.configs.filter((one) => one.values[x.key] && one.values[y.key]) : [];
  if (!known.length) return host.replaceChildren("Nothing is measured yet.");
  const most = Math.max(...known.map((one) => valueOf(one, x)));
  if (!(most > 0)) return host.replaceChildren("Nothing has learnt anything yet.");
  const least = known.filter((one) => valueOf(one, x) >= .8 * most).sort((a, b) => valueOf(a, y) - valueOf(b, y))[0];
  const words = valueOf(least, y) < 0 ? `, and forgot nothing: ${amount(-valueOf(least, y))} better` : ` forgot least: ${amount(valueOf(least, y))}`;
  host.replaceChildren("Of what learnt at least four fifths of the most, ", bold(`${least.arm} ${rateText(least.rate)}`, looks, least.arm), `${words}, for ${amount(valueOf(least, x))} learnt (${x.unit}). `,
    node("span", { class: "soft" }, `${least.seeds.length === 1 ? "One seed: nothing" : `${least.seeds.length} seeds: nothing`} is decided before the end.`));
}
function front(host, s) {
  const [x, y] = [s.x[0], s.y[0]];
  if (!x || !y || !s.configs.some((one) => one.values[x.key] && one.values[y.key])) { $("reading").textContent = ""; return host.replaceChildren(); }
  tradeoff(host, { configs: s.configs, arms: s.arms, x, y, budgetUnit: s.unit, small: true, read: (learnt, forgot) => {
    const told = Object.entries(forgot).filter(([, value]) => value !== null).map(([arm, value]) => `${arm} forgot ${amount(value)}`);
    $("reading").textContent = `${told.length > 1 ? `Where ${amount(learnt)} is learnt, ${told.join(", ")}. ` : ""}Thick lines: what nothing measured so far beats.`;
  } });
}

// ----- one run, and what happened -----
function runPanel(host, { run, s }) {
  if (!run) return host.replaceChildren();
  const looks = dress(s.arms), arm = s.arms.find((one) => one.name === run.arm), live = ["running", "measuring"].includes(run.state), last = run.results.at(-1);
  const result = last && last[1] !== null ? `: learnt ${amount(last[1])}${last[2] === null ? "" : `, forgot ${amount(last[2])}`} at ${budgetText(last[0], s.unit)}` : "";
  const left = run.left ? `; ${minutes(run.left)} left` : "", now = run.curve.at(-1);
  const words = { running: now ? `Training, loss ${Number(now[1].toPrecision(2))}${left}.` : "Beginning.", measuring: `Measuring${left}.`, line: `In line${run.left ? `, about ${minutes(run.left)} by itself` : ""}.`,
    open: "Stopped where it can go on.", skipped: `Skipped${result ? `; what it measured stays${result}` : ""}.`, done: `Done${result}.`, diverged: `Diverged. ${run.reason}`, pruned: `Given up. ${run.reason}`, failed: `Failed. ${run.reason}` }[run.state];
  const asked = { arm: run.arm, learning_rate: run.rate, seed: run.seed };
  const action = s.searched ? null : run.skipped ? node("button", { "data-key": "skip", onclick: () => ask("skip", { ...asked, wanted: false }, `${nameOf(run)} is taken back: ${run.left ? `about ${minutes(run.left)}` : "it goes on"}${s.running ? "" : ", with the next laura compare"}.`) }, "Take it back")
    : live || run.state === "line" || run.state === "open" ? node("button", { "data-key": "skip", onclick: () => ask("skip", { ...asked, wanted: true }, `Skipped ${nameOf(run)}${run.left ? `: ${minutes(run.left)} saved` : ""}. What it measured stays, and it can be taken back. Its seed has no best rate without it.`) }, "Skip this run") : null;
  const drawing = node("div");
  host.replaceChildren(node("div", { class: "bar happened" }, node("h3", { style: `color:${looks.get(run.arm).colour}` }, nameOf(run) + (run.chosen ? ", chosen rate" : "")), action), node("p", { class: "small soft" }, words), drawing);
  const others = s.cells.filter((one) => one.arm === run.arm && one.curve.length > 1 && keyOf(one) !== keyOf(run));
  const line = (one, thin) => ({ arm: run.arm, thin, points: one.curve.map(([tokens, loss]) => ({ x: tokens, y: loss })) });
  if (run.curve.length > 1) panel(drawing, { title: "Training loss", unit: "nats over tokens; pale: the arm's other runs", arms: [arm], lines: [...others.map((one) => line(one, true)), line(run, false)], logY: true, xText: countText, height: 200, marked: false });
  [...drawing.querySelectorAll("polyline")].slice(0, -1).forEach((other) => other.setAttribute("opacity", .25));
}
function log(host, s) {
  const looks = dress(s.arms), words = { began: () => "began", diverged: () => "diverged", pruned: () => "was given up", measured: (one) => `measured at ${budgetText(one.budget, s.unit)}${s.unit === "tokens" ? " tokens" : ""}` };
  host.replaceChildren(...s.events.map((one) => node("li", {}, node("span", { class: "soft" }, clock(one.at)), node("span", {}, bold(nameOf(one), looks, one.arm), ` ${(words[one.kind] || (() => one.kind))(one)}`))));
}

function draw(s) {
  shown.state = s;
  $("main").hidden = false;
  s.longest = Math.max(1, ...s.cells.flatMap((run) => run.curve.map((point) => point[0])));
  $("legend").textContent = `The line is a run's loss, on one logarithmic scale for all. +: ${s.x[0]?.title || "learnt"}; −: ${s.y[0]?.title || "forgotten"}.`;
  const live = s.cells.filter((run) => ["running", "measuring"].includes(run.state)), done = s.cells.filter((run) => run.began);
  const run = s.cells.find((one) => keyOf(one) === shown.picked) || live.at(-1) || done.at(-1) || s.cells[0];
  paint("status", [s.left, s.running, s.stopping, s.finished, s.cells.map((one) => one.state), Math.floor(s.now / 20)], () => status(s));
  paint("total", [s.cells.map((one) => [keyOf(one), one.state, one.share]), s.arms], (host) => total(host, s));
  paint("labs", [s.cells, s.arms, s.lists, shown.picked, s.running], (host) => labs(host, s));
  paint("seeds", [s.next_seed, s.seed_runs, s.run_seconds, s.running, s.measured], (host) => seedAdder(host, s));
  paint("sofar", [s.configs, s.answer, s.arms], (host) => sofar(host, s));
  paint("front", [s.configs, s.arms, s.x, s.y], (host) => front(host, s));
  paint("run", { run, s: { ...s, now: 0, left: s.left?.workers, again_seconds: 0, events: [] } }, (host) => runPanel(host, { run, s }));
  paint("log", [s.events, s.arms], (host) => log(host, s));
}
// What cannot be shown is told in the place of the time left; what was known before stays below.
function fault(title, text) {
  $("status").textContent = title;
  document.title = title;
  $("more").textContent = text;
  $("controls").replaceChildren();
  shown.painted.delete("status");
}
async function look() {
  clearTimeout(shown.timer);
  let again = 5;
  try {
    const answer = await fetch("state"), told = await answer.json();
    if (answer.ok) { draw(told); again = told.again_seconds; }
    else fault(answer.status === 410 ? "No study here" : "Cannot be read", told.error);
    if (answer.status === 410) $("main").hidden = true;
  } catch (error) {
    fault("Nobody answers", "laura watch has ended. Start it again and open the address it tells; the study itself goes on.");
    if (!(error instanceof TypeError)) throw error;
  }
  shown.timer = setTimeout(look, 1000 * again);
}
theme(() => { if (shown.state) draw(shown.state); });
look();
