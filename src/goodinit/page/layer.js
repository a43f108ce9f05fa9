// One layer in words: while it is pointed at as a tip, and as a card once it is kept.
const tip = byId("tip");
const card = byId("layer");
const rows = [...byId("table").tBodies[0].rows];
const cellOf = new Map([...byId("table").tHead.rows[0].cells].map((cell, i) => [cell.dataset.key, i]));

// As the table has it: there is one way of writing a number.
function cellText(i, key) {
  return key !== null && cellOf.has(key) ? rows[i].cells[cellOf.get(key)].textContent.trim() : "";
}

// A long name goes on in the next line after a dot.
function breakable(name) {
  const parts = element("span");
  name.split(".").forEach((part, n) => parts.append(...(n ? [".", element("wbr"), part] : [part])));
  return parts;
}

function markOf(i) {
  return element("span", { class: `mark ${columns.health[i]}`, title: page.healths[columns.health[i]] });
}

function summary(i) {
  return ["operator", "shape", "activation", "status"].map((key) => cellText(i, key)).filter((text) => text && text !== "-").join(" · ");
}

function figures(i, quantities) {
  const body = element("tbody");
  for (const { title, meaning, keys } of quantities) {
    const texts = keys.map((key) => cellText(i, key));
    if (texts.every((text) => !text || text === "-")) continue;
    const name = element("th", { scope: "row", title: meaning }, title);
    body.append(element("tr", {}, name, ...texts.map((text) => element("td", {}, text))));
  }
  const table = element("table", { class: "figures" }, body);
  if (page.sides.length > 1) table.prepend(sidesHead());
  return table;
}

function sidesHead() {
  const heads = page.sides.map((side, n) => element("th", { scope: "col" }, element("span", { class: `swatch side${n}` }), side));
  return element("thead", {}, element("tr", {}, element("td"), ...heads));
}

const drawnKeys = new Set(page.panels.flatMap((panel) => panel.series.map((s) => s.key)));
const drawnQuantities = page.quantities.filter(({ keys }) => keys.some((key) => drawnKeys.has(key)));

function fillTip(i) {
  const place = `${i + 1} of ${count} · ${summary(i)}`;
  tip.replaceChildren(element("p", { class: "name" }, markOf(i), breakable(names[i])), element("p", { class: "place" }, place), figures(i, drawnQuantities));
}

// Beside what is pointed at; in a narrow window, where it would lie on it, at the end of the window that is farther away.
function showTip(x, y) {
  if (state.cursor < 0) return;
  tip.hidden = false;
  const { width, height } = tip.getBoundingClientRect();
  const isNarrow = innerWidth < 2 * width;
  const right = x + 18 + width <= innerWidth - 8 ? x + 18 : x - 18 - width;
  const below = y + 18 + height <= innerHeight - 8 ? y + 18 : y - 18 - height;
  const [left, top] = isNarrow ? [(innerWidth - width) / 2, y < innerHeight / 2 ? innerHeight - height - 8 : 8] : [right, below];
  tip.style.left = `${clamp(left, 8, Math.max(8, innerWidth - width - 8))}px`;
  tip.style.top = `${clamp(top, 8, Math.max(8, innerHeight - height - 8))}px`;
}

function showTipAtCursor() {
  const panel = panels[0];
  if (state.cursor < 0 || !panel.svg.getBoundingClientRect) return;
  const box = panel.svg.getBoundingClientRect();
  showTip(box.left + panel.x(state.cursor), box.top + panel.height / 2);
}

function hideTip() {
  tip.hidden = true;
}

// What a slider says where it stands, for those who hear it.
function spoken(i) {
  const said = drawnQuantities.flatMap(({ title, keys }) =>
    keys.map((key, side) => (key === null ? "" : `${title}${page.sides.length > 1 ? ` ${page.sides[side]}` : ""} ${cellText(i, key)}`)),
  );
  return [`${names[i]}, ${i + 1} of ${count}`, columns.health[i], ...said.filter(Boolean)].join(", ");
}

function fillCard(i) {
  const close = element("button", { type: "button", class: "close", "aria-label": "Close", title: "Close" }, "✕");
  close.addEventListener("click", () => change({ kept: -1 }));
  const parts = [close, element("h3", {}, markOf(i), breakable(names[i])), element("p", { class: "place" }, `${i + 1} of ${count} · ${summary(i)}`)];
  const details = element("div", { class: "details" }, figures(i, page.quantities));
  const histogram = rows[i].querySelector(".curve");
  if (histogram?.childElementCount) details.append(histogramOf(histogram));
  card.replaceChildren(...parts, ...notesOn(names[i]), details);
}

function histogramOf(small) {
  const large = small.cloneNode(true);
  large.classList.add("large");
  const axis = element("p", { class: "axis" }, element("span", {}, "−4 std"), element("span", {}, "mean"), element("span", {}, "+4 std"));
  return element("figure", {}, element("figcaption", {}, "Distribution of the output"), large, axis);
}

function notesOn(name) {
  const links = [...document.querySelectorAll(".note .layer-link")].filter((link) => link.dataset.layer === name);
  return links.map((link) => {
    const note = link.closest(".note").cloneNode(true);
    note.querySelector(".names").remove();
    return element("div", { class: note.className }, ...note.childNodes);
  });
}

onChange((changed) => {
  if (changed.has("cursor")) {
    if (state.cursor >= 0) fillTip(state.cursor);
    const shown = Math.max(state.cursor, 0);
    area.setAttribute("aria-valuenow", shown + 1);
    area.setAttribute("aria-valuetext", spoken(shown));
  }
  if (changed.has("kept")) {
    card.hidden = state.kept < 0;
    if (state.kept >= 0) fillCard(state.kept);
  }
});

document.addEventListener("click", (event) => {
  const link = event.target.closest(".layer-link");
  if (!link || !placeOf.has(link.dataset.layer)) return;
  change({ kept: placeOf.get(link.dataset.layer) });
  revealRow(state.kept);
  card.scrollIntoView({ block: "center" });
});
