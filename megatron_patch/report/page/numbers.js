"use strict";
/* Pure functions over numbers: smoothing, ranges, texts. tests/report runs them in node where there is one. */

/** Exponential moving mean over bins of `counts` lines each, as if over the lines; without a pull towards zero at first.
 *  `lines`: over about how many lines; 1 leaves the values as they are. */
function smoothed(values, counts, lines) {
  const weight = 1 - 1 / Math.max(1, lines);
  let mean = 0, known = 0;
  return values.map((value, place) => {
    if (value == null) return null;
    const keep = Math.pow(weight, counts ? counts[place] : 1);
    mean = keep * mean + (1 - keep) * value;
    known = keep * known + (1 - keep);
    return mean / known;
  });
}

/** The slider's place, 0 to 100, as a number of lines up to a quarter of all. */
function linesOf(place, lines) {
  const most = Math.max(2, lines / 4);
  return Math.max(1, Math.round(Math.pow(most, place / 100)));
}

/** The place in a rising list whose value is nearest to `value`; -1 for an empty one. */
function nearest(list, value) {
  let low = 0, high = list.length - 1;
  if (high < 0) return -1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (list[middle] < value) low = middle; else high = middle;
  }
  return Math.abs(list[low] - value) <= Math.abs(list[high] - value) ? low : high;
}

/** [least, most] of the numbers between two shares of them in order; null if there are none. */
function spread(numbers, below, above) {
  const known = numbers.filter(value => value != null).sort((one, other) => one - other);
  if (!known.length) return null;
  const at = share => known[Math.min(known.length - 1, Math.max(0, Math.round(share * (known.length - 1))))];
  return [at(below), at(above)];
}

/** A step of 1, 2 or 5 times a power of ten, for about `count` ticks. */
function niceStep(length, count) {
  const rough = length / Math.max(1, count), power = Math.pow(10, Math.floor(Math.log10(rough)));
  const digit = rough / power;
  return power * (digit < 1.5 ? 1 : digit < 3.5 ? 2 : digit < 7.5 ? 5 : 10);
}

/** Ticks of a linear axis. */
function linearTicks(low, high, count) {
  const step = niceStep(high - low, count), ticks = [];
  if (!(step > 0) || !isFinite(step)) return [low];
  for (let place = Math.ceil(low / step - 1e-9); place * step <= high + step * 1e-9; place++) ticks.push(+(place * step).toPrecision(12));
  return ticks;
}

/** Ticks of a logarithmic axis: 1, 2 and 5 times powers of ten, powers alone over many of them, linear ones within one. */
function logTicks(low, high, count) {
  const decades = Math.log10(high / low);
  if (!(low > 0) || decades < 1) return linearTicks(low, high, count).filter(tick => tick > 0);
  const digits = decades > 3 ? [1] : [1, 2, 5], ticks = [];
  const apart = Math.max(1, Math.ceil(decades / count));
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++) {
    if (power % apart && digits.length === 1) continue;
    for (const digit of digits) {
      const tick = +(digit * Math.pow(10, power)).toPrecision(3);
      if (tick >= low && tick <= high) ticks.push(tick);
    }
  }
  return ticks;
}

/** A number with so many significant digits; very small and large ones with a power of ten. */
function figure(value, digits = 4) {
  if (value == null || !isFinite(value)) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size < 1e-3 || size >= 1e7) return value.toExponential(digits - 2).replace(/\.?0+e/, "e").replace("e+", "e");
  if (size >= Math.pow(10, digits - 1)) return Math.round(value).toLocaleString("en-US");
  return String(+value.toPrecision(digits));
}

/** 1234 → 1,234; 65536 → 65.5 k; 1.2e9 → 1.2 B. */
function counted(value, digits = 3) {
  if (value == null || !isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size < 1e4) return Math.round(value).toLocaleString("en-US");
  const [unit, name] = size < 1e6 ? [1e3, "k"] : size < 1e9 ? [1e6, "M"] : size < 1e12 ? [1e9, "B"] : [1e12, "T"];
  return `${+(value / unit).toPrecision(digits)} ${name}`;
}

function bytes(value) {
  if (value == null || !isFinite(value)) return "–";
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let place = 0;
  while (Math.abs(value) >= 1024 && place < units.length - 1) { value /= 1024; place++; }
  return `${place ? +value.toPrecision(3) : value} ${units[place]}`;
}

/** Seconds as two units at most. */
function duration(seconds) {
  if (seconds == null || !isFinite(seconds)) return "–";
  if (seconds < 59.5) return `${seconds < 10 ? +seconds.toFixed(1) : Math.round(seconds)} s`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 60) return `${minutes} min`;
  if (minutes < 48 * 60) return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
  return `${Math.floor(minutes / 1440)} d ${Math.round((minutes % 1440) / 60)} h`;
}

if (typeof module !== "undefined") module.exports = { smoothed, linesOf, nearest, spread, linearTicks, logTicks, figure, counted, bytes, duration };
