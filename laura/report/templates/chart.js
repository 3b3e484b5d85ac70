"use strict";
/* The drawing that the report and the live page share, without a library. It needs chart.css.

   Arm       {name, method: "full" or another}
   Config    {arm, rate, budget, seeds: [numbers], tuned: whether its rate was chosen,
              values: {KEY: [value, half, "seeds" or "items"]}}: an arm at a rate and a budget; half is
              that of a 95 % interval, null where none is known. Learnt and forgot are both above zero.
   Measure   {key, title, unit, floor}: what an axis shows; floor is the most that can be forgotten,
              null where that is not known.

   dress(arms)                        Map of name to {colour, shape}; gives every arm its looks
   tradeoff(host, options)            the trade-off; returns its fronts: {arm: [configs]}
   panel(host, options)               lines of arms over one number, on axes of their own
   node(tag, attributes, ...children) an element; "s:" before a tag makes it SVG's
   still(svg), save(...), savePng(...)  a figure as a file of its own

   Every text is set as text, never as HTML. */
const NS = "http://www.w3.org/2000/svg";
function node(tag, attributes = {}, ...children) {
  const made = tag.startsWith("s:") ? document.createElementNS(NS, tag.slice(2)) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) made.setAttribute(name, value);
  }
  made.append(...children.flat(9).filter((child) => child !== null && child !== undefined));
  return made;
}

// ----- numbers in words -----
const rateText = (rate) => Number(rate.toPrecision(3)).toExponential().replace("e+0", "").replace("e-0", "e-");
function amount(value) {
  const size = Math.abs(value);
  const digits = size === 0 || size >= 9.95 ? 0 : size >= 0.95 ? 1 : Math.min(4, 1 - Math.floor(Math.log10(size)));
  return value.toFixed(digits).replace(/^-(?=[0.]*$)/, "").replace("-", "−");
}
function countText(count) {
  for (const [size, letter] of [[1e9, "G"], [1e6, "M"], [1e3, "k"]])
    if (count >= 0.9995 * size) return Number((count / size).toPrecision(3)) + letter;
  return String(Number(count.toPrecision(3)));
}
const budgetText = (budget, unit) => unit === "epochs" ? `${Number(budget.toPrecision(4))} epoch${budget === 1 ? "" : "s"}` : countText(budget);
const shortened = (name, most = 22) => name.length > most ? name.slice(0, most - 1) + "…" : name;

// ----- looks: a method has one hue, its arms differ in shade and shape -----
const SHAPES = {
  full: ["M-1,-1H1V1H-1Z", "M0,-1.4L1.4,0L0,1.4L-1.4,0Z", "M0,-1.3L1.3,1H-1.3Z", "M0,1.3L1.3,-1H-1.3Z"],
  lora: ["M-1.1,0a1.1,1.1 0 1 0 2.2,0a1.1,1.1 0 1 0 -2.2,0Z", "M-.45,-1.25h.9v.8h.8v.9h-.8v.8h-.9v-.8h-.8v-.9h.8Z",
    "M-.7,-1.2h1.4l.7,1.2l-.7,1.2h-1.4l-.7,-1.2Z", "M-.75,-1.3h1.5v2.6h-1.5Z"],
};
function dress(arms) {
  const places = { full: 0, lora: 0 };
  return new Map(arms.map((arm) => {
    const hue = arm.method === "full" ? "full" : "lora", place = places[hue]++;
    return [arm.name, { colour: `var(--${hue}-${place % 4})`, shape: SHAPES[hue][(place + Math.floor(place / 4)) % 4] }];
  }));
}
// Filled: three seeds or more.
const marker = (look, x, y, size, filled) => node("s:path", {
  d: look.shape, transform: `translate(${x.toFixed(1)} ${y.toFixed(1)}) scale(${size})`, stroke: look.colour,
  fill: filled ? look.colour : "var(--paper)", "stroke-width": 2, "vector-effect": "non-scaling-stroke",
});
const keyMark = (look) => node("s:svg", { width: 16, height: 14, viewBox: "0 0 16 14", "aria-hidden": "true" }, marker(look, 7, 7, 5, true));

// ----- axes -----
function ticks(low, high, most) {
  const rough = (high - low) / most || 1, size = 10 ** Math.floor(Math.log10(rough));
  const step = size * [1, 2, 5, 10].find((times) => times * size >= rough * 0.999), found = [];
  for (let place = Math.ceil(low / step - 1e-9); place * step <= high + step * 1e-9; place++) found.push(Number((place * step).toPrecision(12)));
  return found;
}
function decades(low, high) {
  for (const parts of [[1], [1, 3], [1, 2, 5]]) {
    const found = [];
    for (let power = Math.floor(Math.log10(low)); 10 ** power <= high; power++)
      found.push(...parts.map((times) => Number((times * 10 ** power).toPrecision(3))).filter((value) => value >= low * 0.999 && value <= high * 1.001));
    if (found.length > 2 || parts.length > 2) return found;
  }
}
const plain = (value) => String(Number(value.toPrecision(6))).replace("-", "−");
const pen = document.createElement("canvas").getContext("2d");
function textWidth(text, style = "650 12.5px") {
  pen.font = `${style} ${getComputedStyle(document.body).fontFamily}`;
  return pen.measureText(text).width;
}
const overlap = (a, b) => Math.max(0, Math.min(a[2], b[2]) - Math.max(a[0], b[0])) * Math.max(0, Math.min(a[3], b[3]) - Math.max(a[1], b[1]));
const crowding = (box, blocked) => blocked.reduce((sum, other) => sum + overlap(box, other), 0);

// ----- fronts -----
const valueOf = (config, measure) => config.values[measure.key]?.[0];
// Configurations that no other of the arm beats in both, from little learnt to much.
function frontOf(configs, x, y) {
  const best = [];
  let least = Infinity;
  for (const one of [...configs].sort((a, b) => valueOf(b, x) - valueOf(a, x) || valueOf(a, y) - valueOf(b, y)))
    if (valueOf(one, y) < least) { best.unshift(one); least = valueOf(one, y); }
  return best;
}
// What a front forgot where it has learnt so much, between measured points; null outside.
function forgotAt(front, learnt, x, y) {
  for (let place = 1; place < front.length; place++) {
    const [a, b] = [front[place - 1], front[place]], [from, to] = [valueOf(a, x), valueOf(b, x)];
    if (learnt >= from && learnt <= to && to > from)
      return valueOf(a, y) + (valueOf(b, y) - valueOf(a, y)) * (learnt - from) / (to - from);
  }
  return null;
}

// The freest place around each point; a name that would lie on another is left to the tooltip.
function placeLabels(wanted, blocked, bounds) {
  const placed = [], found = [];
  for (const one of wanted) {
    const long = textWidth(one.text);
    let best = null;
    for (const reach of [11, 24, 40])
      for (const [dx, dy] of [[1, 0], [-1, 0], [1, -.9], [1, .9], [-1, -.9], [-1, .9], [0, -1.3], [0, 1.3]]) {
        const far = reach * (dy ? .8 : 1), y = one.y + dy * reach;
        const x = dx > 0 ? one.x + far : dx < 0 ? one.x - far - long : one.x - long / 2;
        const box = [x - 1, y - 8, x + long + 1, y + 8];
        if (box[0] < bounds[0] || box[2] > bounds[2] || box[1] < bounds[1] || box[3] > bounds[3]) continue;
        if (placed.some((other) => overlap(box, other) > 0)) continue;
        const cost = crowding(box, blocked) + reach * .7;
        if (!best || cost < best.cost) best = { cost, box, left: x, base: y + 4.5, reach };
      }
    if (!best || best.cost > 260) continue;
    placed.push(best.box);
    found.push({ ...one, ...best, long });
  }
  return found;
}

/* Learnt to the right, forgotten downwards: the base is the origin, and up and right is better.

   configs, arms     what is drawn, and who; arms that are not `shown` are left out
   x, y              measures; budgetUnit: "tokens" or "epochs"
   zoom              [x0, x1, y0, y1], or nothing for all
   chosen            configurations that are marked
   pick(config)      what a click or Enter does; nothing makes points that only tell
   read(learnt, {arm: forgot or null})  what moving across tells; it is told once at the start
   note              an element that takes the emptiest place, or stands below
   small             whether it is one figure of several
   tell(config)      more lines of the tooltip */
function tradeoff(host, { configs, arms, x, y, budgetUnit, zoom, chosen = [], pick, read, note, small, tell }) {
  const looks = dress(arms), names = new Set(arms.filter((arm) => arm.shown !== false).map((arm) => arm.name));
  const drawn = configs.filter((one) => names.has(one.arm) && valueOf(one, x) !== undefined && valueOf(one, y) !== undefined);
  const width = Math.max(280, host.clientWidth), phone = width < 600, height = small ? (phone ? 340 : 400) : phone ? 430 : 540;
  const edges = zoom || extent(drawn, x, y);
  const [x0, x1, y0, y1] = edges, room = { left: 44, right: phone ? 14 : 96, top: 40, bottom: 44 };
  const X = (value) => room.left + (value - x0) / (x1 - x0) * (width - room.left - room.right);
  const Y = (value) => room.top + (value - y0) / (y1 - y0) * (height - room.top - room.bottom);
  const inside = (one) => valueOf(one, x) >= x0 - 1e-9 && valueOf(one, x) <= x1 + 1e-9 && valueOf(one, y) >= y0 - 1e-9 && valueOf(one, y) <= y1 + 1e-9;
  const at = (one) => [X(valueOf(one, x)), Y(valueOf(one, y))];
  const svg = node("s:svg", { viewBox: `0 0 ${width} ${height}`, height, role: "group", "aria-label": `${x.title} against ${y.title}, for each configuration` });
  const line = (a, b, c, d, more) => node("s:line", { x1: a, y1: b, x2: c, y2: d, stroke: "var(--grid)", ...more });
  const write = (left, base, text, more) => node("s:text", { x: left, y: base, ...more }, text);
  const clip = `clip-${host.id}`;
  svg.append(node("s:clipPath", { id: clip }, node("s:rect", { x: room.left - 8, y: room.top - 8, width: width - room.left - room.right + 16, height: height - room.top - room.bottom + 16 })));
  for (const value of ticks(x0, x1, phone ? 5 : 7))
    svg.append(line(X(value), room.top, X(value), height - room.bottom, value ? {} : { stroke: "var(--rule)" }), write(X(value), height - room.bottom + 18, plain(value), { "text-anchor": "middle" }));
  for (const value of ticks(y0, y1, 7))
    svg.append(line(room.left, Y(value), width - room.right, Y(value), value ? {} : { stroke: "var(--soft)" }), write(room.left - 8, Y(value) + 4, plain(value), { "text-anchor": "end" }));
  const fit = (text) => textWidth(text, "12.5px") > width - 20 ? shortened(text, Math.floor((width - 20) / 7.2)) : text;
  svg.append(write(width - room.right, height - 6, fit(`${x.title} →`), { "text-anchor": "end" }), write(4, 12, fit(`${y.title} ↓`)));
  if (!phone && !small) svg.append(write(width - 4, 12, "better ↗", { "text-anchor": "end", style: "font-weight:650;fill:var(--ink)" }));
  const blocked = [], lines = node("s:g", { "clip-path": `url(#${clip})` }), marks = node("s:g"), fronts = {};
  if (y.floor !== null && y.floor !== undefined && y.floor >= y0 && y.floor <= y1) {
    const text = phone || small ? "guessing" : "guessing: nothing is left to forget", from = X(x0 + (x1 - x0) * .2);
    svg.append(line(room.left, Y(y.floor), width - room.right, Y(y.floor), { stroke: "var(--soft)", "stroke-dasharray": "2 4" }), write(from, Y(y.floor) - 6, text));
    blocked.push([from, Y(y.floor) - 18, from + textWidth(text, "12.5px"), Y(y.floor)]);
  }
  const join = (walk, more) => lines.append(node("s:polyline", { points: walk.map((one) => at(one).map((v) => v.toFixed(1)).join()).join(" "), fill: "none", "stroke-linejoin": "round", ...more }));
  for (const arm of arms) {
    const mine = drawn.filter((one) => one.arm === arm.name), stroke = looks.get(arm.name).colour;
    for (const rate of new Set(mine.map((one) => one.rate))) {
      const walk = mine.filter((one) => one.rate === rate).sort((a, b) => a.budget - b.budget);
      if (walk.length > 1) join(walk, { stroke, opacity: .3 });
    }
    if (!mine.length) continue;
    fronts[arm.name] = frontOf(mine, x, y);
    join(fronts[arm.name], { stroke, "stroke-width": 3, opacity: .85 });
    for (let place = 1; place < fronts[arm.name].length; place++)
      for (let part = 0; part <= 1; part += .04) {
        const [a, b] = [at(fronts[arm.name][place - 1]), at(fronts[arm.name][place])];
        const [left, top] = [a[0] + part * (b[0] - a[0]), a[1] + part * (b[1] - a[1])];
        blocked.push([left - 5, top - 3, left + 5, top + 3]);
      }
  }
  const cross = line(0, room.top, 0, height - room.bottom, { stroke: "var(--ink)", "stroke-dasharray": "3 3", visibility: "hidden" });
  svg.append(lines, cross, marks);
  const tip = node("div", { class: "tip", hidden: "" });
  const half = (one, measure) => {
    const [, size, kind] = one.values[measure.key];
    return size === null ? "" : ` ± ${amount(size)}${kind === "items" ? " (items only)" : ""}`;
  };
  const name = (one) => `${one.arm} ${rateText(one.rate)}`;
  const show = (one) => {
    tip.hidden = false;
    tip.replaceChildren(node("b", { style: `color:${looks.get(one.arm).colour}` }, `${name(one)}, ${budgetText(one.budget, budgetUnit)}${budgetUnit === "tokens" ? " tokens" : ""}`),
      ...[`${x.title}: ${amount(valueOf(one, x))}${half(one, x)}`, `${y.title}: ${amount(valueOf(one, y))}${half(one, y)}`,
        `${one.seeds.length} seed${one.seeds.length > 1 ? "s" : ""}${one.tuned ? ", chosen rate" : ""}`, ...(tell ? tell(one) : [])].map((text) => node("div", {}, text)),
      pick ? node("div", { class: "soft" }, "Click: its questions") : null);
    const [left, top] = at(one);
    tip.style.left = Math.min(Math.max(0, left - 120), width - Math.min(265, width)) + "px";
    tip.style.top = top + (top > height - 170 ? -18 - tip.offsetHeight : 16) + "px";
  };
  const last = Math.max(...drawn.map((one) => one.budget)), seen = drawn.filter(inside);
  const isChosen = (one) => chosen.some((other) => other && other.arm === one.arm && other.rate === one.rate && other.budget === one.budget);
  for (const one of [...seen].sort((a, b) => a.budget - b.budget)) {
    const [left, top] = at(one), look = looks.get(one.arm), size = one.budget === last ? 6 : one.budget > last / 3 ? 4 : 2.8;
    blocked.push([left - size - 2, top - size - 2, left + size + 2, top + size + 2]);
    const told = `${name(one)}, ${budgetText(one.budget, budgetUnit)}: ${x.title} ${amount(valueOf(one, x))}, ${y.title} ${amount(valueOf(one, y))}`;
    const mark = node("s:g", { class: "mark", tabindex: 0, role: "button", "aria-label": told,
      onpointerenter: () => show(one), onpointerleave: () => { tip.hidden = true; }, onfocus: () => show(one), onblur: () => { tip.hidden = true; },
      onclick: () => pick && pick(one),
      onkeydown: (event) => { if (pick && ["Enter", " "].includes(event.key)) { event.preventDefault(); pick(one); } } });
    const [right, down] = [one.values[x.key], one.values[y.key]];
    if (one.budget === last && down[1] && down[2] === "seeds") {
      const ends = [Math.max(room.top, Y(Math.max(y0, down[0] - down[1]))), Y(Math.min(y1, down[0] + down[1]))];
      mark.append(line(left, ends[0], left, ends[1], { stroke: look.colour, "stroke-width": 1.5, opacity: .6 }));
      blocked.push([left - 4, ends[0], left + 4, ends[1]]);
      if (right[1]) {
        const sides = [X(Math.max(x0, right[0] - right[1])), X(Math.min(x1, right[0] + right[1]))];
        mark.append(line(sides[0], top, sides[1], top, { stroke: look.colour, "stroke-width": 1.5, opacity: .6 }));
        blocked.push([sides[0], top - 3, sides[1], top + 3]);
      }
    }
    mark.append(node("s:circle", { class: "halo", cx: left, cy: top, r: 13, fill: look.colour, opacity: isChosen(one) ? .25 : 0 }), marker(look, left, top, size, one.seeds.length >= 3));
    marks.append(mark);
  }
  if (x0 <= 0 && y0 <= 0) {
    blocked.push([room.left, Y(0) - 4, width - room.right, Y(0) + 4], [X(0) - 8, Y(0) - 20, X(0) + 80, Y(0) + 8]);
    marks.append(node("s:path", { d: `M${X(0) - 7},${Y(0)}h14M${X(0)},${Y(0) - 7}v14`, stroke: "var(--ink)", "stroke-width": 2.5 }),
      write(X(0) + 11, Y(0) - 7, phone ? "base" : "base model", { class: "label", style: "fill:var(--ink)" }));
  }
  host.replaceChildren(svg, tip);
  if (note) blocked.push(...settle(host, note, blocked, [room.left + 12, Y(Math.max(0, y0)) + 14, width - room.right - 8, height - room.bottom - 8]));
  const front = new Set(Object.values(fronts).flat()), most = phone || small ? 8 : 16;
  let named = seen.filter((one) => one.budget === last);
  if (named.length > most) named = seen.filter((one) => front.has(one) && one.budget === last || one.tuned && one.budget === last);
  named.sort((a, b) => b.tuned - a.tuned || b.seeds.length - a.seeds.length || valueOf(a, y) - valueOf(b, y));
  const several = new Set(drawn.map((one) => one.budget)).size > 1 && !phone && !small;
  const wanted = named.map((one) => ({ x: at(one)[0], y: at(one)[1], arm: one.arm,
    text: `${shortened(one.arm, phone ? 14 : 22)} ${rateText(one.rate)}${several ? ` · ${budgetText(one.budget, budgetUnit)}` : ""}` }));
  for (const one of placeLabels(wanted, blocked, [room.left - 4, 18, width - 2, height - room.bottom])) {
    const stroke = looks.get(one.arm).colour;
    if (one.reach > 20) marks.prepend(line(one.x, one.y, one.left > one.x ? one.left - 2 : Math.min(one.x, one.left + one.long), one.base - 4, { stroke, opacity: .5 }));
    marks.append(write(one.left, one.base, one.text, { class: "label", style: `fill:${stroke}` }));
  }
  if (read && drawn.length) {
    const tellAt = (learnt) => {
      for (const end of ["x1", "x2"]) cross.setAttribute(end, X(learnt));
      cross.setAttribute("visibility", "visible");
      read(learnt, Object.fromEntries(Object.entries(fronts).map(([arm, one]) => [arm, forgotAt(one, learnt, x, y)])));
    };
    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect(), learnt = x0 + ((event.clientX - box.left) * width / box.width - room.left) / (width - room.left - room.right) * (x1 - x0);
      if (learnt >= x0 && learnt <= x1) tellAt(learnt);
    });
    const reached = Object.values(fronts).map((one) => valueOf(one.at(-1), x));
    tellAt(Math.min(x1, Math.max(x0, .9 * Math.min(...reached))));
  }
  return fronts;
}
// The base is the origin; beyond it the axes end where the data do.
function extent(configs, x, y) {
  const right = configs.map((one) => valueOf(one, x)), down = configs.map((one) => valueOf(one, y));
  const span = (values, more) => {
    const low = Math.min(0, ...values), high = Math.max(0, ...values), size = high - low || 1;
    return [low < 0 ? low - .04 * size : low, high + more * size];
  };
  return [...span(right, .02), ...span(down, .06)];
}
// Where the fronts end and methods must be told apart; null where that is nearly everything.
function decisive(configs, x, y) {
  const known = configs.filter((one) => valueOf(one, x) !== undefined && valueOf(one, y) !== undefined);
  const arms = [...new Set(known.map((one) => one.arm))], whole = known.length ? extent(known, x, y) : [0, 0, 0, 0];
  const from = .6 * whole[1];
  const ends = arms.flatMap((arm) => frontOf(known.filter((one) => one.arm === arm), x, y)).filter((one) => valueOf(one, x) >= from);
  if (ends.length < 3) return null;
  const [low, high] = [Math.min(0, ...ends.map((one) => valueOf(one, y))), Math.max(...ends.map((one) => valueOf(one, y)))];
  const box = [from, whole[1], low, low + 1.25 * (high - low)];
  return box[3] - box[2] > .75 * (whole[3] - whole[2]) || box[3] <= box[2] ? null : box;
}
// A note's box in the emptiest place of a figure; below it where there is none.
function settle(host, note, blocked, [x0, y0, x1, y1]) {
  note.classList.remove("below");
  Object.assign(note.style, { position: "absolute", width: `${Math.min(430, .38 * (x1 - x0))}px` });
  const [wide, high] = [note.offsetWidth, note.offsetHeight];
  let best = null;
  if (x1 - x0 > 560)
    for (let left = x0; left + wide <= x1; left += 12)
      for (let top = y0; top + high <= y1; top += 12) {
        const box = [left - 6, top - 6, left + wide + 6, top + high + 6], cost = crowding(box, blocked);
        if (!best || cost < best.cost) best = { cost, box, left, top };
      }
  if (!best || best.cost > 30) {
    note.classList.add("below");
    Object.assign(note.style, { position: "static", width: "auto" });
    return [];
  }
  Object.assign(note.style, { left: `${best.left}px`, top: `${best.top}px` });
  return [best.box];
}

/* Lines of arms over one number: rates, tokens or seconds.

   title    its heading
   arms     Arm
   lines    [{arm, points: [{x, y, half, filled, ringed}], thin}]
   logX, logY; xText(value), yText(value); xTicks: values, or nothing for even ones; unit: of y */
function panel(host, { title, arms, lines, logX, logY, xText = plain, yText = plain, xTicks, unit = "", height = 170, marked = true }) {
  const looks = dress(arms), points = lines.flatMap((one) => one.points).filter((one) => !logY || one.y > 0);
  const width = Math.max(220, host.clientWidth), svg = node("s:svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": `${title}, ${unit}` });
  host.replaceChildren(node("h3", {}, title, unit ? node("span", { class: "soft", style: "font-weight:400" }, `, ${unit}`) : null), svg);
  if (!points.length) return;
  const scale = (values, log, low, high) => {
    const turn = log ? Math.log10 : Number, ends = [Math.min(...values), Math.max(...values)].map(turn), span = ends[1] - ends[0];
    const wide = span || (log ? .3 : Math.abs(ends[0]) || 1), [from, to] = span ? ends : [ends[0] - wide / 2, ends[1] + wide / 2];
    return { at: (value) => low + (turn(value) - from) / (to - from) * (high - low), from: log ? 10 ** from : from, to: log ? 10 ** to : to };
  };
  const tall = scale(points.flatMap((one) => one.half && !logY ? [one.y - one.half, one.y + one.half] : [one.y]), logY, height - 36, 12);
  const rows = logY ? decades(tall.from, tall.to) : ticks(tall.from, tall.to, 4);
  const left = 14 + Math.max(16, ...rows.map((value) => textWidth(yText(value), "12.5px")));
  const wide = scale(points.map((one) => one.x), logX, left + 8, width - 14);
  for (const value of rows)
    svg.append(node("s:line", { x1: left - 4, x2: width, y1: tall.at(value), y2: tall.at(value), stroke: "var(--grid)" }), node("s:text", { x: left - 8, y: tall.at(value) + 4, "text-anchor": "end" }, yText(value)));
  let free = -Infinity;
  for (const value of xTicks || (logX ? decades(wide.from, wide.to) : ticks(wide.from, wide.to, 4))) {
    const long = textWidth(xText(value), "12px"), middle = Math.min(width - long / 2, Math.max(long / 2, wide.at(value)));
    if (middle - long / 2 < free + 6) continue;
    free = middle + long / 2;
    svg.append(node("s:text", { x: middle, y: height - 8, "text-anchor": "middle", style: "font-size:11.5px" }, xText(value)));
  }
  for (const one of lines) {
    const look = looks.get(one.arm), own = one.points.filter((point) => !logY || point.y > 0);
    svg.append(node("s:polyline", { points: own.map((point) => `${wide.at(point.x).toFixed(1)},${tall.at(point.y).toFixed(1)}`).join(" "), fill: "none", stroke: look.colour, "stroke-width": one.thin ? 1.2 : 2, opacity: one.thin ? .6 : 1, "stroke-linejoin": "round" }));
    if (!marked) continue;
    for (const point of own) {
      const [x, y] = [wide.at(point.x), tall.at(point.y)];
      if (point.half && !logY) svg.append(node("s:line", { x1: x, x2: x, y1: tall.at(point.y - point.half), y2: tall.at(point.y + point.half), stroke: look.colour, "stroke-width": 1.5 }));
      if (point.ringed) svg.append(node("s:circle", { cx: x, cy: y, r: 10, fill: "none", stroke: "var(--ink)", "stroke-width": 1.5 }));
      svg.append(marker(look, x, y, 4, point.filled));
    }
  }
}

// ----- light and dark: as the system has it, or as the reader wants it -----
const system = matchMedia("(prefers-color-scheme: dark)");
function theme(redraw) {
  const button = document.getElementById("theme"), choices = ["automatic", "dark", "light"];
  let choice = "automatic";
  try { choice = localStorage.getItem("laura-colours") || choice; } catch { /* no storage here */ }
  const apply = () => {
    if (!choices.includes(choice)) choice = "automatic";
    document.documentElement.classList.toggle("dark", choice === "dark" || choice === "automatic" && system.matches);
    button.textContent = `Colours: ${choice}`;
  };
  button.addEventListener("click", () => {
    choice = choices[(choices.indexOf(choice) + 1) % choices.length];
    try { localStorage.setItem("laura-colours", choice); } catch { /* no storage here */ }
    apply();
  });
  system.addEventListener("change", apply);
  apply();
  let size = innerWidth;
  addEventListener("resize", () => { if (innerWidth !== size) { size = innerWidth; redraw(); } });
}

// ----- figures and tables as files -----
function save(content, type, name) {
  const address = URL.createObjectURL(content instanceof Blob ? content : new Blob([content], { type }));
  node("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 1000);
}
// A drawing that stands alone: colours are written out.
function still(svg) {
  const copy = svg.cloneNode(true), look = getComputedStyle(document.documentElement);
  const [, , width, height] = svg.getAttribute("viewBox").split(" ");
  copy.setAttribute("xmlns", NS);
  copy.setAttribute("width", width);
  copy.setAttribute("font-family", "Helvetica, Arial, sans-serif");
  copy.querySelectorAll(".halo[opacity='0']").forEach((one) => one.remove());
  copy.prepend(node("s:style", {}, "text{font-size:12.5px;fill:var(--soft)}.label{paint-order:stroke;stroke:var(--paper);stroke-width:4px;font-weight:650}"),
    node("s:rect", { width, height, fill: "var(--paper)" }));
  return new XMLSerializer().serializeToString(copy).replace(/var\((--[a-z0-9-]+)\)/g, (_, name) => look.getPropertyValue(name).trim());
}
function savePng(svg, name, scale = 2) {
  const [, , width, height] = svg.getAttribute("viewBox").split(" ").map(Number), picture = new Image();
  picture.onload = () => {
    const canvas = node("canvas", { width: width * scale, height: height * scale });
    canvas.getContext("2d").drawImage(picture, 0, 0, width * scale, height * scale);
    canvas.toBlob((blob) => save(blob, "image/png", name));
  };
  picture.src = "data:image/svg+xml;charset=utf-8," + encodeURIComponent(still(svg));
}
