// The tree of modules: opened and closed, walked through by arrow keys; a module filters the table, a layer is kept.
const items = [...document.querySelectorAll("#tree [role=treeitem]")];
const levels = items.map((item) => Number(item.getAttribute("aria-level")));
const isModule = items.map((_, n) => levels[n + 1] > levels[n]);
const MOST_OPEN = 36;

for (const item of items) {
  item.tabIndex = -1;
  item.title = item.dataset.row ? names[item.dataset.row] : item.dataset.path;
}

function isOpen(n) {
  return items[n].getAttribute("aria-expanded") === "true";
}

function setOpen(n, open) {
  if (isModule[n]) items[n].setAttribute("aria-expanded", String(open));
}

// An item is hidden where any module around it is closed.
function showOpened() {
  let closed = Infinity;
  items.forEach((item, n) => {
    if (levels[n] <= closed) closed = Infinity;
    item.hidden = levels[n] > closed;
    if (!item.hidden && isModule[n] && !isOpen(n)) closed = levels[n];
  });
}

// As many levels as fit, and the way to the first fault.
function openSome() {
  let deepest = 1;
  const visible = (level) => levels.filter((own) => own <= level).length;
  while (deepest < 12 && visible(deepest + 1) <= MOST_OPEN) deepest += 1;
  items.forEach((_, n) => setOpen(n, levels[n] < deepest));
  const fault = items.findIndex((item) => item.dataset.row && columns.health[item.dataset.row] === "fault");
  for (let n = fault, level = levels[fault]; n >= 0; n -= 1) {
    if (levels[n] >= level) continue;
    level = levels[n];
    setOpen(n, true);
  }
  showOpened();
  if (fault >= 0) byId("tree").scrollTop = items[fault].offsetTop - byId("tree").offsetTop - byId("tree").clientHeight / 2;
}

function showChosenModule(path) {
  items.forEach((item, n) => item.setAttribute("aria-selected", String(isModule[n] && path !== "" && item.dataset.path === path)));
}

function choose(n) {
  if (items[n].dataset.row) change({ kept: Number(items[n].dataset.row) });
  else setModule(items[n].dataset.path === modulePath ? "" : items[n].dataset.path);
}

function focusItem(n) {
  for (const item of items) if (item.tabIndex === 0) item.tabIndex = -1;
  items[n].tabIndex = 0;
  items[n].focus();
}

function step(n, by) {
  let next = n + by;
  while (items[next]?.hidden) next += by;
  return items[next] ? next : n;
}

function parentOf(n) {
  for (let m = n; m >= 0; m -= 1) if (levels[m] < levels[n]) return m;
  return n;
}

const MOVES = {
  ArrowDown: (n) => step(n, 1),
  ArrowUp: (n) => step(n, -1),
  Home: () => 0,
  End: () => step(items.length, -1),
  ArrowRight: (n) => {
    if (!isModule[n] || isOpen(n)) return isModule[n] ? n + 1 : n;
    setOpen(n, true);
    return n;
  },
  ArrowLeft: (n) => {
    if (!isModule[n] || !isOpen(n)) return parentOf(n);
    setOpen(n, false);
    return n;
  },
};

byId("tree")?.addEventListener("keydown", (event) => {
  const n = items.indexOf(event.target);
  if (n < 0 || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "Enter" || event.key === " ") choose(n);
  else if (MOVES[event.key]) {
    const next = MOVES[event.key](n);
    showOpened();
    focusItem(next);
  } else return;
  event.preventDefault();
});

byId("tree")?.addEventListener("click", (event) => {
  const n = items.indexOf(event.target.closest("[role=treeitem]"));
  if (n < 0) return;
  if (event.target.closest(".twig") && isModule[n]) {
    setOpen(n, !isOpen(n));
    showOpened();
  } else {
    if (!isOpen(n)) setOpen(n, true);
    showOpened();
    choose(n);
  }
  focusItem(n);
});
