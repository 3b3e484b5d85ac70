"use strict";
const root = document.documentElement;
const pages = [...document.querySelectorAll(".page")];
const links = [...document.querySelectorAll("nav a")];
const windowTitle = document.title;

// Pages: one is shown, its charts are drawn when it is first seen.
function draw(page) {
  for (const element of page.querySelectorAll(".chart:not([data-drawn])")) {
    element.dataset.drawn = "";
    const text = document.getElementById(element.dataset.specification).textContent;
    // `ast` interprets expressions instead of compiling them, as the page's policy forbids eval.
    vegaEmbed(element, JSON.parse(text), {
      ast: true,
      renderer: "svg",
      actions: { export: true, source: false, compiled: false, editor: false },
      downloadFileName: element.id,
    }).then(() => {
      const menu = element.querySelector("details > summary");
      if (menu) menu.setAttribute("aria-label", "Save this chart");
    }).catch((error) => {
      element.textContent = "This chart could not be drawn: " + error.message;
    });
  }
}
function show(moved) {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  const page = (target && target.closest(".page")) || pages[0];
  for (const other of pages) other.classList.toggle("shown", other === page);
  root.classList.toggle("inner", page !== pages[0]);
  const heading = page.querySelector("h2");
  document.title = heading.textContent + " · " + windowTitle;
  for (const link of links) {
    const here = link.hash === "#" + page.id;
    if (here) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
    // By hand, because scrollIntoView would also move the page.
    if (here) link.closest("ul").scrollLeft = link.offsetLeft - 16;
  }
  draw(page);
  if (!moved) return;
  if (target && target !== page) target.scrollIntoView();
  else scrollTo(0, 0);
  heading.focus({ preventScroll: true });
}
if (document.querySelector(".chart") && !window.vegaEmbed) root.classList.remove("scripted");
else {
  addEventListener("hashchange", () => show(true));
  document.querySelector(".skip").addEventListener("click", (event) => {
    event.preventDefault();  // its address is no page
    document.getElementById("main").focus();
  });
  show(false);
}

// Light and dark: as the system has it, or as the reader wants it.
const choices = ["automatic", "dark", "light"];
const system = matchMedia("(prefers-color-scheme: dark)");
const button = document.createElement("button");
let choice = "automatic";
try { choice = localStorage.getItem("laura-colours") || choice; } catch { /* no storage here */ }
function colour() {
  if (!choices.includes(choice)) choice = "automatic";
  root.style.colorScheme = choice === "automatic" ? "" : choice;
  root.classList.toggle("dark", choice === "dark" || (choice === "automatic" && system.matches));
  button.textContent = "Colours: " + choice;
}
button.type = "button";
button.className = "theme";
button.addEventListener("click", () => {
  choice = choices[(choices.indexOf(choice) + 1) % choices.length];
  try { localStorage.setItem("laura-colours", choice); } catch { /* no storage here */ }
  colour();
});
system.addEventListener("change", colour);
document.querySelector("header").prepend(button);
colour();

// Tables: sorted by a press on a heading, filtered by words and by the texts of some columns.
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

addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details:not(.chart details)")) details.open = true;
});
