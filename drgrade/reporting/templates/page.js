"use strict";
// Tooltips of figures on hover, tap and keyboard focus; selection of a label fraction.
document.documentElement.classList.add("js");
const box = document.getElementById("tip");
const NEAR = 18; // px around a point that activate its tooltip on touch
let shown = null;

for (const part of document.querySelectorAll(".tip")) {
  const title = part.querySelector("title"); // prevents the native tooltip
  part.dataset.tip = title.textContent;
  part.setAttribute("aria-label", title.textContent.replaceAll("\n", ", "));
  title.remove();
}

function hide() {
  if (shown) shown.classList.remove("on");
  shown = null;
  box.hidden = true;
}

function show(part) {
  if (part === shown) return;
  hide();
  shown = part;
  part.classList.add("on");
  box.textContent = part.dataset.tip;
  box.hidden = false;
  const at = part.getBoundingClientRect(), own = box.getBoundingClientRect();
  const room = document.documentElement.clientWidth - own.width - 8;
  box.style.left = `${Math.max(8, Math.min(at.left + at.width / 2 - own.width / 2, room))}px`;
  box.style.top = `${at.top > own.height + 12 ? at.top - own.height - 8 : at.bottom + 8}px`;
}

function nearest(figure, x, y) {
  let best = null, least = NEAR;
  for (const part of figure.querySelectorAll(".tip")) {
    const at = part.getBoundingClientRect();
    const away = Math.hypot(Math.max(at.left - x, 0, x - at.right), Math.max(at.top - y, 0, y - at.bottom));
    const off = away + Math.hypot((at.left + at.right) / 2 - x, (at.top + at.bottom) / 2 - y) / 1000;
    if (off < least) [best, least] = [part, off];
  }
  return best;
}

function inside(event, selector) {
  return event.target instanceof Element ? event.target.closest(selector) : null;
}

function point(event) {
  const figure = inside(event, "svg.figure");
  const part = figure && nearest(figure, event.clientX, event.clientY);
  if (part) show(part); else hide();
}
document.addEventListener("pointermove", point);
document.addEventListener("pointerdown", point);
document.addEventListener("scroll", hide, { passive: true });
document.addEventListener("focusout", hide);
document.addEventListener("focusin", (event) => {
  const part = inside(event, ".tip:focus-visible");
  if (part) show(part);
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") hide();
  const part = inside(event, ".tip");
  if (!part) return;
  const parts = [...part.closest("svg.figure").querySelectorAll(".tip")];
  const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
  const next = parts[parts.indexOf(part) + step];
  if (!next) return;
  event.preventDefault();
  part.tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
});

function choose(slug) {
  for (const part of document.querySelectorAll(".at")) part.classList.toggle("shown", part.dataset.share === slug);
  hide();
}
for (const choice of document.querySelectorAll("input[name=share]")) {
  choice.addEventListener("change", () => choose(choice.value));
  if (choice.checked) choose(choice.value);
}
window.addEventListener("beforeprint", () => {
  for (const part of document.querySelectorAll("details")) part.open = true;
});
