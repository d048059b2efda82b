/* One chart: lines of the runs that are shown, bands of what bins hide, marks of restarts, a box with the values. */

/** The lines of a chart. `spec.lines(run)` gives {x, curve, counts, name}; a run without the axis has none. */
function chartLines(spec, state) {
  const found = [], isLog = Boolean(state.logs[spec.key]);
  CONTENT.runs.forEach((run, place) => {
    if (!state.shown[place]) return;
    for (const { x, curve, counts, name } of spec.lines(run, state.axis)) {
      if (!x || !curve || !x.length) continue;
      const scaled = values => values && values.map(value => value == null || (isLog && value <= 0) ? null : value * (spec.scale || 1));
      const raw = scaled(curve.mean);
      const lines = spec.smooth ? linesOf(state.smoothing, totalLines(run)) : 1;
      found.push({
        run, place, name, x, raw, least: scaled(curve.least), most: scaled(curve.most), counts,
        smooth: lines > 1 ? smoothed(raw, counts, lines) : raw, isSmooth: lines > 1,
      });
    }
  });
  return found;
}

function totalLines(run) {
  return run.count.reduce((sum, count) => sum + count, 0);
}

/** A chart in `host`. Returns {update, place, destroy}; `update` reads the state anew. */
function makeChart(host, spec, state, onRange) {
  let plot = null, lines = [];
  const tip = el("div", { className: "tip", role: "status" });
  const isLog = () => Boolean(state.logs[spec.key]);

  function build() {
    if (plot) plot.destroy();
    lines = chartLines(spec, state);
    host.parentElement.classList.toggle("empty", !lines.length);
    plot = new uPlot(options(), joined(), host);
    plot.over.append(tip);
    touchable(plot, state, onRange);
  }

  function joined() {
    if (!lines.length) return [[0, 1]];
    // First what is faint, then what is bold, so that no run's spikes cover another's mean.
    const tables = [...lines.map(line => [line.x, line.raw]), ...lines.map(line => [line.x, line.smooth])];
    return uPlot.join(tables);
  }

  function series() {
    const one = (line, bold) => {
      const color = colorOf(line.place), few = line.x.length < 60 && !spec.smooth;
      return {
        stroke: bold ? color : faded(color, line.isSmooth ? 0.28 : 0), width: bold ? 1.75 : 1, spanGaps: true,
        dash: line.dash, points: { show: bold && few, size: 6, fill: color, stroke: color }, auto: false,
      };
    };
    return [{}, ...lines.map(line => one(line, false)), ...lines.map(line => one(line, true))];
  }

  function options() {
    return {
      width: Math.max(200, host.clientWidth), height: spec.height(), series: series(), legend: { show: false },
      padding: [10, 22, 0, 0],
      scales: {
        x: { time: false, range: () => state.range || fullRange(state) },
        y: { distr: isLog() ? 3 : 1, range: () => heightRange(lines, spec, state, ...(state.range || fullRange(state)), isLog()) },
      },
      axes: [horizontal(), vertical()],
      cursor: {
        sync: { key: "runs", setSeries: false }, drag: { x: true, y: false, setScale: false }, y: false,
        bind: { dblclick: () => () => { onRange(null); return null; } },
        dataIdx: (plotNow, place, hovered) => nearestKnown(plotNow, place, hovered),
        points: { size: 7, show: (plotNow, place) => place > lines.length ? undefined : document.createElement("i"), fill: (_, place) => colorOf(lines[(place - 1) % lines.length].place) },
      },
      hooks: { drawAxes: [bands], draw: [marks], setCursor: [showTip], setSelect: [zoomed] },
    };
  }

  const font = "11px system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', 'PingFang SC', 'Microsoft YaHei', sans-serif";
  const look = () => ({ stroke: () => css("--muted"), font, ticks: { show: false } });

  function horizontal() {
    const count = plotNow => Math.max(2, Math.floor(plotNow.bbox.width / devicePixelRatio / 90));
    return {
      ...look(), size: 30, gap: 6, grid: { show: false },
      splits: (plotNow, _, low, high) => linearTicks(low, high, count(plotNow)),
      values: (_, ticks) => ticks.map(AXES[state.axis].value),
    };
  }

  function vertical() {
    return {
      ...look(), gap: 8, grid: { stroke: () => css("--grid"), width: 1 }, filter: (_, ticks) => ticks,
      splits: (_, axis, low, high) => (isLog() ? logTicks : linearTicks)(low, high, Math.max(3, Math.floor(spec.height() / 58))),
      values: (_, ticks) => ticks.map(spec.tick || (tick => figure(tick, 4))),
      size: (_, values) => 16 + 6.6 * Math.max(2, ...(values || [""]).map(value => value.length)),
    };
  }

  /** Least and most of each bin, behind the curves. */
  function bands(plotNow) {
    const { ctx, bbox } = plotNow;
    ctx.save();
    ctx.beginPath();
    ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
    ctx.clip();
    for (const line of lines) {
      if (!line.most) continue;
      const rows = line.x.map((_, row) => row).filter(row => line.most[row] != null && line.least[row] != null);
      const at = (row, values) => [plotNow.valToPos(line.x[row], "x", true), plotNow.valToPos(values[row], "y", true)];
      ctx.beginPath();
      rows.forEach(row => ctx.lineTo(...at(row, line.most)));
      rows.reverse().forEach(row => ctx.lineTo(...at(row, line.least)));
      ctx.fillStyle = faded(colorOf(line.place), 0.2);
      ctx.fill();
    }
    ctx.restore();
  }

  /** Restarts as dashed lines with a flag, checkpoints as dots on the axis where `spec.marks` says so. */
  function marks(plotNow) {
    const { ctx, bbox } = plotNow, unit = devicePixelRatio;
    const within = value => value >= plotNow.scales.x.min && value <= plotNow.scales.x.max;
    ctx.save();
    for (const { color, x } of restarts().filter(mark => within(mark.x))) {
      const left = Math.round(plotNow.valToPos(x, "x", true));
      ctx.strokeStyle = faded(color, 0.75);
      ctx.lineWidth = unit;
      ctx.setLineDash([3 * unit, 3 * unit]);
      ctx.beginPath();
      ctx.moveTo(left, bbox.top);
      ctx.lineTo(left, bbox.top + bbox.height);
      ctx.stroke();
      ctx.fillStyle = color;
      ctx.beginPath();
      ctx.moveTo(left - 5 * unit, bbox.top - 6 * unit);
      ctx.lineTo(left + 5 * unit, bbox.top - 6 * unit);
      ctx.lineTo(left, bbox.top + 2 * unit);
      ctx.fill();
    }
    ctx.restore();
    if (spec.marks) dots(plotNow, within);
  }

  /** Checkpoints on the axis below, skipped iterations as crosses above it. */
  function dots(plotNow, within) {
    const { ctx, bbox } = plotNow, unit = devicePixelRatio, bottom = bbox.top + bbox.height;
    CONTENT.runs.forEach((run, place) => {
      if (!state.shown[place]) return;
      ctx.fillStyle = ctx.strokeStyle = colorOf(place);
      for (const x of (run.saves.axes[state.axis] || []).filter(within)) {
        const left = plotNow.valToPos(x, "x", true);
        ctx.fillRect(left - unit, bottom - 5 * unit, 2 * unit, 5 * unit);
      }
      ctx.lineWidth = 1.5 * unit;
      for (const x of (run.skipped.axes[state.axis] || []).filter(within)) {
        const left = plotNow.valToPos(x, "x", true), low = bottom - 12 * unit, arm = 3 * unit;
        ctx.beginPath();
        ctx.moveTo(left - arm, low - arm); ctx.lineTo(left + arm, low + arm);
        ctx.moveTo(left + arm, low - arm); ctx.lineTo(left - arm, low + arm);
        ctx.stroke();
      }
    });
  }

  function restarts() {
    return CONTENT.runs.flatMap((run, place) => !state.shown[place] ? [] : run.starts.slice(1)
      .map((start, number) => ({ place, color: colorOf(place), x: start.mark[state.axis], start, number: number + 2 }))
      .filter(mark => mark.x != null));
  }

  function showTip(plotNow) {
    const { left } = plotNow.cursor;
    const hovered = Boolean(plotNow.over.matches(":hover") || plotNow.touched);
    tip.classList.toggle("seen", hovered && left >= 0 && lines.length > 0);
    if (!hovered || left < 0 || !lines.length) return;
    const value = plotNow.posToVal(left, "x");
    const far = Math.abs(plotNow.posToVal(left + 12, "x") - value);
    const last = line => line.x[line.x.length - 1];
    const rows = lines.filter(line => value > line.x[0] - far && value < last(line) + far).map(line => ({ line, row: nearest(line.x, value) }));
    if (!rows.length) return tip.classList.remove("seen");
    const closest = rows.reduce((best, one) => Math.abs(one.line.x[one.row] - value) < Math.abs(best.line.x[best.row] - value) ? one : best);
    rows.sort((one, other) => (other.line.smooth[other.row] ?? -Infinity) - (one.line.smooth[one.row] ?? -Infinity));
    const unit = Math.abs(plotNow.posToVal(left + 7, "x") - value);
    const near = restarts().filter(mark => Math.abs(mark.x - value) < unit);
    tip.replaceChildren(
      el("div", { className: "tip-head" }, `${AXES[state.axis].one()} ${AXES[state.axis].whole(closest.line.x[closest.row])}`),
      ...rows.slice(0, 10).map(({ line, row }) => tipRow(line, row, spec)),
      ...near.slice(0, 3).map(mark => tipRestart(mark)),
    );
    const width = plotNow.over.clientWidth;
    tip.style.left = left < width / 2 ? `${Math.min(left + 14, width - tip.offsetWidth)}px` : `${Math.max(0, left - 14 - tip.offsetWidth)}px`;
  }

  function zoomed(plotNow) {
    const { left, width } = plotNow.select;
    const low = plotNow.posToVal(left, "x"), high = plotNow.posToVal(left + width, "x");
    plotNow.setSelect({ left: 0, width: 0, top: 0, height: 0 }, false);
    // The cursor is shared, so the other charts are told of the same selection.
    if (width >= 4 && plotNow.over.matches(":hover")) onRange([low, high]);
  }

  const watch = new ResizeObserver(() => plot && host.clientWidth && plot.setSize({ width: host.clientWidth, height: spec.height() }));
  build();
  watch.observe(host);
  return {
    spec, build,
    /** New values of the same lines: the smoothing has changed. */
    update() {
      lines = chartLines(spec, state);
      plot.setData(joined(), false);
      this.place();
    },
    /** The part of the axis that the state asks for. */
    place() {
      const [low, high] = state.range || fullRange(state);
      plot.batch(() => { plot.setScale("x", { min: low, max: high }); });
      plot.redraw(true, true);
    },
  };
}

function tipRow(line, row, spec) {
  const value = line.smooth[row], exact = line.raw[row], format = spec.format || figure;
  const range = line.most && line.most[row] != null && line.most[row] !== line.least[row]
    ? `${format(line.least[row])} … ${format(line.most[row])}` : line.isSmooth && exact != null ? format(exact) : "";
  return el("div", { className: "tip-row" }, swatch(line.place),
    el("span", { className: "tip-name" }, line.name ? `${line.run.label} · ${line.name}` : line.run.label),
    el("b", {}, format(value)), el("span", { className: "tip-more" }, range));
}

function tipRestart({ place, start, number }) {
  const said = t("start {0}, behind iteration {1}", number, start.first.toLocaleString("en-US"));
  return el("div", { className: "tip-row tip-restart" }, swatch(place), el("span", { className: "tip-name" }, said), el("b", {}, ""), el("span", {}, ""));
}

/** The nearest row with a value, where runs have other places on the axis; null if it is far from the cursor. */
function nearestKnown(plot, place, row) {
  const values = plot.data[place], x = plot.data[0];
  const far = (plot.scales.x.max - plot.scales.x.min) * 12 / Math.max(1, plot.over.clientWidth);
  const isNear = other => values[other] != null && (Math.abs(x[other] - x[row]) < far || other === row);
  for (let away = 0; away < values.length; away++) {
    if (isNear(row - away)) return row - away;
    if (isNear(row + away)) return row + away;
    if (x[row] - x[row - away] > far && x[row + away] - x[row] > far) return null;
  }
  return null;
}

/** One finger reads values, two zoom; a mouse's wheel zooms with Ctrl. */
function touchable(plot, state, onRange) {
  const over = plot.over;
  const zoomAt = (share, factor) => {
    const { min, max } = plot.scales.x, at = min + share * (max - min), [low, high] = fullRange(state);
    const range = [Math.max(low, at - (at - min) * factor), Math.min(high, at + (max - at) * factor)];
    onRange(range[0] <= low && range[1] >= high ? null : range);
  };
  const place = touch => touch.clientX - over.getBoundingClientRect().left;
  let apart = 0;
  const touched = event => {
    const [one, two] = event.touches;
    plot.touched = true;
    if (!two) return plot.setCursor({ left: place(one), top: 10 });
    event.preventDefault();
    const now = Math.abs(place(one) - place(two));
    if (apart && now > 8) zoomAt((place(one) + place(two)) / 2 / over.clientWidth, apart / now);
    apart = now;
  };
  over.addEventListener("touchstart", touched, { passive: false });
  over.addEventListener("touchmove", touched, { passive: false });
  over.addEventListener("touchend", () => { apart = 0; plot.touched = false; });
  over.addEventListener("wheel", event => {
    if (!event.ctrlKey) return;
    event.preventDefault();
    zoomAt(event.offsetX / over.clientWidth, event.deltaY > 0 ? 1.25 : 0.8);
  }, { passive: false });
}
