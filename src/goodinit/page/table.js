// The table: sorted by any column, filtered by words, health and module, columns chosen, walked through by arrow keys.
const head = byId("table").tHead.rows[0];
const body = byId("table").tBodies[0];
const haystacks = names.map((name, i) => `${name} ${summary(i)} ${columns.health[i]}`.toLowerCase());
const ranks = Object.fromEntries(Object.keys(page.healths).map((health, rank) => [health, rank]));
const inOrder = new Intl.Collator("en", { numeric: true });
let modulePath = "";

// Of many rows only the first are laid out, and more as one scrolls to their end: a thousand would take a browser a second at
// every sort. On paper all are.
const STEP = 100;
const scroller = body.closest(".scroll");
let laidOut = 0;

function layOut(most) {
  laidOut = most;
  let place = 0;
  for (const row of body.rows) row.classList.toggle("later", !row.hidden && ++place > most);
}

function layOutFirst() {
  layOut(STEP);
  scroller.scrollTop = 0;
}

function layOutUpTo(row) {
  if (row.classList.contains("later")) layOut([...body.rows].filter((other) => !other.hidden).indexOf(row) + STEP);
}

scroller.addEventListener("scroll", () => {
  if (laidOut < count && scroller.scrollTop + 2 * scroller.clientHeight > scroller.scrollHeight) layOut(laidOut + STEP);
});
layOut(STEP);

// A table that is cut off at the window's edge does not look it on a telephone, where no scroll bar is drawn.
const seen = new ResizeObserver(() => byId("wider").classList.toggle("needed", scroller.scrollWidth > scroller.clientWidth + 1));
seen.observe(scroller);
seen.observe(byId("table"));

function sortValue(key, i) {
  return key === "health" ? ranks[columns.health[i]] : columns[key][i];
}

// Ascending, what was not measured last, whatever the direction.
function compare(a, b, direction) {
  const missing = (value) => value === null || Number.isNaN(value);
  if (missing(a) || missing(b)) return missing(a) - missing(b);
  return direction * (typeof a === "string" ? inOrder.compare(a, b) : a < b ? -1 : a > b ? 1 : 0);
}

function sortBy(key, direction) {
  const order = names.map((_, i) => i);
  order.sort((i, j) => compare(sortValue(key, i), sortValue(key, j), direction) || i - j);
  body.append(...order.map((i) => rows[i]));
  layOutFirst();
  for (const cell of head.cells) cell.removeAttribute("aria-sort");
  head.cells[cellOf.get(key)].setAttribute("aria-sort", direction > 0 ? "ascending" : "descending");
  giveTabStop();
}

head.addEventListener("click", (event) => {
  const cell = event.target.closest("button")?.parentElement;
  if (cell) sortBy(cell.dataset.key, cell.getAttribute("aria-sort") === "ascending" ? -1 : 1);
});

function isInModule(name) {
  return !modulePath || name === modulePath || [".", "["].some((next) => name.startsWith(modulePath + next));
}

function filter() {
  const words = byId("words").value.toLowerCase().split(/\s+/).filter(Boolean);
  const health = byId("by-health").value;
  let shown = 0;
  names.forEach((name, i) => {
    const fits = isInModule(name) && (!health || columns.health[i] === health) && words.every((word) => haystacks[i].includes(word));
    if (rows[i].hidden === fits) rows[i].hidden = !fits;
    shown += fits;
  });
  const inModule = modulePath ? ` in ${modulePath}` : "";
  byId("count").textContent = shown === count ? plural(count, "layer") : `${shown} of ${plural(count, "layer")}${inModule}`;
  byId("none").hidden = shown > 0;
  layOutFirst();
  giveTabStop();
}

byId("words").addEventListener("input", filter);
byId("by-health").addEventListener("change", filter);
byId("filters").addEventListener("submit", (event) => event.preventDefault());
byId("filters").addEventListener("reset", () => setTimeout(() => setModule(""))); // after the fields are empty

function setModule(path) {
  modulePath = path;
  showChosenModule(path);
  filter();
}

for (const box of document.querySelectorAll("[data-column]")) {
  const show = () => byId("table").classList.toggle(`no-${box.dataset.column.replace(":", "-")}`, !box.checked);
  box.addEventListener("change", show);
  show(); // a browser that goes back restores the boxes, not the columns
}

// A menu closes like one.
addEventListener("click", (event) => {
  for (const menu of document.querySelectorAll("details.menu[open]")) if (!menu.contains(event.target)) menu.open = false;
});
addEventListener("keydown", (event) => {
  const menu = event.key === "Escape" && event.target.closest?.("details.menu[open]");
  if (!menu) return;
  menu.open = false;
  menu.firstElementChild.focus();
});

// One stop for the Tab key among all rows; arrows lead from there.
const buttonOf = (row) => row.querySelector("th button");
const placeOfRow = new Map(rows.map((row, i) => [row, i]));

function giveTabStop(row = body.querySelector("tr:not([hidden])")) {
  for (const button of body.querySelectorAll("[tabindex='0']")) button.tabIndex = -1;
  if (row) buttonOf(row).tabIndex = 0;
}

function neighbour(row, steps) {
  let found = row;
  for (let next = row; next && steps; next = steps > 0 ? next.nextElementSibling : next.previousElementSibling) {
    if (next === row || next.hidden) continue;
    found = next;
    steps -= Math.sign(steps);
  }
  return found;
}

const STEPS = { ArrowDown: 1, ArrowUp: -1, PageDown: 15, PageUp: -15, Home: -Infinity, End: Infinity };
body.addEventListener("keydown", (event) => {
  const row = event.target.closest("tr");
  if (!row || !(event.key in STEPS)) return;
  event.preventDefault();
  const next = neighbour(row, STEPS[event.key]);
  layOutUpTo(next);
  giveTabStop(next);
  buttonOf(next).focus();
});

body.addEventListener("focusin", (event) => change({ cursor: placeOfRow.get(event.target.closest("tr")) ?? -1 }));
body.addEventListener("focusout", () => change({ cursor: -1 }));
body.addEventListener("pointerover", (event) => change({ cursor: placeOfRow.get(event.target.closest("tr")) ?? -1 }));
body.addEventListener("pointerleave", () => change({ cursor: -1 }));
body.addEventListener("click", (event) => {
  const row = event.target.closest("tr");
  if (row && !getSelection().toString()) change({ kept: placeOfRow.get(row) });
});

// Into the middle of the table's own window, without moving the page.
function revealRow(i) {
  layOutUpTo(rows[i]);
  scroller.scrollTop = rows[i].offsetTop - scroller.clientHeight / 2;
}

onChange((changed) => {
  if (!changed.has("kept")) return;
  body.querySelector("[aria-current]")?.removeAttribute("aria-current");
  if (state.kept >= 0) rows[state.kept].setAttribute("aria-current", "true");
});
