// From values to heights, and the marks on the axes.
const plural = (n, word) => `${n} ${word}${n === 1 ? "" : "s"}`;

function power(exponent) {
  const digits = [...String(Math.abs(exponent))].map((digit) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[digit]).join("");
  return `10${exponent < 0 ? "⁻" : ""}${digits}`;
}

function plainOrPower(value) {
  const exponent = Math.round(Math.log10(value));
  const isPower = Math.abs(Math.log10(value) - exponent) < 1e-9;
  return isPower && Math.abs(exponent) > 3 ? power(exponent) : String(Number(value.toPrecision(2)));
}

// Logarithmic, at least a factor of ten high: rounding errors around 1 look like what they are.
function logScale(values, bottom, top, isShare) {
  let low = Infinity;
  let high = -Infinity;
  for (const value of values) {
    if (value > 0 && Number.isFinite(value)) {
      low = Math.min(low, Math.log10(value));
      high = Math.max(high, Math.log10(value));
    }
  }
  if (low > high) low = high = 0;
  const pad = Math.max((high - low) * 0.06, (1 - (high - low)) / 2, 0.05);
  [low, high] = [low - pad, high + pad];
  const place = (value) => bottom - ((Math.log10(value) - low) / (high - low)) * (bottom - top);
  const label = (value) => (isShare ? `${plainOrPower(100 * value)} %` : plainOrPower(value));
  return { place, top, bottom, ticks: logTicks(low, high).map((value) => ({ at: place(value), label: label(value) })) };
}

function logTicks(low, high) {
  const step = Math.ceil((high - low) / 6);
  const decades = [];
  for (let e = Math.ceil(low / step) * step; e <= high; e += step) decades.push(10 ** e);
  if (decades.length > 2) return decades;
  const between = [];
  for (let e = Math.floor(low); e <= high; e += 1) {
    for (const digit of [1, 2, 5]) between.push(digit * 10 ** e);
  }
  return between.filter((value) => Math.log10(value) >= low && Math.log10(value) <= high);
}

// Shares, from nothing to all.
function shareScale(bottom, top) {
  const place = (value) => bottom - value * (bottom - top);
  return { place, top, bottom, ticks: [0, 0.5, 1].map((value) => ({ at: place(value), label: `${100 * value} %` })) };
}

// Layers' numbers under the axis: whole, round and far enough apart.
function depthTicks([low, high], width) {
  const rough = ((high - low) * 56) / width;
  const size = 10 ** Math.floor(Math.log10(Math.max(rough, 1)));
  const step = [1, 2, 5, 10].map((n) => n * size).find((n) => n >= rough);
  const from = step === 2 ? 1 : 0; // 1, 3, 5, …
  const ticks = [];
  for (let n = Math.ceil((low + 1 - from) / step) * step + from; n <= high + 1; n += step) if (n >= 1) ticks.push(n);
  if (ticks[0] !== 1 && low < 0) ticks.unshift(1);
  return ticks;
}

// Runs of layers in the same module, as deep in the tree as leaves room for their names.
function moduleRuns([low, high], width) {
  const first = Math.max(0, Math.ceil(low));
  const last = Math.min(count - 1, Math.floor(high));
  const room = Math.max(2, Math.floor(width / 68));
  const paths = [];
  for (let i = first; i <= last; i += 1) paths.push(names[i].replace(/\.weight$/, "").split("."));
  const deepest = paths.reduce((most, path) => Math.max(most, path.length), 0);
  let runs = [];
  for (let depth = 1; depth <= deepest; depth += 1) {
    const finer = runsAt(paths, depth, first);
    if (finer.length > room) return runs.length > 3 ? runs : grouped(finer, room);
    runs = finer;
  }
  return runs;
}

// Neighbours together, as few as make room: "0 – 12".
function grouped(runs, room) {
  const size = Math.ceil(runs.length / room);
  const groups = [];
  for (let i = 0; i < runs.length; i += size) {
    const [from, to] = [runs[i], runs[Math.min(i + size, runs.length) - 1]];
    const labels = from === to ? from.labels : from.labels.map((label, n) => `${label}–${to.labels[n]}`);
    groups.push({ key: `${from.key} to ${to.key}`, labels, first: from.first, last: to.last });
  }
  return groups;
}

function runsAt(paths, depth, first) {
  const shared = paths.reduce((n, path) => { while (path.slice(0, n).join() !== paths[0].slice(0, n).join()) n -= 1; return n; }, depth - 1);
  const runs = [];
  paths.forEach((path, i) => {
    const key = path.slice(0, depth).join(".");
    const run = runs[runs.length - 1];
    if (run && run.key === key) run.last = first + i;
    else runs.push({ key, labels: labelsOf(path.slice(0, depth), shared), first: first + i, last: first + i });
  });
  return runs;
}

// What to call a module, the longest first: without what all have in common, and its own name alone.
function labelsOf(path, shared) {
  return [path.slice(Math.min(shared, path.length - 1)).join("."), path[path.length - 1]];
}
