/* What the curves stand over, and how far up and down they are shown. */

const AXES = {
  iteration: { name: () => t("Iterations"), one: () => t("Iteration"), value: value => counted(value, 4), whole: value => Math.round(value).toLocaleString("en-US") },
  tokens: { name: () => t("Tokens"), one: () => t("Tokens"), value: value => counted(value, 4), whole: value => counted(value, 4) },
  hours: { name: () => t("Hours"), one: () => t("Time taken"), value: value => `${figure(value, 3)} h`, whole: value => duration(value * 3600) },
};

/** The axes that each run has. */
function sharedAxes() {
  return Object.keys(AXES).filter(axis => CONTENT.runs.every(run => !run.count.length || run.axes[axis]));
}

/** [least, most] over the runs that are shown. */
function fullRange(state) {
  let low = Infinity, high = -Infinity;
  CONTENT.runs.forEach((run, place) => {
    const axis = run.axes[state.axis];
    if (!state.shown[place] || !axis || !axis.length) return;
    low = Math.min(low, axis[0]);
    high = Math.max(high, axis[axis.length - 1]);
  });
  if (!(low < high)) return [isFinite(low) ? low - 1 : 0, isFinite(low) ? low + 1 : 1];
  return [low, high];
}

/** [bottom, top] of a chart: all that its lines have between `low` and `high`, or all but outliers. */
function heightRange(lines, spec, state, low, high, isLog) {
  const seen = [];
  for (const line of lines) {
    for (let place = 0; place < line.x.length; place++) {
      if (line.x[place] < low || line.x[place] > high) continue;
      if (line.most) seen.push(line.least[place], line.most[place]);
      else seen.push(line.raw[place]);
    }
  }
  const isClipped = state.clipped && spec.smooth;
  const known = isLog ? seen.filter(value => value > 0) : seen;
  const found = spread(known, isClipped ? 0.02 : 0, isClipped ? 0.98 : 1);
  if (!found) return isLog ? [0.1, 1] : [0, 1];
  let [bottom, top] = found;
  if (isLog) {
    const room = Math.max(1.02, Math.pow(top / bottom, 0.05));
    return [bottom / room, top * room];
  }
  if (spec.zero) bottom = Math.min(0, bottom);
  const room = top > bottom ? (top - bottom) * 0.06 : Math.abs(top) * 0.1 || 1;
  return [spec.zero && bottom === 0 ? 0 : bottom - room, top + room];
}
