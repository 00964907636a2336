// Which setting wins: median and quartiles of the measure over across, colour and panels.

function winners(app) {
  const { x, colour, facet: panel, measure } = app;
  const levels = present(panel, app.every);
  const shown = levels.slice(0, PANELS);
  const groups = summarize(app, shown);
  const floors = floorsOf(app, shown);
  const limits = shown.flatMap((level) => limitOf(app, level));
  const scale = scaleOf([
    ...groups.flatMap((g) => [g.low, g.mid, g.high]),
    ...floors.map((f) => f.y),
  ]);
  const rows = groups.map((row) => ({
    ...row,
    y: scale.place(row.mid),
    low: scale.place(row.low),
    high: scale.place(row.high),
  }));

  const columns = present(x, app.every);
  const drawn = colour.levels.filter((level) => rows.some((row) => row.colour === level));
  const y = vertical(scale, measure.label);
  const tooltip = { field: "tip" };
  const place = {
    x: levelAxis("x", x, columns),
    xOffset: { field: "colour", ...ORDINAL, scale: { domain: drawn } },
    color: inColour(colour),
    opacity: { condition: { test: "datum.faded", value: 0.18 }, value: 1 },
    tooltip,
  };
  const left = { ...place.x, bandPosition: 0 };
  const layer = [
    {
      transform: onKind("floor"),
      mark: { type: "rule", strokeDash: [5, 3], strokeWidth: 1.5 },
      encoding: { x: left, x2: { field: "x", bandPosition: 1 }, y, tooltip },
    },
    {
      transform: onKind("limit"),
      mark: { type: "rule", strokeDash: [2, 2], strokeWidth: 1.5 },
      encoding: { x: left, tooltip },
    },
    {
      transform: onKind("setting"),
      mark: { type: "rule", strokeWidth: 2.5, cursor: "pointer" },
      encoding: { ...place, y: { ...y, field: "low" }, y2: { field: "high" } },
    },
    {
      transform: onKind("setting", " && !datum.infinite"),
      mark: { type: "point", filled: true, size: 64, opacity: 1, cursor: "pointer" },
      encoding: { ...place, y, shape: inShape(colour) },
    },
    {
      transform: onKind("setting", " && datum.infinite"),
      mark: cross(17, { cursor: "pointer" }),
      encoding: { ...place, y },
    },
  ];

  const said = [...new Set(limits.map((row) => row.said))].join(", ");
  const known = app.every.filter((run) => !Number.isNaN(measure.values[run])).length;
  const notes = [
    "Dots are medians, bars quartiles, over everything else; × at the top: the median run " +
      "diverged, was undefined or failed.",
    ...(floors.length ? ["Dashed: the Eckart–Young floor."] : []),
    ...(said ? [`Dotted: right of it gradient descent cannot converge (${said}).`] : []),
    ...knownOf(known, app.every.length),
    ...leftOut(levels.length),
  ];
  const names = shown.map((level) => panelName(panel, level));
  const size = panelSize(names.length, leastWidth(columns.length), 700);
  return {
    note: notes.join(" "),
    rows: [...floors, ...limits, ...rows],
    spec: facet(names, size, 220, layer),
  };
}

/** Quartiles of each setting, with what is said of it. */
function summarize(app, shown) {
  const { data, x, colour, facet: panel, measure } = app;
  const chosen = new Set(app.runs);
  const rows = [];
  for (const { levels, runs } of group(app.every, [x, colour, panel])) {
    const found = quartiles(runs.map((run) => measure.values[run]));
    if (!found || !shown.includes(levels[2])) continue;
    const lost = share(runs, (run) => data.lost[run]);
    const keys = [x, colour, panel].map((key, i) => [key, levels[i]]);
    const tip = [
      ...app.describe(keys),
      `median ${measure.label}: ${format(found.mid)}`,
      `quartiles: ${format(found.low)} to ${format(found.high)}`,
      `n = ${found.n}${lost ? `; × ${percent(lost)} diverged, were undefined or failed` : ""}`,
    ];
    rows.push({
      ...found,
      kind: "setting",
      panel: panelName(panel, levels[2]),
      x: x.levels[levels[0]],
      colour: colour.levels[levels[1]],
      infinite: found.mid === Infinity,
      faded: !runs.some((run) => chosen.has(run)),
      select: keys,
      tip: tip.join("\n"),
    });
  }
  return rows;
}

/** The floor of Eckart and Young across each panel, where its runs have one and the same. */
function floorsOf({ data, x, facet: panel, measure, every }, shown) {
  const floors = data.floors[measure.name];
  if (!floors) return [];
  const rows = [];
  for (const { levels, runs } of group(every, [x, panel])) {
    const known = runs.map((run) => floors[run]).filter((floor) => floor > 0);
    const floor = Math.max(...known);
    if (!shown.includes(levels[1]) || !known.length || floor > 1.00001 * Math.min(...known))
      continue;
    rows.push({
      kind: "floor",
      panel: panelName(panel, levels[1]),
      x: x.levels[levels[0]],
      y: floor,
      tip: `Eckart–Young: no run can be below ${format(floor)} here`,
    });
  }
  return rows;
}

/** The limit of stability in a panel: before the first rate that is beyond it for each run. */
function limitOf({ data, x, facet: panel, every }, level) {
  if (x.name !== "lr") return [];
  const known = (run) => data.limit[run] !== null && data.rate[run] !== null;
  const here = every.filter((run) => levelOf(panel, run) === level && known(run));
  const beyond = (rate) =>
    here.every((run) => levelOf(x, run) !== rate || data.rate[run] > data.limit[run]);
  const first = present(x, here).find(beyond);
  if (first === undefined) return [];
  const limits = here.map((run) => data.limit[run]);
  const ends = [...new Set([Math.min(...limits), Math.max(...limits)])].map(format);
  const said = `lr > ${ends.join(" to ")}`;
  const tip = `limit of stability: ${said}`;
  return [{ kind: "limit", panel: panelName(panel, level), x: x.levels[first], said, tip }];
}
