const find = (id) => document.getElementById(id);
const viewer = new Viewer(find("view"));
let chosenCase = null;
let shownRun;

/** Shows a case everywhere on the page. */
function chooseCase(index) {
  chosenCase = report.cases[index];
  find("case-choice").value = index;
  for (const row of find("case-table").tBodies[0].rows) {
    if (Number(row.dataset.case) === index) row.setAttribute("aria-current", "true");
    else row.removeAttribute("aria-current");
  }
  viewer.show(chosenCase);
  if (report.runs.length) showRun(report.runs[chosenCase.run ?? report.runs.findIndex((run) => !run.caseId)]);
  if (report.scores) showScores();
}

/** The curves of a run; undefined if the chosen case has none. */
function showRun(run) {
  shownRun = run;
  const choose = (other) => {
    const index = report.cases.findIndex((entry) => entry.id === other.caseId);
    if (index < 0) showRun(other);
    else chooseCase(index);
  };
  drawOverview(find("overview"), run, choose);
  find("run-name").textContent = run ? run.name : `${chosenCase.id}: no run was measured`;
  for (const details of document.querySelectorAll(".stages")) details.hidden = details.dataset.run !== run?.name;
  drawStageKey(find("stage-key"), run ?? { spans: [] });
  if (run) new RunChart(find("curves"), run, find("curve-values"));
  else find("curves").replaceChildren();
  find("time").dataset.run = run?.name ?? "";
}

function showScores() {
  const chosen = (name) => document.querySelector(`#${name} :checked`).value;
  drawScores(find("score-table"), chosen("metric"), chosen("rules"), chosenCase.id);
}

/** Sorts by a column, the other way round at the second call; what is missing stays last. */
function sortBy(table, column) {
  const heads = [...table.tHead.rows[0].cells];
  const rising = heads[column].ariaSort !== "ascending";
  for (const head of heads) head.ariaSort = "none";
  heads[column].ariaSort = rising ? "ascending" : "descending";
  const numeric = heads[column].classList.contains("number");
  const value = (row) => row.cells[column].dataset.value;
  const compare = (first, second) => {
    const [a, b] = [value(first), value(second)];
    if (a === undefined || b === undefined) return (a === undefined) - (b === undefined);
    const order = numeric ? a - b : a.localeCompare(b, "en", { numeric: true });
    return rising ? order : -order;
  };
  table.tBodies[0].append(...[...table.tBodies[0].rows].sort(compare));
}

find("case-choice").addEventListener("change", (event) => chooseCase(Number(event.target.value)));
[...find("case-table").tHead.rows[0].cells].forEach((head, column) => {
  head.firstElementChild.addEventListener("click", () => sortBy(find("case-table"), column));
});
for (const row of find("case-table").tBodies[0].rows) {
  row.addEventListener("click", () => chooseCase(Number(row.dataset.case)));
}
find("theme").addEventListener("change", (event) => {
  const theme = event.target.value;
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
});
for (const id of ["metric", "rules"]) find(id)?.addEventListener("change", showScores);
if (report.runs.length) onWidth(find("time"), () => showRun(shownRun));
chooseCase(Math.max(0, report.cases.findIndex((entry) => entry.view)));
