// Panels of curves over the same depth. SVG by hand, without a library: a few curves over an index need two scales and a path,
// while SVG, unlike a canvas, follows the colour scheme by CSS, prints sharp, and can be tested and read as text. The
// libraries that would fit into the page (uPlot, 50 kB) draw on a canvas; those that draw SVG are larger than a whole report.
// Fewer pixels than this from layer to layer: dots say more than a line that goes up and down; more than that: marks on the line.
const DENSE = 3;
const SPARSE = 9;
const LEFT = 58;
const RIGHT = 14;

const panels = page.panels.map(makePanel);
byId("panels").classList.add(`of-${panels.length}`);

function makePanel(spec, number) {
  const svg = drawn("svg", { class: "panel", "aria-hidden": "true" });
  const title = element("p", { class: "panel-title" }, spec.title);
  byId("panels").append(element("div", { class: number ? "panel-box" : "panel-box main" }, title, svg));
  return { spec, svg, isMain: number === 0, clip: `clip-${number}` };
}

function quantityOf(series) {
  return series.key.split(":")[0];
}

// Buttons that show and hide curves: a side of a comparison, or a dashed quantity.
function makeToggles() {
  const series = page.panels.flatMap((panel) => panel.series);
  const sides = page.sides.map((title, i) => [`side${i}`, title, `side${i}`]).filter(([key]) => series.some((s) => `side${s.side}` === key));
  const dashed = new Map(series.filter((s) => s.dashed).map((s) => [quantityOf(s), [quantityOf(s), s.title, "dashed"]]));
  return [...(sides.length > 1 ? sides : []), ...dashed.values()].map(([hides, title, swatch]) => {
    const button = element("button", { type: "button", class: "toggle", "aria-pressed": "true", "data-hides": hides });
    button.append(element("span", { class: `swatch ${swatch}` }), title);
    return button;
  });
}

byId("curves").append(...makeToggles());
byId("curves").addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  const hidden = new Set(state.hidden);
  if (!hidden.delete(button.dataset.hides)) hidden.add(button.dataset.hides);
  button.setAttribute("aria-pressed", String(!hidden.has(button.dataset.hides)));
  change({ hidden });
});

function isVisible(series) {
  return !state.hidden.has(`side${series.side}`) && !state.hidden.has(quantityOf(series));
}

function draw(panel) {
  const { svg, spec, isMain } = panel;
  const width = svg.clientWidth || 600;
  const height = svg.clientHeight || 200;
  const bottom = height - (isMain ? 44 : 20);
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  const [first, last] = [Math.max(0, Math.floor(state.view[0])), Math.min(count - 1, Math.ceil(state.view[1]))];
  const visible = spec.series.filter(isVisible);
  const values = visible.flatMap((s) => columns[s.key].slice(first, last + 1));
  if (spec.isOutput) values.push(page.target);
  if (spec.band) values.push(...spec.band);
  const y = spec.log ? logScale(values, bottom, 10, spec.share) : shareScale(bottom, 10);
  const x = (i) => LEFT + ((i - state.view[0]) / (state.view[1] - state.view[0])) * (width - LEFT - RIGHT);
  Object.assign(panel, { x, y, width, height });
  const inside = drawn("g", { "clip-path": `url(#${panel.clip})` });
  for (const series of visible) inside.append(...curve(series, x, y, first, last));
  panel.pointer = drawn("g", { class: "pointer" });
  svg.replaceChildren(clipping(panel), ...background(panel), ...depthAxis(panel), inside, panel.pointer);
  point(panel);
}

function clipping({ clip, y, width }) {
  const made = drawn("clipPath", { id: clip });
  made.append(drawn("rect", { x: LEFT, y: y.top - 6, width: width - LEFT - RIGHT, height: y.bottom - y.top + 12 }));
  return made;
}

function background({ spec, y, width }) {
  const made = [];
  const line = (at, kind) => drawn("line", { class: kind, x1: LEFT, x2: width - RIGHT, y1: at, y2: at });
  if (spec.band) {
    const [low, high] = spec.band.map((value) => clamp(y.place(value), y.top, y.bottom));
    made.push(drawn("rect", { class: "band", x: LEFT, width: width - LEFT - RIGHT, y: high, height: low - high }));
  }
  for (const tick of y.ticks) {
    made.push(line(tick.at, "grid"), drawn("text", { class: "tick y", x: LEFT - 6, y: tick.at }, tick.label));
  }
  if (spec.isOutput) made.push(line(y.place(page.target), "target"));
  return made;
}

function depthAxis(panel) {
  const { x, y, width } = panel;
  const made = depthTicks(state.view, width - LEFT - RIGHT).map((n) =>
    drawn("text", { class: "tick x", x: x(n - 1), y: y.bottom + 15 }, n),
  );
  if (!panel.isMain) return made;
  for (const [number, run] of moduleRuns(state.view, width - LEFT - RIGHT).entries()) {
    const [from, to] = [Math.max(LEFT, x(run.first - 0.5)), Math.min(width - RIGHT, x(run.last + 0.5))];
    const band = { class: `module ${number % 2 ? "odd" : "even"}`, x: from, y: y.bottom + 20, width: to - from, height: 18 };
    made.push(drawn("rect", band), ...moduleLabel(run, from, to, y.bottom + 29));
  }
  return [...made, ...healthStrip(panel)];
}

// As much of a module's name as there is room for.
function moduleLabel(run, from, to, at) {
  const most = Math.floor((to - from - 4) / 6.4);
  const fitting = run.labels.find((label) => label.length <= most);
  if (!fitting && most < 3) return [];
  const label = fitting ?? `${run.labels[1].slice(0, most - 1)}…`;
  const made = drawn("text", { class: "module-label", x: (from + to) / 2, y: at }, label);
  made.append(drawn("title", {}, run.key));
  return [made];
}

// Under the axis, where the layers are that do not fare well.
function healthStrip({ x, y, width }) {
  const made = [];
  columns.health.forEach((health, i) => {
    const [from, to] = [Math.max(LEFT, x(i - 0.5)), Math.min(width - RIGHT, x(i + 0.5))];
    if (to <= from || (health !== "fault" && health !== "affected")) return;
    made.push(drawn("rect", { class: health, x: from, y: y.bottom + 39, width: Math.max(to - from, 1.5), height: 4 }));
  });
  return made;
}

// A line through what was measured; what is off the scale (0, infinity, NaN) is marked at its edge.
function curve(series, x, y, first, last) {
  const values = columns[series.key];
  let path = "";
  let marks = "";
  let edges = "";
  let pen = "M";
  for (let i = first; i <= last; i += 1) {
    const value = values[i];
    if (value === null) continue;
    const at = x(i).toFixed(1);
    if (Number.isNaN(value)) {
      edges += `M${at - 4} ${y.top - 4}l8 8m0 -8l-8 8`;
      pen = "M";
      continue;
    }
    const place = clamp(y.place(value), y.top, y.bottom);
    path += `${pen}${at} ${place.toFixed(1)}`;
    marks += `M${at} ${place.toFixed(1)}h.01`; // on paper a line without length has no ends
    if (value === Infinity) edges += `M${at - 4} ${y.top + 3}l4 -6l4 6z`;
    if (value === 0 && y.place(0) === Infinity) edges += `M${at - 4} ${y.bottom - 6}l4 6l4 -6z`;
    pen = "L";
  }
  const kind = `side${series.side}${series.dashed ? " dashed" : ""}`;
  const room = x(1) - x(0);
  const density = room < DENSE ? " dense" : "";
  const made = [drawn("path", { class: `curve-line ${kind}${density}`, d: path || "M0 0" })];
  if (density || (room > SPARSE && !series.dashed)) made.push(drawn("path", { class: `marks ${kind}${density}`, d: marks || "M0 0" }));
  if (edges) made.push(drawn("path", { class: `edges ${kind}`, d: edges }));
  return made;
}

// The lines at the layer that is pointed at and at the one that is kept.
function point(panel) {
  const { pointer, spec, x, y } = panel;
  pointer.replaceChildren();
  for (const [kind, i] of [["kept", state.kept], ["cursor", state.cursor]]) {
    if (i < Math.ceil(state.view[0]) || i > state.view[1]) continue;
    pointer.append(drawn("line", { class: kind, x1: x(i), x2: x(i), y1: y.top, y2: y.bottom }));
    if (kind === "kept") continue;
    for (const series of spec.series.filter(isVisible)) {
      const value = columns[series.key][i];
      if (value === null || Number.isNaN(value)) continue;
      const at = clamp(y.place(value), y.top, y.bottom);
      pointer.append(drawn("circle", { class: `side${series.side}`, cx: x(i), cy: at, r: 4.5 }));
    }
  }
}

onChange((changed) => {
  if (changed.has("view") || changed.has("hidden")) panels.forEach(draw);
  else if (changed.has("cursor") || changed.has("kept")) panels.forEach(point);
});
