"use strict";
for (const element of document.querySelectorAll(".chart")) {
  const text = document.getElementById(element.dataset.specification).textContent;
  // `ast` interprets expressions instead of compiling them, as the page's policy forbids eval.
  vegaEmbed(element, JSON.parse(text), {
    ast: true,
    renderer: "svg",
    actions: { export: true, source: false, compiled: false, editor: false },
    downloadFileName: element.id,
  }).catch((error) => {
    element.textContent = "This chart could not be drawn: " + error.message;
  });
}
addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details:not(.chart details)")) details.open = true;
});
