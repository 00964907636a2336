// Curves and every run: the charts below the filter.

const SINGLES = 12; // up to so many runs, or lines of theory, are drawn one by one

/** The horizontal axis of steps: logarithmic, with step 0 at a half. */
function stepAxis(last, title = "step") {
  const values = [0.5];
  for (let step = 1; step <= Math.max(1, last); step *= 10) values.push(step);
  const labelExpr = "datum.value < 1 ? '0' : format(datum.value, '~s')";
  return {
    field: "step",
    type: "quantitative",
    title,
    scale: { type: "log", domain: [0.5, Math.max(2, last)], nice: false },
    axis: { values, labelExpr, labelOverlap: "greedy" },
  };
}

/** Medians and quartile bands of the selection, single curves of a few runs, theory. */
function curves(app) {
  const { data, colour, facet: panel } = app;
  const candidates = [app.measure, ...data.measures];
  const measure = candidates.find((m) => m.curve in data.curves);
  const nothing = (note) => ({ note, rows: [], spec: null });
  if (!measure) return nothing("No curves are kept of these runs.");
  const values = data.curves[measure.curve];
  const known = app.runs.filter((run) => values[run].some((value) => !Number.isNaN(value)));
  if (!known.length) return nothing(`The ${measure.label} is not known of these runs at any step.`);

  const levels = present(panel, known);
  const shown = levels.slice(0, PANELS);
  const drawn = known.filter((run) => shown.includes(levelOf(panel, run)));
  const lines = linesOf(app, values, drawn);
  const theory = theoryOf(app, measure, drawn);
  const rows = [...lines, ...theory];
  const scale = scaleOf(
    rows.flatMap((row) => [row.low, row.mid, row.high]).filter(Number.isFinite),
  );
  const inside = (value) => Math.min(scale.top, Math.max(scale.low, value));
  for (const row of rows) {
    row.step = Math.max(0.5, row.step);
    row.y = row.mid === Infinity ? null : inside(row.mid); // null: a line ends there
    if (row.kind === "band") [row.low, row.high] = [inside(row.low), inside(row.high)];
  }

  const y = vertical(scale, measure.label);
  const place = { x: stepAxis(data.grid.at(-1)), y, color: inColour(colour) };
  const tooltip = { field: "tip" };
  const layer = [
    {
      transform: onKind("band"),
      mark: { type: "area", opacity: 0.2 },
      encoding: { ...place, y: { ...y, field: "low" }, y2: { field: "high" }, tooltip },
    },
    {
      transform: onKind("single"),
      mark: { type: "line", strokeWidth: 1, opacity: 0.9 },
      encoding: { ...place, detail: { field: "run" } },
    },
    {
      transform: onKind("single"),
      mark: { type: "point", filled: true, size: 26, opacity: 1 },
      encoding: { ...place, tooltip: { field: "run" } },
    },
    {
      transform: onKind("band"),
      mark: { type: "line", strokeWidth: 2.2 },
      encoding: { ...place, tooltip },
    },
    {
      transform: onKind("theory"),
      mark: { type: "line", strokeDash: [5, 3], strokeWidth: 1.4, color: css("--text") },
      encoding: { x: place.x, y, detail: { field: "line" }, tooltip },
    },
  ];
  const notes = [
    `Median and quartile bands of the ${measure.label}; a run that ended keeps its last value, a ` +
      "run that diverged counts as infinite from there on.",
    ...(drawn.length <= SINGLES ? ["Thin: single runs."] : []),
    ...(theory.length ? ["Dashed: theory."] : []),
    ...knownOf(known.length, app.runs.length),
    ...leftOut(levels.length),
  ];
  const names = shown.map((level) => panelName(panel, level));
  const size = panelSize(names.length, 200, 900);
  return { note: notes.join(" "), rows, spec: facet(names, size, 240, layer) };
}

/** Bands of each colour in each panel; of a few runs their single curves too. */
function linesOf(app, values, drawn) {
  const { data, colour, facet: panel } = app;
  const rows = [];
  for (const { levels, runs } of group(drawn, [colour, panel])) {
    const keys = [colour, panel].map((key, i) => [key, levels[i]]);
    const tip = [...app.describe(keys), `median and quartiles of ${runs.length} runs`].join("\n");
    const where = { panel: panelName(panel, levels[1]), colour: colour.levels[levels[0]] };
    if (runs.length > 1) {
      for (const row of band(data, values, runs))
        rows.push({ ...row, ...where, kind: "band", tip });
    }
    for (const run of drawn.length <= SINGLES ? runs : []) {
      for (const row of single(data, values, run))
        rows.push({ ...row, ...where, kind: "single", run });
    }
  }
  return rows;
}

/** What theory says of a measure in each panel: its distinct curves, their median if many. */
function theoryOf({ data, facet: panel }, measure, drawn) {
  const said = data.curves[`theory.${measure.curve}`];
  const floors = data.floors[measure.name] || [];
  const rows = [];
  for (const { levels, runs } of group(drawn, [panel])) {
    const distinct = new Map();
    for (const run of runs) {
      let curve = said && said[run];
      if (!curve || !curve.some((value) => value > 0)) curve = data.grid.map(() => floors[run]);
      if (curve.some((value) => value > 0)) distinct.set(Array.from(curve, format).join(), curve);
    }
    let curves = [...distinct.values()];
    if (curves.length > SINGLES) {
      const middle = (i) => quartiles(curves.map((curve) => curve[i])).mid;
      curves = [data.grid.map((_, i) => middle(i))];
    }
    curves.forEach((curve, line) =>
      data.grid.forEach((step, i) => {
        const tip = `theory: ${format(curve[i])}`;
        const where = { panel: panelName(panel, levels[0]), line, step, mid: curve[i] };
        if (curve[i] > 0) rows.push({ ...where, kind: "theory", tip });
      }),
    );
  }
  return rows;
}

/** Every run of the selection: its measure against its steps. */
function every({ data, colour, measure, runs }) {
  const steps = data.measures.find((m) => m.name === "metrics.steps_run");
  const known = runs.filter((run) => !Number.isNaN(measure.values[run]));
  const scale = scaleOf(known.map((run) => measure.values[run]));
  const rows = known.map((run) => ({
    run,
    step: Math.max(0.5, (steps && steps.values[run]) || 0),
    y: scale.place(measure.values[run]),
    colour: colour.levels[levelOf(colour, run)],
    infinite: measure.values[run] === Infinity,
  }));
  const last = rows.reduce((most, row) => Math.max(most, row.step), 2);
  const place = {
    x: stepAxis(last, "steps that the run took"),
    y: vertical(scale, measure.label),
    color: inColour(colour),
    tooltip: { field: "run" },
  };
  const style = { opacity: rows.length > 500 ? 0.5 : 0.85, aria: false };
  const layer = [
    {
      transform: [{ filter: "!datum.infinite" }],
      mark: { type: "point", filled: true, size: 40, ...style },
      encoding: { ...place, shape: inShape(colour) },
    },
    {
      transform: [{ filter: "datum.infinite" }],
      mark: cross(14, style),
      encoding: place,
    },
  ];
  const notes = [
    "Hover over a run for its id, settings and verdicts; ×: diverged, undefined or failed.",
    ...knownOf(known.length, runs.length),
  ];
  return { note: notes.join(" "), rows, spec: facet([""], panelSize(1, 200, 1400), 260, layer) };
}
