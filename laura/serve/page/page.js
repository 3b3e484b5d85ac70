// The page: two views, of which the address names one.
import { startChat } from "./chat.js";
import { one } from "./draw.js";
import { startLive } from "./live.js";

const views = [...document.querySelectorAll(".view")];
const links = [...document.querySelectorAll("nav a")];
const live = startLive();

function show(moved) {
  const view = views.find((one) => "#" + one.id === location.hash) ?? views[0];
  for (const other of views) other.hidden = other !== view;
  for (const link of links) {
    if (link.hash === "#" + view.id) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  const heading = view.querySelector("h2");
  document.title = heading.textContent + " · Laura";
  live.show(view.id === "live");
  if (moved) heading.focus();
}
addEventListener("hashchange", () => show(true));
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();  // its address is no view
  one("main").focus();
});
show(false);
startChat();
