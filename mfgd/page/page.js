// Choices, filter and tooltip of the page.

(async () => {
  document.head.append(make("script", await inflate("libraries")));
  const data = decode(JSON.parse(await inflate("data")));
  const measureOf = (name) => data.measures.find((m) => m.name === name) || data.measures[0];

  const app = {
    data,
    every: data.id.map((_, run) => run),
    runs: [], // of the selection
    selection: new Map(), // key → level
    outcome: (run) => data.outcome.values[data.outcome.codes[run]],
    verdict: (run) => data.verdicts.values[data.verdicts.codes[run]],
    describe: (keys) =>
      keys.filter(([key]) => key.name).map(([key, level]) => `${key.name} = ${key.levels[level]}`),
    isSelected(keys) {
      const named = keys.filter(([key]) => key.name);
      return named.length > 0 && named.every(([key, level]) => app.selection.get(key) === level);
    },
  };
  let sorting = null; // of the table
  let length = ROWS;

  /** What is said of one run. */
  function describeRun(run) {
    const known = data.measures.filter((m) => !Number.isNaN(m.values[run]));
    return [
      `run ${data.id[run]}`,
      ...data.keys.map((key) => `${key.name} = ${key.values[key.codes[run]]}`),
      ...known.map((m) => `${m.label}: ${format(m.values[run])}`),
      `outcome: ${app.outcome(run)}`,
      ...(app.verdict(run) ? [`theory ${app.verdict(run)}`] : []),
    ].join("\n");
  }

  /** Shows beside the pointer what a mark says, or what is said of its run. */
  function showTip(handler, event, item, value) {
    const tip = $("tip");
    const known = value != null && value !== "" && item && item.datum;
    tip.style.display = known ? "block" : "none";
    if (!known) return;
    const { run, tip: text } = item.datum;
    tip.textContent = run === undefined ? text : describeRun(run);
    const right = innerWidth - tip.offsetWidth - 8;
    tip.style.left = `${Math.max(4, Math.min(event.clientX + 14, right))}px`;
    const below = event.clientY + 16;
    const above = Math.max(4, event.clientY - tip.offsetHeight - 12);
    tip.style.top = `${below + tip.offsetHeight < innerHeight ? below : above}px`;
  }

  const views = new Map();

  /** Draws a chart in the place of the one before. */
  function draw(id, { note, rows, spec }) {
    $(`${id}-note`).textContent = note;
    if (views.has(id)) views.get(id).finalize();
    views.delete(id);
    $(id).replaceChildren();
    if (!spec) return;
    const compiled = vegaLite.compile({ ...spec, config: theme() }).spec;
    const renderer = rows.length > 1500 ? "canvas" : "svg";
    const view = new vega.View(vega.parse(compiled), { renderer, container: $(id), hover: false });
    view.tooltip(showTip).data("rows", rows).run();
    view.addEventListener("click", (event, item) => {
      if (item && item.datum && item.datum.select) select(item.datum.select);
    });
    views.set(id, view);
  }

  /** Selects the runs at these levels too; no longer if they are selected already. */
  function select(keys) {
    const selected = app.isSelected(keys);
    for (const [key, level] of keys.filter(([key]) => key.name)) {
      if (selected) app.selection.delete(key);
      else app.selection.set(key, level);
    }
    update();
  }

  /** A button for each level of the key in colour: a click selects its runs. */
  function drawLegend() {
    const key = app.colour;
    const buttons = present(key, app.every).map((level) => {
      const button = make("button", "", { title: "select these runs" });
      button.onclick = () => select([[key, level]]);
      button.setAttribute("aria-pressed", app.isSelected([[key, level]]));
      button.innerHTML = '<svg viewBox="-8 -8 16 16"><path></path></svg>';
      const path = button.querySelector("path");
      path.setAttribute("d", OUTLINES[level % OUTLINES.length]);
      path.setAttribute("fill", key.name ? legible(key.colours[level]) : "none");
      button.append(key.levels[level]);
      return button;
    });
    $("legend").replaceChildren(...(key.name ? [make("label", key.name), ...buttons] : []));
  }

  function sort(wanted) {
    sorting = wanted;
    drawTable(app, sorting, length, sort);
  }

  /** Draws what depends on the selection; all charts show it. */
  function update() {
    const chosen = [...app.selection];
    app.runs = app.every.filter((run) =>
      chosen.every(([key, level]) => levelOf(key, run) === level),
    );
    const said = [`${app.runs.length} of ${counted(app.every.length)} selected`];
    if (chosen.length) said.push(app.describe(chosen).join(", "));
    $("selected").textContent = said.join(": ");
    $("clear").hidden = !chosen.length;
    $("tip").style.display = "none";
    length = ROWS;
    drawLegend();
    draw("winners", winners(app));
    draw("phase", phase(app));
    draw("curves", curves(app));
    draw("every", every(app));
    drawTable(app, sorting, length, sort);
  }

  /** Takes over what the four lists say. */
  function choose() {
    for (const id of ["x", "colour", "facet"]) app[id] = data.key.get($(id).value);
    app.measure = measureOf($("measure").value);
    sorting = { column: data.keys.length + data.measures.indexOf(app.measure), direction: 1 };
    update();
  }

  /** Fills a list with options (value, text). */
  function fill(id, options, value) {
    $(id).replaceChildren(...options.map(([value, text]) => make("option", text, { value })));
    $(id).value = value;
    $(id).onchange = choose;
  }

  const keys = [["", "none"], ...data.keys.map((key) => [key.name, key.name])];
  for (const id of ["x", "colour", "facet"]) fill(id, keys, data.start[id]);
  const first = measureOf(data.start.measure);
  const measures = data.measures.map((m) => [m.name, m.label]);
  fill("measure", measures, first.name);
  $("clear").onclick = () => {
    app.selection.clear();
    update();
  };
  $("more").onclick = () => {
    length += 5 * ROWS;
    sort(sorting);
  };
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", update);
  let [width, waiting] = [innerWidth, 0];
  addEventListener("resize", () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => {
      if (innerWidth !== width) update();
      width = innerWidth;
    }, 150);
  });
  choose();
  drawEffects(app, measureOf(data.start.compared));
  document.documentElement.dataset.ready = Math.round(performance.now());
})();
