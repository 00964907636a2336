"use strict";
// The runs as the page knows them, and what is computed from them: levels, medians, curves.

const INFINITE = 1e300; // at least this is infinity, see columns.py
const [DECADE, UNKNOWN, INFINITY, ZERO] = [1000, 30000, 20000, -20000]; // see data.py
const PANELS = 12; // as many panels are drawn

async function inflate(id) {
  const packed = Uint8Array.from(atob(document.getElementById(id).textContent), (c) =>
    c.charCodeAt(0),
  );
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).text();
}

/** The data of the page with its curves decoded: measure → one array of values for each run. */
function decode(data) {
  const length = data.grid.length;
  for (const [name, steps] of Object.entries(data.curves)) {
    const curves = [];
    for (let start = 0; start < steps.length; start += length) {
      const curve = new Float64Array(length);
      for (let i = 0, code = 0; i < length; i++) {
        code += steps[start + i];
        if (code === UNKNOWN) curve[i] = NaN;
        else if (code === INFINITY) curve[i] = Infinity;
        else curve[i] = code === ZERO ? 0 : 10 ** (code / DECADE);
      }
      curves.push(curve);
    }
    data.curves[name] = curves;
  }
  for (const measure of data.measures)
    measure.values = measure.values.map((v) => (v === null ? NaN : v >= INFINITE ? Infinity : v));
  // "" is the key of a choice left empty: all runs are at its one level.
  const all = {
    name: "",
    values: [""],
    codes: data.id.map(() => 0),
    levels: [""],
    level: [0],
    colours: [""],
  };
  data.key = new Map([all, ...data.keys].map((key) => [key.name, key]));
  return data;
}

/** The level of a run for a key. */
const levelOf = (key, run) => key.level[key.codes[run]];

/** A quantile by linear interpolation of sorted values, which may end in infinities. */
function quantile(sorted, q) {
  const place = q * (sorted.length - 1);
  const below = Math.floor(place);
  const part = place - below;
  if (part === 0) return sorted[below];
  if (sorted[below + 1] === Infinity) return Infinity;
  return sorted[below] + part * (sorted[below + 1] - sorted[below]);
}

/** Quartiles of the values that are known, null if there are none. */
function quartiles(values) {
  const sorted = Float64Array.from(values.filter((v) => !Number.isNaN(v))).sort();
  if (sorted.length === 0) return null;
  return {
    low: quantile(sorted, 0.25),
    mid: quantile(sorted, 0.5),
    high: quantile(sorted, 0.75),
    n: sorted.length,
  };
}

/** Runs by their levels for the keys: a list of {levels, runs}. */
function group(runs, keys) {
  const groups = new Map();
  for (const run of runs) {
    const levels = keys.map((key) => levelOf(key, run));
    const name = levels.join();
    if (!groups.has(name)) groups.set(name, { levels, runs: [] });
    groups.get(name).runs.push(run);
  }
  return [...groups.values()];
}

/** The share of runs for which a test holds. */
const share = (runs, test) => runs.filter(test).length / runs.length;

/** Values of a curve at the grid, of one run: a run that diverged is infinite from its end on. */
function curveAt(data, values, run, i) {
  return data.lost[run] && data.grid[i] >= data.ends[run] ? Infinity : values[run][i];
}

/** Median and quartiles of the runs at each step of the grid, where any is known. */
function band(data, values, runs) {
  const rows = [];
  for (let i = 0; i < data.grid.length; i++) {
    const found = quartiles(runs.map((run) => curveAt(data, values, run, i)));
    if (found) rows.push({ step: data.grid[i], ...found });
  }
  return rows;
}

/** One run's curve up to its last record. */
function single(data, values, run) {
  const rows = [];
  for (let i = 0; i < data.grid.length; i++) {
    rows.push({ step: Math.min(data.grid[i], data.ends[run]), mid: values[run][i] });
    if (data.grid[i] >= data.ends[run]) break;
  }
  return rows.filter((row) => Number.isFinite(row.mid));
}

/** A number in four digits. */
function format(value) {
  if (value == null || Number.isNaN(value)) return "–";
  if (value >= INFINITE) return "∞";
  if (value !== 0 && (Math.abs(value) < 1e-3 || Math.abs(value) >= 1e6))
    return value
      .toExponential(2)
      .replace(/\.?0+e/, "e")
      .replace("e+", "e");
  return String(Number(value.toPrecision(4)));
}

const percent = (part) => `${Math.round(100 * part)} %`;

/** A vertical scale for values of which some may be infinite: its kind, its ends, its ticks, and
 * `place`, which puts a value on it. What is infinite stands at the top, beyond the numbers. */
function scaleOf(values) {
  const finite = values.filter(Number.isFinite).sort((a, b) => a - b);
  const infinite = values.includes(Infinity);
  const positive = finite.filter((value) => value > 0);
  const log = positive.length > 1 && positive.length >= 0.8 * finite.length;
  const spans = log && positive.at(-1) > 10 * positive[0];
  const ticks = spans ? logTicks(positive[0], positive.at(-1)) : linearTicks(finite);
  const [low, high] = [ticks[0], ticks.at(-1)];
  let top = high;
  if (infinite) top = spans ? high * (high / low) ** 0.12 : high + 0.12 * (high - low);
  const place = (value) => (value === Infinity ? top : Math.max(low, value));
  const type = spans ? "log" : "linear";
  return { type, low, top, place, ticks: infinite ? [...ticks, top] : ticks, infinite };
}

const rounded = (value) => Number(value.toPrecision(9));

/** Powers of ten around all values, about six of them. */
function logTicks(least, most) {
  const first = Math.floor(Math.log10(least) + 1e-9);
  const decades = Math.ceil(Math.log10(most) - 1e-9) - first;
  const stride = Math.ceil(decades / 6);
  const count = Math.ceil(decades / stride);
  if (count === 1) return [1, 2, 5, 10].map((part) => rounded(part * 10 ** first));
  return Array.from({ length: count + 1 }, (_, i) => rounded(10 ** (first + i * stride)));
}

/** Round numbers around all sorted values, about five of them. */
function linearTicks(finite) {
  const [least, most] = finite.length ? [finite[0], finite.at(-1)] : [0, 1];
  const span = Math.max(most - least, 1e-4 * Math.abs(most)) || 1;
  const unit = 10 ** Math.floor(Math.log10(span / 4));
  const size = unit * [1, 2, 5, 10].find((factor) => span <= 5 * factor * unit);
  const first = Math.floor(least / size);
  const count = Math.max(1, Math.ceil(most / size) - first);
  return Array.from({ length: count + 1 }, (_, i) => rounded((first + i) * size));
}
