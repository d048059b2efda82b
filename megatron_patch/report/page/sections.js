/* What stands around the charts: cards of the runs, their starts, their data, their arguments. */

const COLLATOR = new Intl.NumberFormat("en-US");
const whole = value => value == null ? "–" : COLLATOR.format(value);

function section(title, note, ...children) {
  return el("section", {}, el("div", { className: "section-head" }, el("h2", {}, title), note && el("p", {}, note)), ...children);
}

/** The mean of a run's last hundredth, at least of ten lines; null without a loss. */
function lastLoss(run) {
  if (!run.curves.loss) return null;
  const wanted = Math.max(10, totalLines(run) / 100);
  let sum = 0, lines = 0;
  for (let place = run.count.length - 1; place >= 0 && lines < wanted; place--) {
    const value = run.curves.loss.mean[place];
    if (value != null) { sum += value * run.count[place]; lines += run.count[place]; }
  }
  return lines ? sum / lines : null;
}

const REASONS = { finished: "finished", error: "failed", SIGTERM: "stopped" };

function statePill(run) {
  const reason = run.facts.reason;
  const done = run.facts.iteration != null && run.facts.iteration >= run.facts.train_iters;
  const kind = done && reason === "finished" ? "finished" : REASONS[reason.split(":")[0]] || (reason ? "stopped" : "open");
  const said = { finished: t("finished"), failed: t("failed"), stopped: t("stopped"), open: t("no end recorded") }[kind];
  return el("span", { className: `pill ${kind}`, title: reason || t("killed, still running, or of an older version") }, said);
}

function runCards(state, onToggle) {
  const best = Math.min(...CONTENT.runs.map(run => run.facts.best_validation ?? Infinity));
  return el("div", { className: `cards ${CONTENT.runs.length === 1 ? "single" : ""}` }, CONTENT.runs.map((run, place) => runCard(run, place, best, state, onToggle)));
}

function runCard(run, place, best, state, onToggle) {
  const facts = run.facts, several = CONTENT.runs.length > 1;
  const box = el("input", { type: "checkbox", checked: state.shown[place], onchange: event => {
    card.classList.toggle("off", !event.target.checked);
    onToggle(place, event.target.checked);
  } });
  const head = el("div", { className: "card-head" },
    el(several ? "label" : "div", { className: "card-label" }, several && box, swatch(place), el("span", { className: "card-title" }, run.label)),
    statePill(run));
  const card = el("article", { className: `card ${state.shown[place] ? "" : "off"}` }, head,
    el("div", { className: "path", title: run.name }, run.name), progress(facts, place), el("dl", { className: "stats" }, stats(run, best, several)));
  card.style.setProperty("--run", `var(--run-${place % COLORS})`);
  return card;
}

function progress(facts) {
  const share = facts.train_iters ? Math.min(1, facts.iteration / facts.train_iters) : null;
  const bar = el("div", { className: "bar" }, el("i"));
  bar.firstChild.style.width = `${100 * (share ?? 1)}%`;
  const of = facts.train_iters ? ` / ${whole(facts.train_iters)}` : "";
  return el("div", { className: "progress" }, bar, el("div", { className: "progress-text" },
    el("span", {}, t("Iteration"), " ", el("b", {}, whole(facts.iteration)), of), share != null && el("span", {}, `${Math.floor(1000 * share) / 10} %`)));
}

function stats(run, best, several) {
  const facts = run.facts, stat = (name, value, note) => [el("div", {}, el("dt", {}, name), el("dd", {}, value, note && el("small", {}, note)))];
  const isBest = several && facts.best_validation != null && facts.best_validation === best;
  return [
    ...stat(t("Last loss"), figure(lastLoss(run))),
    ...(facts.best_validation == null ? [] : stat(t("Best validation"), figure(facts.best_validation), isBest && t("lowest"))),
    ...(facts.tokens == null ? [] : stat(t("Tokens seen"), counted(facts.tokens))),
    ...(facts.tokens_per_second == null ? [] : stat(t("Tokens/s"), counted(facts.tokens_per_second), tflopsNote(facts))),
    ...(facts.memory == null ? [] : stat(t("Peak memory"), bytes(facts.memory))),
    ...stat(t("Time taken"), duration(facts.seconds), run.starts.length > 1 && t("{0} starts", run.starts.length)),
  ];
}

function tflopsNote(facts) {
  return facts.tflops_per_gpu >= 0.5 && t("{0} TFLOP/s/GPU", figure(facts.tflops_per_gpu, 3));
}

function table(heads, rows, className = "") {
  return el("div", { className: "scroll" }, el("table", { className },
    el("thead", {}, el("tr", {}, heads.map(head => el("th", {}, head)))), el("tbody", {}, rows)));
}

function startsSection() {
  const rows = CONTENT.runs.flatMap((run, place) => run.starts.map((start, number) => startRow(run, place, start, number)));
  const heads = [...(CONTENT.runs.length > 1 ? [t("Run")] : []), t("Start"), t("Began"), t("Iterations"), t("Took"), t("Checkpoints"), t("How it ended"), t("What changed")];
  return section(t("Starts and stops"), t("A later start replaces the iterations that it repeats."), table(heads, rows, "starts"));
}

function startRow(run, place, start, number) {
  const span = start.last == null ? t("none") : `${whole(start.first + 1)} – ${whole(start.last)}`;
  const again = start.repeated ? el("div", { className: "note" }, t("repeats {0}", whole(start.repeated))) : null;
  const saves = start.saves.count ? [whole(start.saves.count), el("div", { className: "note" }, savesNote(start.saves))] : "–";
  const ended = start.reason || t(number < run.starts.length - 1 ? "killed" : "no end recorded");
  const which = CONTENT.runs.length > 1 && el("td", { className: "run-cell" }, el("span", {}, swatch(place), run.label));
  return el("tr", {}, which, el("td", {}, String(number + 1)),
    el("td", { className: "nowrap" }, start.date, start.source === "TensorBoard" && el("div", { className: "note" }, t("from TensorBoard's files"))),
    el("td", { className: "nowrap" }, span, again), el("td", { className: "nowrap" }, duration(start.seconds)), el("td", { className: "nowrap" }, saves),
    el("td", { className: "reason" }, reasonText(ended)), el("td", { className: "changes" }, start.changes.map(change => el("div", {}, change))));
}

function reasonText(reason) {
  return Object.hasOwn(CONTENT.words, reason) ? t(reason) : reason;
}

function savesNote(saves) {
  return [saves.seconds != null && duration(saves.seconds), saves.bytes != null && bytes(saves.bytes)].filter(Boolean).join(" · ");
}

function dataSection() {
  const known = CONTENT.runs.map((run, place) => [run, place]).filter(([run]) => run.facts.samples != null);
  if (!known.length) return null;
  return section(t("Data"), t("How far each run has come through its samples."), el("div", { className: "cards data" }, known.map(([run, place]) => dataCard(run, place))));
}

function dataCard(run, place) {
  const facts = run.facts, data = facts.data, passes = data.samples ? facts.samples / data.samples : null;
  const counts = [t("{0} samples", whole(facts.samples)), facts.tokens != null && t("{0} tokens", counted(facts.tokens))].filter(Boolean).join(" · ");
  const card = el("article", { className: "card" }, el("div", { className: "card-head" },
    el("div", { className: "card-label" }, swatch(place), el("span", { className: "card-title" }, run.label)),
    passes != null && el("span", { className: "pill" }, t("{0} passes", figure(passes, 3)))),
    facts.train_data && data.parts.length === 0 && el("div", { className: "path" }, facts.train_data),
    passes != null && passBars(passes, data.passes),
    el("p", { className: "counts" }, counts, data.samples && ` · ${t("one pass has {0} samples", whole(data.samples))}`),
    data.parts.length > 0 && el("dl", { className: "parts" }, data.parts.map(part => partRow(part, facts.tokens))),
    facts.valid_data && facts.valid_data !== "none" && el("p", { className: "counts" }, t("validation"), ": ", el("span", { className: "path inline" }, facts.valid_data),
      data.valid_samples != null && ` · ${t("{0} samples", whole(data.valid_samples))}`));
  card.style.setProperty("--run", `var(--run-${place % COLORS})`);
  return card;
}

/** A bar for each pass, filled as far as it has come; of many passes one bar for all. */
function passBars(done, planned) {
  const all = Math.max(1, Math.ceil(Math.max(done, planned || 0) - 1e-9)), bars = all > 12 ? 1 : all;
  return el("div", { className: "passes" }, Array.from({ length: bars }, (_, place) => {
    const bar = el("div", { className: "bar" }, el("i"));
    const filled = bars === 1 ? done / all : done - place;
    bar.firstChild.style.width = `${100 * Math.min(1, Math.max(0, filled))}%`;
    return bar;
  }));
}

function partRow(part, tokens) {
  const seen = tokens == null || part.share == null ? null : part.share * tokens;
  const about = [seen != null && t("about {0} tokens", counted(seen)), seen != null && part.tokens > 0 && t("{0} passes", figure(seen / part.tokens, 3))]
    .filter(Boolean).join(" · ");
  return [el("dt", {}, part.share == null ? "" : `${figure(100 * part.share, 3)} %`), el("dd", {}, el("span", { className: "path inline" }, String(part.path)), el("small", {}, about))];
}

function argumentsSection(state) {
  if (!CONTENT.arguments.length) return null;
  const differing = CONTENT.arguments.filter(row => row.differs).length, several = CONTENT.runs.length > 1;
  const body = el("div", {}), filter = el("input", { type: "search", placeholder: t("Search"), "aria-label": t("Search"), oninput: () => draw() });
  const only = el("input", { type: "checkbox", checked: several && differing > 0, onchange: () => draw() });
  const draw = () => {
    const words = filter.value.toLowerCase();
    const fits = row => (!only.checked || row.differs) && (!words || `${row.name} ${row.values.join(" ")}`.toLowerCase().includes(words));
    const rows = CONTENT.arguments.filter(fits);
    body.replaceChildren(rows.length ? (several ? argumentTable : argumentList)(rows) : el("p", { className: "nothing" }, t("Nothing of that kind.")));
  };
  draw();
  const note = several ? t(differing === 1 ? "{0} of {1} differs." : "{0} of {1} differ.", differing, CONTENT.arguments.length) : null;
  return section(t("Arguments"), note, el("div", { className: "tools" }, filter, several && el("label", { className: "check" }, only, t("Only what differs"))), body);
}

function argumentTable(rows) {
  const heads = [t("Name"), ...CONTENT.runs.map((run, place) => el("span", {}, swatch(place), run.label))];
  const found = CONTENT.groups.flatMap(group => {
    const members = rows.filter(row => row.group === group);
    return members.length ? [el("tr", { className: "group" }, el("th", { colSpan: heads.length }, t(group))), ...members.map(argumentRow)] : [];
  });
  return table(heads, found, "arguments");
}

/** The arguments of one run alone, in columns. */
function argumentList(rows) {
  const groups = CONTENT.groups.map(group => [group, rows.filter(row => row.group === group)]).filter(([, members]) => members.length);
  return el("div", { className: "scroll lists" }, groups.map(([group, members]) => [el("h3", {}, t(group)), el("dl", {}, members.map(row =>
    el("div", { title: row.hint }, el("dt", {}, row.name), el("dd", {}, row.values[0] ?? "–"))))]));
}

function argumentRow(row) {
  const usual = mostCommon(row.values.filter(value => value != null));
  return el("tr", { className: row.differs ? "differs" : "" }, el("th", { title: row.hint }, row.name),
    row.values.map(value => el("td", { className: row.differs && value != null && value !== usual ? "other" : "" }, value == null ? "–" : value)));
}

/** The value that most have; the first of those that equally many have. */
function mostCommon(values) {
  const count = value => values.filter(other => other === value).length;
  return values.reduce((best, value) => count(value) > count(best) ? value : best, values[0]);
}

function notesSection() {
  return CONTENT.notes.length ? section(t("Notes"), null, el("ul", { className: "notes" }, CONTENT.notes.map(note => el("li", {}, note)))) : null;
}
