const STAGE_COLOURS = ["#4e79a7", "#f28e2b", "#59a14f", "#b07aa1", "#76b7b2", "#e15759", "#edc948", "#9c755f"];
const IDLE_STAGES = { "start-up": "#9aa3ad", between: "#c3c9d0", exit: "#747d88" };
const PANELS = [
  { key: "cores", title: "Cores in use", unit: "", decimals: 2 },
  { key: "memory", title: "Memory of the run, MiB", unit: "MiB", decimals: 0 },
  { key: "host", title: "Memory of the host, MiB", unit: "MiB", decimals: 0 },
  { key: "gpu", title: "GPU memory of the device, MiB", unit: "MiB", decimals: 0 },
];
const CHART = { left: 56, right: 12, top: 22, height: 120, gap: 34, strip: 14 };

/** An element of SVG; a child may be text. */
function drawn(name, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

/** Round steps from 0 up to at least `most`, about `count` of them: 130 in 4 gives 0, 50, 100, 150. */
function roundTicks(most, count) {
  if (!(most > 0)) return [0, 1];
  const rough = most / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((found) => found >= rough);
  return Array.from({ length: Math.ceil(most / step - 1e-9) + 1 }, (_, index) => index * step);
}

/** The colour of each stage, the same in all plots; the longest stage has the first. */
const stageColour = (() => {
  const seconds = new Map();
  for (const { stage, start_s, end_s } of report.runs.flatMap((run) => run.spans)) {
    seconds.set(stage, (seconds.get(stage) ?? 0) + end_s - start_s);
  }
  const working = [...seconds.keys()].filter((name) => !(name in IDLE_STAGES)).sort((a, b) => seconds.get(b) - seconds.get(a));
  return (name) => IDLE_STAGES[name] ?? STAGE_COLOURS[working.indexOf(name) % STAGE_COLOURS.length];
})();

/** Length of a run: what was measured, or the end of its last stage. */
function secondsOf(run) {
  return run.seconds ?? Math.max(0, ...run.spans.map((span) => span.end_s));
}

/** The stages as bars from time to place. */
function stageBars(run, place, y, height) {
  return run.spans.map((span) => {
    const [start, end] = [place(span.start_s), place(span.end_s)];
    const bar = drawn("rect", { x: start, y, height, width: Math.max(0.3, end - start), fill: stageColour(span.stage) });
    bar.append(drawn("title", {}, `${span.stage}, ${(span.end_s - span.start_s).toFixed(2)} s`));
    return bar;
  });
}

/** All runs, one under the other on one scale. */
function drawOverview(root, chosen, choose) {
  const runs = report.runs.filter((run) => run.spans.length);
  if (runs.length < 2) return root.replaceChildren();
  const [width, name, row] = [Math.max(320, root.clientWidth), 120, 26];
  const ticks = roundTicks(Math.max(...runs.map(secondsOf)), 6);
  const place = (time) => name + (time / ticks.at(-1)) * (width - name - 60);
  const height = runs.length * row + 24;
  const viewBox = `0 0 ${width} ${height}`;
  const picture = drawn("svg", { width, height, viewBox, role: "img", "aria-label": "Stages of all runs on one time scale" });
  for (const tick of ticks) {
    picture.append(
      drawn("line", { class: "grid", x1: place(tick), x2: place(tick), y1: 0, y2: height - 20 }),
      drawn("text", { x: place(tick), y: height - 4, "text-anchor": "middle" }, `${+tick.toFixed(6)} s`),
    );
  }
  runs.forEach((run, index) => {
    const [y, seconds] = [index * row, secondsOf(run)];
    const group = drawn("g", { class: `overview-row${run === chosen ? " chosen" : ""}` });
    group.append(
      drawn("text", { class: "name", x: 0, y: y + 16 }, run.caseId ?? run.name),
      ...stageBars(run, place, y + 4, row - 10),
      drawn("text", { x: place(seconds) + 6, y: y + 16 }, `${seconds.toFixed(1)} s`),
    );
    group.addEventListener("click", () => choose(run));
    picture.append(group);
  });
  root.replaceChildren(picture);
}

/** The curves of one run under its stages, with a cursor that tells the values. */
class RunChart {
  constructor(root, run, say) {
    Object.assign(this, { root, run, say });
    this.seconds = secondsOf(run);
    this.panels = PANELS.filter(({ key }) => run.curves.some((curve) => curve.panel === key));
    this.picture = drawn("svg", { role: "img", tabindex: 0, class: "chart" });
    this.picture.setAttribute("aria-label", `Curves of ${run.name}. Left and right arrow keys read the values.`);
    this.tip = element("div", { class: "tip" });
    this.tip.hidden = true;
    const frame = element("div", { class: "chart" });
    frame.append(this.picture, this.tip);
    root.replaceChildren(frame);
    this.draw();
    this.listen();
  }

  draw() {
    const { left, right, top, height, gap, strip } = CHART;
    this.width = Math.max(320, this.root.clientWidth);
    const length = this.seconds || 1; // a case that failed before its first stage has none
    this.place = (time) => left + (time / length) * (this.width - left - right);
    const stages = this.run.spans.length ? strip + 16 + (this.run.loading ? strip + 16 : 0) : 0;
    this.bottom = stages + this.panels.length * (height + gap) + (this.panels.length ? 0 : 8);
    this.picture.replaceChildren();
    this.picture.setAttribute("width", this.width);
    this.picture.setAttribute("height", this.bottom + 20);
    this.picture.setAttribute("viewBox", `0 0 ${this.width} ${this.bottom + 20}`);
    if (stages) this.drawStages(strip);
    this.panels.forEach((panel, index) => this.drawPanel(panel, stages + index * (height + gap) + top));
    this.drawTimes();
    this.cursor = drawn("line", { class: "cursor", y1: 0, y2: this.bottom, visibility: "hidden" });
    this.picture.append(this.cursor);
  }

  drawStages(strip) {
    this.picture.append(drawn("text", { x: 0, y: strip - 3 }, "stages"), ...stageBars(this.run, this.place, 0, strip));
    if (!this.run.loading) return;
    const { start_s, end_s } = this.run.loading;
    const [start, y] = [this.place(start_s), strip + 5];
    this.picture.append(
      drawn("rect", { x: start, y, width: this.place(end_s) - start, height: strip - 4, fill: "none", stroke: "var(--muted)" }),
      drawn("text", { x: this.place(end_s) + 5, y: y + strip - 5 }, "network loads beside them"),
    );
  }

  drawPanel({ key, title }, top) {
    const { left, right, height } = CHART;
    const curves = this.run.curves.filter((curve) => curve.panel === key);
    const ticks = roundTicks(Math.max(...curves.flatMap((curve) => curve.values)), 3);
    const y = (value) => top + height - (value / ticks.at(-1)) * height;
    this.picture.append(drawn("text", { class: "title", x: left, y: top - 7 }, title));
    let end = this.width - right;
    for (const { name, values } of this.width < 560 ? [] : [...curves].reverse()) {
      const text = `${name}, peak ${Math.max(...values).toLocaleString("en", { maximumFractionDigits: key === "cores" ? 1 : 0 })}`;
      this.picture.append(drawn("text", { x: end, y: top - 7, "text-anchor": "end", style: `fill: ${colourOf(key, name)}` }, text));
      end -= text.length * 6 + 14;
    }
    for (const tick of ticks) {
      this.picture.append(
        drawn("line", { class: tick ? "grid" : "axis", x1: left, x2: this.width - right, y1: y(tick), y2: y(tick) }),
        drawn("text", { x: left - 8, y: y(tick) + 4, "text-anchor": "end" }, (+tick.toFixed(6)).toLocaleString("en")),
      );
    }
    for (const { name, times_s, values } of [...curves].reverse()) {
      const points = times_s.map((time, index) => `${this.place(time).toFixed(1)},${y(values[index]).toFixed(1)}`);
      this.picture.append(drawn("polyline", { class: "line", points: points.join(" "), style: `stroke: ${colourOf(key, name)}` }));
    }
  }

  drawTimes() {
    for (const tick of roundTicks(this.seconds, 8).filter((time) => time <= this.seconds)) {
      const x = this.place(tick);
      this.picture.append(
        drawn("line", { class: "grid", x1: x, x2: x, y1: this.bottom - 6, y2: this.bottom }),
        drawn("text", { x, y: this.bottom + 14, "text-anchor": "middle" }, `${+tick.toFixed(6)} s`),
      );
    }
  }

  listen() {
    const { left, right } = CHART;
    this.picture.addEventListener("pointermove", (event) => {
      const x = event.clientX - this.picture.getBoundingClientRect().left;
      this.show(((x - left) / (this.width - left - right)) * this.seconds);
    });
    this.picture.addEventListener("pointerleave", () => this.hide());
    this.picture.addEventListener("blur", () => this.hide());
    this.picture.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!step) return;
      event.preventDefault();
      this.show((this.time ?? 0) + (step * this.seconds) / 100);
      this.say.textContent = [...this.tip.children].map((row) => row.textContent).join("; ");
    });
  }

  /** The values at a time, beside a line there. */
  show(time) {
    this.time = Math.min(this.seconds, Math.max(0, time));
    const stage = this.run.spans.find((span) => span.start_s <= this.time && this.time <= span.end_s)?.stage;
    const rows = this.panels.flatMap(({ key, unit, decimals }) => this.run.curves
      .filter((curve) => curve.panel === key)
      .map((curve) => [`${curve.name}${key === "cores" ? ", cores" : ""} `, told(nearest(curve, this.time), decimals, unit)]));
    this.tip.replaceChildren(
      element("b", {}, `${this.time.toFixed(2)} s${stage ? `  ${stage}` : ""}`),
      ...rows.map(([name, value]) => element("div", {}, element("span", {}, name), element("span", {}, value))),
    );
    const x = this.place(this.time);
    for (const end of ["x1", "x2"]) this.cursor.setAttribute(end, x);
    this.cursor.setAttribute("visibility", "visible");
    this.tip.hidden = false;
    this.tip.style.top = "28px";
    this.tip.style.left = `${x + 12 + this.tip.offsetWidth > this.width ? x - 12 - this.tip.offsetWidth : x + 12}px`;
  }

  hide() {
    this.tip.hidden = true;
    this.cursor.setAttribute("visibility", "hidden");
  }
}

function colourOf(panel, name) {
  return panel === "gpu" ? "var(--gpu)" : name === "host" ? "var(--host)" : "var(--own)";
}

function told(value, decimals, unit) {
  return value === null ? "–" : `${value.toFixed(decimals)} ${unit}`;
}

/** The value of the sample nearest to a time; null before the first and after the last. */
function nearest({ times_s, values }, time) {
  const slack = (times_s.at(-1) - times_s[0]) / times_s.length;
  if (time < times_s[0] - slack || time > times_s.at(-1) + slack) return null;
  let [low, high] = [0, times_s.length - 1];
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (times_s[middle] <= time) low = middle;
    else high = middle;
  }
  return time - times_s[low] <= times_s[high] - time ? values[low] : values[high];
}

/** What the colours of the stages mean. */
function drawStageKey(root, run) {
  const names = [...new Set(run.spans.map((span) => span.stage))];
  root.replaceChildren(...names.map((name) => {
    const seconds = run.spans.filter((span) => span.stage === name).reduce((sum, span) => sum + span.end_s - span.start_s, 0);
    const swatch = element("span", { class: "swatch", style: `background: ${stageColour(name)}` });
    return element("span", {}, swatch, `${name} ${seconds.toFixed(2)} s`);
  }));
}
