// What Python measured, and the one state that chart, table and tree share.
const page = JSON.parse(document.getElementById("data").textContent);
const columns = page.columns;
const names = columns.name;
const count = names.length;
const placeOf = new Map(names.map((name, i) => [name, i]));
const byId = (id) => document.getElementById(id);

// JSON has no such numbers: they come as text.
const ODD = { nan: NaN, inf: Infinity, "-inf": -Infinity };
for (const key of page.numbers) {
  columns[key] = columns[key].map((value) => (typeof value === "string" ? ODD[value] : value));
}

// cursor: the layer that is pointed at; kept: the one whose card is open; -1 for none.
// view: which part of the depth is drawn, in layers, each layer's slot reaching half a layer to either side.
const state = { cursor: -1, kept: -1, view: [-0.5, count - 0.5], hidden: new Set() };
const listeners = [];

// Ask to be told of changes: called with the names of what has changed.
function onChange(listener) {
  listeners.push(listener);
}

function change(changes) {
  const changed = Object.keys(changes).filter((key) => state[key] !== changes[key]);
  Object.assign(state, changes);
  if (changed.length) for (const listener of listeners) listener(new Set(changed));
}

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

const SVG = "http://www.w3.org/2000/svg";
function drawn(tag, attributes = {}, text = "") {
  const made = document.createElementNS(SVG, tag);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.textContent = text;
  return made;
}

function clamp(value, low, high) {
  return Math.min(Math.max(value, low), high);
}
