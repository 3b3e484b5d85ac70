// The live view: what the server does at this moment, asked every two seconds while it is seen.
import { bytes, element, number, one, row } from "./draw.js";
import { ADMIN, keys, state } from "./server.js";
import { visible } from "./words.js";

const EVERY_MS = 2000;
let shown = false, paused = false, timer = null, asking = false;

/** Told to a screen reader only when it changes, so it holds no numbers that always do. */
function say(text) {
  if (one("live-status").textContent !== visible(text)) one("live-status").textContent = visible(text);
}

function sentence(found) {
  if (!found.ready) return "Not ready: " + found.why_not;
  const waits = Object.values(found.waiting).some(Boolean);
  const part = found.why_not ? " (" + found.why_not + ")" : "";
  return "Ready" + part + (waits ? "; some answers wait in the queue." : "; nothing waits.");
}

const sum = (counts) => Object.values(counts).reduce((total, count) => total + count, 0);

function draw(found) {
  const numbers = [
    ["Tokens per second", found.tokens_per_second.toFixed(1)],
    ["In work", sum(found.running)],
    ["In the queue", sum(found.waiting)],
    ["Slots taken", found.slots.length + " of " + found.slots_total],
    ["Memory", bytes(sum(found.memory_bytes))],
    ["Tokens in the cache", found.cache_tokens.toLocaleString("en")],
  ];
  one("numbers").replaceChildren(...numbers.map(([name, value]) => {
    const pair = document.createElement("div");
    pair.append(element("dt", name), element("dd", value));
    return pair;
  }));
  drawTenants(found);
  one("slots-caption").textContent = "Adapters in memory: " + found.slots.length + " of "
    + found.slots_total;
  one("slots").replaceChildren(...found.slots.map((slot) => row([
    slot.adapter, slot.pinned ? "yes" : "no", number(slot.in_use), number(bytes(slot.bytes)),
  ])));
  one("memory").replaceChildren(...Object.entries(found.memory_bytes).map(([name, count]) =>
    row([name, number(bytes(count))])));
  one("state").hidden = false;
}

/** Tenants with what is in work and what waits, and whatever else the server counts of each. */
function drawTenants(found) {
  const usage = found.tenants ?? {};
  const names = new Set([usage, found.running, found.waiting].flatMap(Object.keys));
  const counted = new Set(Object.values(usage).flatMap(Object.keys));
  const heads = ["Tenant", "In work", "In the queue", ...[...counted].map(spaced)];
  one("tenants-head").replaceChildren(...heads.map((title, place) => {
    const cell = element("th", title, place ? "number" : "");
    cell.scope = "col";
    return cell;
  }));
  one("tenants").replaceChildren(...[...names].sort().map((name) => row([
    name, number(found.running[name] ?? 0), number(found.waiting[name] ?? 0),
    ...[...counted].map((field) => number(counts(usage[name]?.[field]))),
  ])));
}

const spaced = (field) => field[0].toUpperCase() + field.slice(1).replaceAll("_", " ");
const counts = (value) => typeof value === "number" ? value.toLocaleString("en") : value ?? "–";

async function poll() {
  clearTimeout(timer);
  if (!shown || paused || document.hidden || asking) return;
  asking = true;
  try {
    const found = await state();
    one("admin-form").hidden = true;
    draw(found);
    say(sentence(found));
  } catch (error) {
    if (error.status === 401 || error.status === 403) {
      askForKey(error);
      return;
    }
    say(error.message);
  } finally {
    asking = false;
  }
  timer = setTimeout(poll, EVERY_MS);
}

function askForKey(error) {
  one("state").hidden = true;
  one("admin-form").hidden = false;
  say(keys.read(ADMIN) ? error.message : "The live view needs the admin key.");
}

export function startLive() {
  one("pause").addEventListener("click", () => {
    paused = !paused;
    one("pause").setAttribute("aria-pressed", String(paused));
    poll();
  });
  one("admin-form").addEventListener("submit", (event) => {
    event.preventDefault();
    keys.keep(ADMIN, one("admin-key").value.trim());
    one("admin-key").value = "";
    poll();
  });
  document.addEventListener("visibilitychange", poll);
  return {
    show(now) {
      shown = now;
      poll();
    },
  };
}
