// The table of the selection, and that of the paired effects.

const ROWS = 100; // of the table, at first

const $ = (id) => document.getElementById(id);
const make = (tag, text = "", properties = {}) =>
  Object.assign(document.createElement(tag), { textContent: text }, properties);
const counted = (count) => `${count} run${count === 1 ? "" : "s"}`;

/** The columns of the table: title, class of the cells, and a run's value and text. */
function columnsOf(app) {
  const { data } = app;
  const keys = data.keys.map((key) => ({
    title: key.name,
    value: (run) => key.codes[run],
    text: (run) => key.values[key.codes[run]],
  }));
  const measures = data.measures.map((measure) => ({
    title: measure.label,
    kind: "number",
    value: (run) => measure.values[run],
    text: (run) => format(measure.values[run]),
  }));
  const texts = [
    ["outcome", app.outcome],
    ["run id", (run) => data.id[run], "id"],
    ["theory", (run) => app.verdict(run) || "–"],
  ].map(([title, text, kind]) => ({ title, kind, value: text, text }));
  return [...keys, ...measures, ...texts];
}

/** Whether a value comes before another one, as a number for `sort`; unknown numbers come last. */
function compare(a, b, direction) {
  if (Number.isNaN(a) || Number.isNaN(b)) return Number.isNaN(a) - Number.isNaN(b);
  return a === b ? 0 : direction * (a < b ? -1 : 1);
}

/** The runs of the selection, sorted: `sorting` has the number of a column and a direction. */
function drawTable(app, sorting, length, sort) {
  const columns = columnsOf(app);
  const { value } = columns[sorting.column];
  const runs = [...app.runs].sort((a, b) => compare(value(a), value(b), sorting.direction));
  const head = make("tr");
  columns.forEach(({ title, kind = "" }, column) => {
    const cell = make("th", "", { className: kind });
    const up = sorting.direction > 0;
    const sorted = column === sorting.column;
    let arrow = "";
    if (sorted) {
      cell.setAttribute("aria-sort", up ? "ascending" : "descending");
      arrow = up ? "\u00a0▲" : "\u00a0▼";
    }
    const direction = sorted ? -sorting.direction : 1;
    cell.append(make("button", title + arrow, { onclick: () => sort({ column, direction }) }));
    head.append(cell);
  });
  const lines = runs.slice(0, length).map((run) => {
    const line = make("tr");
    line.append(
      ...columns.map(({ text, kind = "" }) => make("td", text(run), { className: kind })),
    );
    return line;
  });
  const [top, body] = [make("thead"), make("tbody")];
  top.append(head);
  body.append(...lines);
  $("table").replaceChildren(top, body);
  const left = runs.length - lines.length;
  const first = left ? `The first ${lines.length} of ` : "";
  $("table-note").textContent = `${first}${counted(runs.length)}; a click on a title sorts them.`;
  $("more").hidden = !left;
  $("more").textContent = `show ${Math.min(left, 5 * ROWS)} more`;
}

const EFFECT = ["key", "where", "first", "second"];
const NUMBERS = ["ratio", "interval", "wins", "ties", "losses", "n"];

/** What each key does, over all runs. */
function drawEffects({ data }, measure) {
  $("effects-note").textContent = data.effects.length
    ? `Pairs of runs that share all but one key. Ratio: the median of the ${measure.label} of ` +
      "the first over that of the second; below 1 the first comes nearer; bold if the 95 % " +
      "interval of the median leaves 1 out. Wins: pairs in which the first has less. Where n is " +
      "0 there are no pairs, and the ratio is that of the medians."
    : "There are no pairs of runs that share all but one key.";
  if (!data.effects.length) return;
  const head = make("tr");
  head.append(...EFFECT.map((title) => make("th", title)));
  head.append(...NUMBERS.map((title) => make("th", title, { className: "number" })));
  const lines = data.effects.map((effect) => {
    const known = effect.low !== null;
    const said = {
      ...effect,
      where: effect.by ? `${effect.by} = ${effect.where}` : "all",
      ratio: format(effect.ratio),
      interval: known ? `${format(effect.low)} to ${format(effect.high)}` : "–",
    };
    const line = make("tr");
    line.append(...EFFECT.map((name) => make("td", said[name])));
    line.append(...NUMBERS.map((name) => make("td", said[name], { className: "number" })));
    const [low, high] = [effect.low, effect.high].map((end) => Number((end ?? NaN).toPrecision(4)));
    const sure = high < 1 || low > 1; // as shown: not by the fifth digit
    line.cells[EFFECT.length].classList.toggle("sure", sure);
    return line;
  });
  $("effects").replaceChildren(head, ...lines);
}
