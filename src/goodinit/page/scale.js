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
  const ticks = [];
  for (let n = Math.ceil((low + 1) / step) * step; n <= high + 1; n += step) if (n >= 1) ticks.push(n);
  if (ticks[0] !== 1 && low < 0 && step < 2 * ticks[0]) ticks.unshift(1);
  return ticks;
}

// Runs of layers in the same module, as deep in the tree as leaves room for their names.
function moduleRuns([low, high], width) {
  const first = Math.max(0, Math.ceil(low));
  const last = Math.min(count - 1, Math.floor(high));
  const room = Math.max(2, Math.floor(width / 64));
  const paths = [];
  for (let i = first; i <= last; i += 1) paths.push(names[i].replace(/\.weight$/, "").split("."));
  const deepest = Math.max(0, ...paths.map((path) => path.length));
  let runs = [];
  for (let depth = 1; depth <= deepest; depth += 1) {
    const finer = runsAt(paths, depth, first);
    if (finer.length > room) break;
    runs = finer;
  }
  return runs;
}

function runsAt(paths, depth, first) {
  const runs = [];
  paths.forEach((path, i) => {
    const key = path.slice(0, depth).join(".");
    const run = runs[runs.length - 1];
    if (run && run.key === key) run.last = first + i;
    else runs.push({ key, label: path[Math.min(depth, path.length) - 1], first: first + i, last: first + i });
  });
  return runs;
}
