// What the charts have in common: colours, scales, panels.
// A chart is made out of `app`: the data, what was chosen, and the runs of the selection.

const SHAPES = ["circle", "square", "triangle-up", "diamond", "triangle-down", "cross"];
const OUTLINES = [
  "M6,0A6,6,0,1,1,-6,0A6,6,0,1,1,6,0Z",
  "M-5.5,-5.5H5.5V5.5H-5.5Z",
  "M0,-6L6.5,5.5H-6.5Z",
  "M0,-7L6,0L0,7L-6,0Z",
  "M0,6L6.5,-5.5H-6.5Z",
  "M-7,-2.4H-2.4V-7H2.4V-2.4H7V2.4H2.4V7H-2.4V2.4H-7Z",
]; // the same in a legend
const GAP = 14; // pixels between panels
const MARGIN = 74; // pixels of a vertical axis
const ORDINAL = { type: "ordinal", sort: null };

const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const channels = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));

/** Luminance of a colour, 0 to 1 (WCAG 2). */
function luminance(hex) {
  const [r, g, b] = channels(hex).map((c) =>
    c / 255 <= 0.04045 ? c / 3294.6 : ((c / 255 + 0.055) / 1.055) ** 2.4,
  );
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}

/** The colour, mixed with that of the text until it stands out from the background. */
function legible(hex) {
  const text = channels(css("--text"));
  const back = luminance(css("--back"));
  for (let part = 0; part < 1; part += 0.1) {
    const mixed = channels(hex).map((c, i) => Math.round(c + part * (text[i] - c)));
    const name = "#" + mixed.map((c) => c.toString(16).padStart(2, "0")).join("");
    const [dark, light] = [luminance(name), back].sort((a, b) => a - b);
    if ((light + 0.05) / (dark + 0.05) >= 1.9) return name;
  }
  return css("--text");
}

/** The colour of each level of a key. */
const inColour = (key) => ({
  field: "colour",
  ...ORDINAL,
  scale: {
    domain: key.levels,
    range: key.colours.map((colour) => (colour ? legible(colour) : css("--mark"))),
  },
  legend: null,
});

/** The shape of each level of a key. */
const inShape = (key) => ({
  field: "colour",
  type: "nominal",
  scale: {
    domain: key.levels,
    range: key.levels.map((_, i) => SHAPES[i % SHAPES.length]),
  },
  legend: null,
});

/** Of the runs that were lost. */
const cross = (fontSize, more = {}) => ({
  type: "text",
  text: "×",
  fontSize,
  fontWeight: "bold",
  baseline: "middle",
  ...more,
});

/** The look of a chart on the page as it is now, light or dark. */
function theme() {
  const [text, soft, line] = ["--text", "--soft", "--line"].map(css);
  const font = getComputedStyle(document.body).fontFamily;
  return {
    background: null,
    font,
    padding: { left: 2, top: 4, right: 4, bottom: 4 },
    axis: {
      labelColor: text,
      titleColor: text,
      gridColor: line,
      domainColor: soft,
      tickColor: soft,
      labelFontSize: 11,
      titleFontSize: 12,
      titleFontWeight: "normal",
      labelOverlap: true,
      labelLimit: 120,
    },
    header: {
      labelColor: text,
      titleColor: text,
      labelFontSize: 12,
      labelFontWeight: "bold",
      labelLimit: 300,
      title: null,
    },
    view: { stroke: line },
    text: { color: text },
    rule: { color: text },
    facet: { spacing: GAP },
  };
}

/** How many panels stand side by side, and how wide each is, in pixels. */
function panelSize(count, least, most) {
  const width = document.body.clientWidth - 40 - MARGIN;
  const fitting = Math.max(1, Math.min(count, Math.floor((width + GAP) / (least + GAP))));
  const columns = Math.ceil(count / Math.ceil(count / fitting));
  return { columns, width: Math.floor(Math.min(most, (width + GAP) / columns - GAP)) };
}

/** The least width of a panel with so many levels across. */
const leastWidth = (levels) => Math.min(420, Math.max(200, 26 * levels));

const panelName = (key, level) => (key.name ? `${key.name} = ${key.levels[level]}` : "");

/** A layered chart, with a panel for each name unless the only one is "". */
function facet(names, { columns, width }, height, layer) {
  const spec = { width, height, layer };
  if (names.length === 1 && names[0] === "") return { ...spec, data: { name: "rows" } };
  const full = names.length % columns === 0; // else axes would hang below empty places
  return {
    data: { name: "rows" },
    facet: { field: "panel", ...ORDINAL, sort: names },
    columns,
    spec,
    resolve: { axis: full ? {} : { x: "independent" } },
  };
}

/** The rows of one kind only. */
const onKind = (kind, more = "") => [{ filter: `datum.kind === '${kind}'${more}` }];

/** The vertical axis of a measure. */
function vertical(scale, title) {
  const small = "abs(datum.value) < 1e-3 || abs(datum.value) >= 1e6";
  const number = `format(datum.value, datum.value && (${small}) ? '~e' : '~r')`;
  const top = `datum.value >= ${0.9999 * scale.top}`;
  return {
    field: "y",
    type: "quantitative",
    title,
    scale: { type: scale.type, domain: [scale.low, scale.top], nice: false, clamp: true },
    axis: {
      values: scale.ticks,
      labelExpr: scale.infinite ? `${top} ? '∞' : ${number}` : number,
      labelOverlap: false,
    },
  };
}

/** The horizontal or vertical axis of a key's levels, as far as there are runs at them. */
const levelAxis = (field, key, levels, axis = {}) => ({
  field,
  ...ORDINAL,
  title: key.name || null,
  axis: {
    labelAngle: 0,
    labelOverlap: "greedy",
    labelBound: levels.length > 8,
    grid: false,
    ...axis,
  },
  scale: { domain: levels.map((level) => key.levels[level]) },
});

/** Levels of a key that some run has. */
const present = (key, runs) =>
  [...new Set(runs.map((run) => levelOf(key, run)))].sort((a, b) => a - b);

/** What is said of levels that found no panel. */
const leftOut = (count) => (count > PANELS ? [`${PANELS} of ${count} panels are drawn.`] : []);

/** What is said if the measure is not known of all runs. */
const knownOf = (known, all) =>
  known < all ? [`The measure is known of ${known} of ${all} runs.`] : [];
