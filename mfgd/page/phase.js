// Phase diagram: the share that converged over across and panels, with a panel for each colour.

function phase(app) {
  const { data, x, every } = app;
  const down = app.facet.name ? app.facet : app.colour;
  const panel = app.facet.name ? app.colour : data.key.get("");
  const levels = present(panel, every);
  const shown = levels.slice(0, PANELS);
  const [columns, lines] = [present(x, every), present(down, every)];
  const rows = group(every, [x, down, panel])
    .filter((cell) => shown.includes(cell.levels[2]))
    .map((cell) => describeCell(app, cell, [x, down, panel]));

  const names = shown.map((level) => panelName(panel, level));
  const size = panelSize(names.length, leastWidth(columns.length), 700);
  const wide = size.width / columns.length; // pixels of a cell
  const tall = Math.max(14, Math.min(52, 480 / lines.length));
  const place = {
    x: levelAxis("x", x, columns),
    y: levelAxis("down", down, lines, { labelBound: false }),
    tooltip: { field: "tip" },
  };
  for (const axis of [place.x, place.y]) Object.assign(axis.scale, { padding: 0 });
  const ink = { condition: { test: "datum.converged > 0.45", value: "#111111" }, value: "#ffffff" };
  const write = (text, dy, fontSize, more = {}) => ({
    mark: { type: "text", baseline: "middle", dy, fontSize, cursor: "pointer", ...more },
    encoding: { ...place, text, color: ink },
  });
  const layer = [
    {
      mark: { type: "rect", stroke: css("--back"), strokeWidth: 1, cursor: "pointer" },
      encoding: {
        ...place,
        color: {
          field: "converged",
          type: "quantitative",
          scale: { scheme: "cividis", domain: [0, 1] },
          legend: null,
        },
      },
    },
    {
      transform: [{ filter: "datum.chosen" }],
      mark: { type: "rect", filled: false, stroke: "#D55E00", strokeWidth: 3, cursor: "pointer" },
      encoding: place,
    },
  ];
  if (wide >= 46 && tall >= 44) {
    layer.push(
      write({ field: "share" }, { expr: "datum.cross ? -15 : -8" }, 12),
      write({ field: "cross" }, 0, 11, { fontWeight: "bold" }),
      write({ field: "size" }, { expr: "datum.cross ? 15 : 9" }, 10),
    );
  } else if (wide >= 9) {
    const lost = [{ filter: "datum.cross" }];
    layer.push({ transform: lost, ...write({ value: "×" }, 0, Math.min(14, wide, tall)) });
  }
  const note = leftOut(levels.length)
    .map((text) => ` ${text}`)
    .join("");
  return { note, rows, spec: facet(names, size, Math.round(tall * lines.length), layer) };
}

/** A cell of the phase diagram, with what is written into it and said of it. */
function describeCell(app, { levels, runs }, [x, down, panel]) {
  const converged = share(runs, (run) => app.outcome(run) === "converged");
  const lost = share(runs, (run) => app.data.lost[run]);
  const keys = [x, down, panel].map((key, i) => [key, levels[i]]);
  const tip = [
    ...app.describe(keys),
    `converged: ${percent(converged)}`,
    `diverged, undefined or failed: ${percent(lost)}`,
    `n = ${runs.length}`,
  ];
  return {
    panel: panelName(panel, levels[2]),
    x: x.levels[levels[0]],
    down: down.levels[levels[1]],
    converged,
    share: percent(converged),
    cross: lost > 0 ? `× ${percent(lost)}` : "",
    size: `n = ${runs.length}`,
    select: keys,
    chosen: app.isSelected(keys),
    tip: tip.join("\n"),
  };
}
