const PLOT = { width: 480, height: 28, inset: 8 };

/** The table of scores: an organ a row, its cases as dots. */
function drawScores(table, metric, rules, chosenId) {
  const { values, cases } = report.scores;
  const { key, title, decimals, best } = report.scores.metrics.find((found) => found.key === metric);
  const { organs, mean, interval } = values[key][rules];
  const found = organs.flatMap((organ) => organ.values).filter((value) => value !== null);
  const most = best === 1 ? 1 : roundTicks(Math.max(...found), 4).at(-1);
  const place = (value) => PLOT.inset + (value / most) * (PLOT.width - 2 * PLOT.inset);
  const shown = (value) => (value === null ? "–" : value.toFixed(best === 1 ? 3 : decimals));
  const cells = (entry) => [
    element("td", { class: "number" }, shown(entry.mean)),
    element("td", { class: "number muted" }, entry.interval ? `${shown(entry.interval[0])} to ${shown(entry.interval[1])}` : "–"),
  ];
  const rows = organs.map((entry, index) => {
    const { name, colour, tolerance_mm } = report.organs[index];
    const count = entry.values.filter((value) => value !== null).length;
    const chosen = entry.values[cases.indexOf(chosenId)] ?? null;
    return element("tr", {},
      element("th", { scope: "row" }, element("span", { class: "swatch", style: `background: ${colour}` }), name,
        ...(metric === "nsd" ? [element("small", {}, ` ${tolerance_mm} mm`)] : [])),
      element("td", { class: "plot" }, dotPlot(entry, cases, chosenId, place, shown, `${title} of ${name}`)),
      ...cells(entry),
      element("td", { class: "number" }, `${count} of ${cases.length}`),
      element("td", { class: "number" }, shown(chosen)));
  });
  const all = element("tr", { class: "all" }, element("th", { scope: "row" }, "all organs"),
    element("td", { class: "plot" }, scale(most, place)), ...cells({ mean, interval }), element("td"), element("td"));
  const heads = ["organ", title, "mean", "95 % interval", "cases", chosenId ?? ""];
  table.tHead.replaceChildren(element("tr", {}, ...heads.map((text, index) =>
    element("th", { scope: "col", ...(index > 1 ? { class: "number" } : {}) }, text))));
  table.tBodies[0].replaceChildren(...rows, all);
}

function dotPlot({ mean, interval, values }, cases, chosenId, place, shown, label) {
  const middle = PLOT.height / 2;
  const picture = drawn("svg", { viewBox: `0 0 ${PLOT.width} ${PLOT.height}`, width: "100%", role: "img", "aria-label": label });
  picture.append(drawn("line", { class: "grid", x1: place(0), x2: PLOT.width - PLOT.inset, y1: middle, y2: middle }));
  if (interval) {
    const [low, high] = interval.map(place);
    picture.append(drawn("rect", { class: "interval", x: low, width: Math.max(1, high - low), y: middle - 7, height: 14, rx: 3 }));
  }
  values.forEach((value, index) => {
    if (value === null) return;
    const chosen = cases[index] === chosenId;
    const dot = drawn("circle", { class: `dot${chosen ? " chosen" : ""}`, cx: place(value), cy: middle, r: chosen ? 4.5 : 3.5 });
    dot.append(drawn("title", {}, `${cases[index]}: ${shown(value)}`));
    picture.append(dot);
  });
  if (mean !== null) picture.append(drawn("line", { class: "mean", x1: place(mean), x2: place(mean), y1: middle - 9, y2: middle + 9 }));
  return picture;
}

/** The scale under the dots. */
function scale(most, place) {
  const picture = drawn("svg", { viewBox: `0 0 ${PLOT.width} 20`, width: "100%", "aria-hidden": "true" });
  for (const tick of roundTicks(most, 5)) {
    picture.append(drawn("text", { x: place(tick), y: 14, "text-anchor": "middle" }, String(+tick.toFixed(6))));
  }
  return picture;
}
