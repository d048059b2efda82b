/* The page: its state, its tools, its charts. */

const SHOWN_AT_FIRST = 8;
const narrow = () => innerWidth < 720;

const STATE = {
  shown: CONTENT.runs.map((_, place) => place >= CONTENT.runs.length - SHOWN_AT_FIRST),
  axis: "iteration", smoothing: 45, logs: {}, clipped: true, range: null,
};

const over = name => (run, axis) => [{ x: run.axes[axis], curve: run.curves[name], counts: run.count }];
const half = () => narrow() ? 210 : 240;
const SPECS = [
  { key: "loss", title: () => t("Training loss"), lines: over("loss"), smooth: true, marks: true, height: () => narrow() ? 280 : 400 },
  { key: "validation", title: () => t("Validation loss"), height: half,
    lines: (run, axis) => run.validation.map(one => ({ x: one.axes[axis], curve: one.curve, name: one.name })) },
  { key: "learning_rate", title: () => t("Learning rate"), lines: over("learning_rate"), height: half, zero: true },
  { key: "grad_norm", title: () => t("Gradient norm"), lines: over("grad_norm"), smooth: true, height: half },
  { key: "tokens_per_second", title: () => t("Tokens per second"), lines: over("tokens_per_second"), smooth: true, zero: true, height: half, tick: value => counted(value), format: value => counted(value, 4) },
  { key: "seconds_per_iteration", title: () => t("Seconds per iteration"), lines: over("seconds_per_iteration"), smooth: true, zero: true, height: half },
  { key: "max_allocated_bytes", title: () => t("Peak memory of a GPU, GiB"), lines: over("max_allocated_bytes"), scale: 2 ** -30, zero: true, height: half, wants: curve => curve.mean.some(value => value > 0) },
  { key: "loss_scale", title: () => t("Loss scale"), lines: over("loss_scale"), height: half, wants: curve => curve.mean.some(value => value !== 1) },
];

/** Charts that some run has numbers for. Seconds stand in for tokens per second where these were not recorded. */
function wantedSpecs() {
  const has = spec => CONTENT.runs.some(run => spec.lines(run, "iteration").some(({ x, curve }) => x && x.length && curve && (!spec.wants || spec.wants(curve))));
  const found = SPECS.filter(has);
  const speed = found.some(spec => spec.key === "tokens_per_second");
  return found.filter(spec => spec.key !== "seconds_per_iteration" || !speed);
}

function main() {
  const charts = [], again = () => charts.forEach(chart => chart.build());
  const onRange = range => {
    STATE.range = range;
    reset.hidden = !range;
    charts.forEach(chart => chart.place());
  };
  const reset = el("button", { className: "tool reset", type: "button", hidden: true, onclick: () => onRange(null) }, t("Whole run"));
  const onAxis = axis => { STATE.axis = axis; STATE.range = null; reset.hidden = true; again(); };
  const grid = el("div", { className: "charts" });
  document.body.append(el("main", {}, header(again), cardsArea(again), toolbar(charts, again, onAxis, reset), grid,
    startsSection(), dataSection(), argumentsSection(STATE), notesSection(), footer()));
  for (const spec of wantedSpecs()) charts.push(chartCard(grid, spec, onRange));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", again);
}


function cardsArea(again) {
  return runCards(STATE, (place, isShown) => { STATE.shown[place] = isShown; again(); });
}

function chartCard(grid, spec, onRange) {
  const host = el("div", { className: "plot" });
  const log = el("button", { className: "tool small", type: "button", "aria-pressed": "false", title: t("Logarithmic axis") }, "log");
  const card = el("figure", { className: `chart ${spec.key === "loss" ? "wide" : ""}` },
    el("figcaption", {}, el("span", {}, spec.title()), log), host, el("p", { className: "none" }, t("none of the runs that are shown has it")));
  grid.append(card);
  const chart = makeChart(host, spec, STATE, onRange);
  log.addEventListener("click", () => {
    STATE.logs[spec.key] = !STATE.logs[spec.key];
    log.setAttribute("aria-pressed", String(STATE.logs[spec.key]));
    chart.build();
  });
  return chart;
}

function header(onTheme) {
  const count = CONTENT.runs.length;
  const made = new Date(CONTENT.made).toLocaleString(CONTENT.language === "zh" ? "zh-CN" : "en-GB", { dateStyle: "medium", timeStyle: "short" });
  const flip = el("button", { className: "tool theme", type: "button", "aria-label": t("Light or dark"), title: t("Light or dark"), onclick: () => {
    const isDark = getComputedStyle(document.documentElement).colorScheme === "dark";
    document.documentElement.dataset.theme = isDark ? "light" : "dark";
    onTheme();
  } });
  document.title = count === 1 ? `${CONTENT.runs[0].label} · ${t("Training report")}` : t("Training report");
  return el("header", {}, el("div", {}, el("h1", {}, t("Training report")),
    el("p", {}, count === 1 ? CONTENT.runs[0].folder : t("{0} runs", count), ` · ${made}`)), flip);
}

function toolbar(charts, again, onAxis, reset) {
  const lines = Math.max(2, ...CONTENT.runs.map(totalLines));
  const said = el("output", {});
  const say = () => { const over = linesOf(STATE.smoothing, lines); said.textContent = over > 1 ? t("over {0} lines", whole(over)) : t("none"); };
  const slider = el("input", { type: "range", min: 0, max: 100, value: STATE.smoothing, "aria-label": t("Smoothing"), oninput: event => {
    STATE.smoothing = +event.target.value;
    say();
    charts.forEach(chart => chart.spec.smooth && chart.update());
  } });
  say();
  const axes = sharedAxes().map(axis => el("button", { type: "button", "aria-pressed": String(axis === STATE.axis), onclick: event => {
    for (const one of event.target.parentElement.children) one.setAttribute("aria-pressed", String(one === event.target));
    onAxis(axis);
  } }, AXES[axis].name()));
  const clip = el("input", { type: "checkbox", checked: STATE.clipped, onchange: event => { STATE.clipped = event.target.checked; charts.forEach(chart => chart.place()); } });
  return el("div", { className: "toolbar" }, el("label", { className: "smoothing" }, el("span", {}, t("Smoothing")), slider, said),
    axes.length > 1 && el("div", { className: "segments", role: "group", "aria-label": t("Axis") }, axes),
    el("label", { className: "check" }, clip, t("Ignore outliers")), reset,
    el("span", { className: "hint" }, t("Drag to zoom, double-click for the whole run")));
}

function footer() {
  return el("footer", {}, `megatron-patch ${CONTENT.version} · `, t("Arguments and paths of the runs stand in this file: look before you share it."));
}

main();
