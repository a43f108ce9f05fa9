// Pointing, keeping, zooming and panning: by mouse, by finger and by keyboard.
const area = byId("panels");
const FEWEST = Math.min(count, 4);

function setView(low, high) {
  const span = clamp(high - low, FEWEST, count);
  const from = clamp(low, -0.5, count - 0.5 - span);
  if (from === state.view[0] && from + span === state.view[1]) return;
  change({ view: [from, from + span] });
}

function zoom(factor, around = (state.view[0] + state.view[1]) / 2) {
  const [low, high] = state.view;
  const span = clamp((high - low) * factor, FEWEST, count);
  const share = (around - low) / (high - low);
  setView(around - share * span, around + (1 - share) * span);
}

function pan(share) {
  const [low, high] = state.view;
  setView(low + share * (high - low), high + share * (high - low));
}

function showAll() {
  setView(-0.5, count - 0.5);
}

// The layer by its number, in view: the view follows.
function pointAt(i) {
  const cursor = clamp(i, 0, count - 1);
  const [low, high] = state.view;
  if (cursor < low) setView(cursor - 0.5, cursor - 0.5 + high - low);
  if (cursor > high) setView(cursor + 0.5 - (high - low), cursor + 0.5);
  change({ cursor });
}

function panelAt(event) {
  const svg = event.target.closest?.("svg.panel");
  return panels.find((panel) => panel.svg === svg);
}

// Place in layers, not rounded.
function depthAt(panel, event) {
  const share = (event.clientX - panel.svg.getBoundingClientRect().left - LEFT) / (panel.width - LEFT - RIGHT);
  return state.view[0] + clamp(share, 0, 1) * (state.view[1] - state.view[0]);
}

function layerAt(depth) {
  return clamp(Math.round(depth), Math.max(0, Math.ceil(state.view[0])), Math.min(count - 1, Math.floor(state.view[1])));
}

let drag = null;

area.addEventListener("pointerdown", (event) => {
  const panel = panelAt(event);
  if (!panel || event.button !== 0) return;
  drag = { panel, from: depthAt(panel, event), x: event.clientX, view: state.view, moved: false, pans: event.shiftKey };
  drag.scrubs = event.pointerType !== "mouse";
});

addEventListener("pointermove", (event) => {
  if (!drag || drag.scrubs) return;
  drag.moved ||= Math.abs(event.clientX - drag.x) > 4;
  if (!drag.moved) return;
  if (drag.pans) {
    const layers = ((drag.x - event.clientX) / (drag.panel.width - LEFT - RIGHT)) * (drag.view[1] - drag.view[0]);
    setView(drag.view[0] + layers, drag.view[1] + layers);
  } else showRange(drag.panel, drag.from, depthAt(drag.panel, event));
});

function showRange(panel, from, to) {
  const [left, right] = [Math.min(from, to), Math.max(from, to)].map(panel.x);
  panel.svg.querySelector(".range")?.remove();
  panel.svg.append(drawn("rect", { class: "range", x: left, width: right - left, y: panel.y.top, height: panel.y.bottom - panel.y.top }));
}

addEventListener("pointerup", (event) => {
  if (!drag) return;
  const { panel, from, moved, pans } = drag;
  drag = null;
  panel.svg.querySelector(".range")?.remove();
  if (!moved) {
    if (panelAt(event) === panel) change({ kept: layerAt(depthAt(panel, event)) });
    if (event.pointerType !== "mouse") card.scrollIntoView({ block: "nearest" });
  } else if (!pans) {
    const to = depthAt(panel, event);
    setView(Math.min(from, to), Math.max(from, to));
  }
});

addEventListener("pointercancel", () => {
  drag = null;
});

area.addEventListener("pointermove", (event) => {
  const panel = panelAt(event);
  if (!panel || drag?.moved) return;
  change({ cursor: layerAt(depthAt(panel, event)) });
  showTip(event.clientX, event.clientY);
});

area.addEventListener("pointerleave", () => {
  hideTip();
  change({ cursor: -1 });
});

area.addEventListener("dblclick", showAll);

area.addEventListener(
  "wheel",
  (event) => {
    const panel = panelAt(event);
    const isZoomed = state.view[1] - state.view[0] < count;
    if (panel && (event.ctrlKey || event.metaKey)) {
      event.preventDefault(); // or the browser zooms the page
      zoom(1.0025 ** event.deltaY, depthAt(panel, event));
    } else if (panel && isZoomed && Math.abs(event.deltaX) > Math.abs(event.deltaY)) {
      event.preventDefault(); // or it goes back in its history
      pan(event.deltaX / 600);
    }
  },
  { passive: false },
);

const KEYS = {
  ArrowRight: () => pointAt(state.cursor + 1),
  ArrowUp: () => pointAt(state.cursor + 1),
  ArrowLeft: () => pointAt(state.cursor - 1),
  ArrowDown: () => pointAt(state.cursor - 1),
  PageUp: () => pointAt(state.cursor + Math.ceil(count / 20)),
  PageDown: () => pointAt(state.cursor - Math.ceil(count / 20)),
  Home: () => pointAt(0),
  End: () => pointAt(count - 1),
  Enter: () => change({ kept: state.cursor }),
  Escape: () => change({ kept: -1 }),
  "+": () => zoom(0.5, Math.max(state.cursor, 0)),
  "=": () => zoom(0.5, Math.max(state.cursor, 0)),
  "-": () => zoom(2, Math.max(state.cursor, 0)),
  0: showAll,
};

area.addEventListener("keydown", (event) => {
  const action = KEYS[event.key];
  if (!action || event.target !== area || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  action();
  showTipAtCursor();
});

area.addEventListener("focus", () => {
  if (state.cursor >= 0 || !area.matches(":focus-visible")) return;
  pointAt(Math.max(state.kept, 0));
  showTipAtCursor();
});

area.addEventListener("blur", () => {
  hideTip();
  change({ cursor: -1 });
});

const BUTTONS = {
  "zoom-in": () => zoom(0.5, state.kept >= 0 ? clamp(state.kept, ...state.view) : undefined),
  "zoom-out": () => zoom(2),
  "zoom-reset": showAll,
  "pan-left": () => pan(-0.5),
  "pan-right": () => pan(0.5),
};
for (const [id, action] of Object.entries(BUTTONS)) byId(id).addEventListener("click", action);

// aria-disabled, not disabled: a button that is pressed by keyboard keeps the focus.
function showWhatIsPossible() {
  const [low, high] = state.view;
  const isAll = high - low >= count;
  const impossible = { "zoom-in": high - low <= FEWEST, "zoom-out": isAll, "zoom-reset": isAll };
  impossible["pan-left"] = low <= -0.5;
  impossible["pan-right"] = high >= count - 0.5;
  for (const [id, is] of Object.entries(impossible)) byId(id).setAttribute("aria-disabled", String(is));
}

onChange((changed) => {
  if (changed.has("view")) showWhatIsPossible();
});
