"use strict";
// The timeline of a report. Reads the JSON in #data (launcher/report/packed.py) and draws it on one canvas: spans that
// are wider than a pixel as such, all others as what part of each column of pixels went to which kind.
const timeline = (() => {
  const source = document.getElementById("data");
  const root = document.getElementById("timeline");
  if (!source || !root) return null;
  const data = JSON.parse(source.textContent);
  const canvas = root.querySelector("canvas");
  const tip = document.getElementById("tip");
  const context = canvas.getContext("2d");
  const KINDS = data.kinds, COUNT = KINDS.length, TRANSFER = KINDS.indexOf("transfer");
  const ORDER = ["prefill", "decode", "weights", "load", "bubble", "host_gap", "no_work"].map((kind) => KINDS.indexOf(kind));
  const AXIS = 26, STRIP = 4, GAP = 4;
  const lanes = data.lanes.map(decode);
  const several = lanes.some((lane) => lane.group.some((group) => group > 0)); // groups: else their number says nothing
  const laneHeight = lanes.length > 40 ? 12 : lanes.length > 16 ? 18 : 28;
  const whole = [0, data.length];
  let view = [...padded(data.window)];
  let width = 0, gutter = 0, colours = {}, selection = null, drawn = 0;

  function bytes(text) { return Uint8Array.from(atob(text), (c) => c.charCodeAt(0)); }

  function decode(lane) {
    const start = new Uint32Array(bytes(lane.start).buffer), ticks = new Uint32Array(bytes(lane.ticks).buffer);
    const reach = new Float64Array(lane.count); // the latest end up to here: where a search may begin
    let latest = 0;
    for (let i = 0; i < lane.count; i++) reach[i] = latest = Math.max(latest, start[i] + ticks[i]);
    return {
      ...lane, start, ticks, reach, kind: bytes(lane.kind), bins: bytes(lane.bins),
      step: new Int32Array(bytes(lane.step).buffer), group: new Int16Array(bytes(lane.group).buffer),
    };
  }

  function padded([begin, end]) {
    const room = (end - begin) * 0.01;
    return [Math.max(0, begin - room), Math.min(data.length, end + room)];
  }

  // --- drawing ---

  function resize() {
    width = root.clientWidth;
    gutter = Math.round(Math.min(width * 0.3, 12 + Math.max(...lanes.map((lane) => measure(lane.label)))));
    const height = AXIS + lanes.length * (laneHeight + GAP) + 8;
    const ratio = window.devicePixelRatio || 1;
    canvas.style.height = `${height}px`;
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    draw();
  }

  function measure(text) { context.font = font(12.5); return context.measureText(text).width; }
  function font(size) { return `${size}px ${getComputedStyle(document.body).fontFamily}`; }
  function readColours() {
    const style = getComputedStyle(document.documentElement);
    for (const name of [...KINDS, "ink", "soft", "line", "track", "paper", "accent", "on-span"]) colours[name] = style.getPropertyValue(`--${name}`).trim();
  }
  function plotWidth() { return Math.max(1, width - gutter); }
  function scale() { return plotWidth() / (view[1] - view[0]); }
  function x(tick) { return gutter + (tick - view[0]) * scale(); }
  function tickAt(pixel) { return view[0] + (pixel - gutter) / scale(); }
  function top(index) { return AXIS + index * (laneHeight + GAP); }

  function draw() {
    readColours();
    context.clearRect(0, 0, width, canvas.height);
    drawn = 0;
    drawAxis();
    context.save();
    context.beginPath();
    context.rect(gutter, 0, plotWidth(), canvas.height);
    context.clip();
    lanes.forEach(drawLane);
    drawCuts();
    if (selection) { context.fillStyle = colours.accent; context.globalAlpha = 0.25; context.fillRect(selection[0], 0, selection[1] - selection[0], canvas.height); }
    context.restore();
    lanes.forEach(drawLabel);
    Object.assign(canvas.dataset, { begin: view[0], end: view[1], drawn });
  }

  function drawLabel(lane, index) {
    context.font = font(laneHeight < 14 ? 10 : 12.5);
    context.fillStyle = colours.ink;
    context.textBaseline = "middle";
    context.fillText(lane.label, 0, top(index) + laneHeight / 2, gutter - 8);
  }

  function drawLane(lane, index) {
    const y = top(index), height = laneHeight - STRIP - 1;
    const columns = new Float32Array(Math.ceil(plotWidth() + 1) * COUNT);
    for (let i = first(lane, view[0]); i < lane.count && lane.start[i] < view[1]; i++) {
      const left = x(lane.start[i]), right = left + lane.ticks[i] * scale();
      if (right < gutter) continue;
      drawn++;
      if (right - left < 1.2) spread(columns, lane.kind[i], left, right, 1);
      else if (lane.kind[i] === TRANSFER) fill(TRANSFER, left, y + laneHeight - STRIP, right - left, STRIP);
      else drawSpan(lane, i, left, right, y, height);
    }
    if (data.bins) eachBin(lane, ...view, (kind, from, to, part) => spread(columns, kind, x(from), x(to), part));
    drawColumns(columns, y, height);
  }

  function drawSpan(lane, i, left, right, y, height) {
    const wide = right - left, idle = lane.group[i] < 0;
    if (idle) return fill(lane.kind[i], left, y + height * 0.32, wide, height * 0.36); // waiting is a line, work a box
    fill(lane.kind[i], left, y, wide < 3 ? wide : wide - 0.7, height);
    if (!several || wide < 16 || laneHeight < 18 || lane.kind[i] === KINDS.indexOf("load")) return undefined;
    context.fillStyle = lane.kind[i] === KINDS.indexOf("prefill") ? "#ffffff" : colours["on-span"];
    context.font = font(11);
    context.textBaseline = "middle";
    const text = wide > 76 ? `group ${lane.group[i]}` : `${lane.group[i]}`;
    const from = Math.max(left, gutter), room = Math.min(right, width) - from - 6;
    if (context.measureText(text).width <= room) context.fillText(text, from + 4, y + height / 2 + 0.5);
    return undefined;
  }

  function fill(kind, left, y, wide, height) { context.fillStyle = colours[KINDS[kind]]; context.fillRect(left, y, wide, height); }

  function spread(columns, kind, left, right, part) { // the time between two places goes to the columns that it touches
    const most = columns.length / COUNT - 1;
    const from = Math.max(0, left - gutter), to = Math.min(most, right - gutter);
    for (let column = Math.floor(from); column < to; column++) {
      columns[column * COUNT + kind] += (Math.min(to, column + 1) - Math.max(from, column)) * part;
    }
  }

  function eachBin(lane, begin, end, take) { // of the time whose spans are not all in the page
    const size = data.length / data.bins;
    for (let bin = Math.max(0, Math.floor(begin / size)); bin < data.bins && bin * size < end; bin++) {
      for (const [from, to] of outside(Math.max(begin, bin * size), Math.min(end, (bin + 1) * size))) {
        for (let kind = 0; kind < COUNT; kind++) {
          const part = lane.bins[bin * COUNT + kind] / 255;
          if (part) take(kind, from, to, part);
        }
      }
    }
  }

  function outside(begin, end) { // the parts of an interval of which the page does not hold every span
    const parts = [];
    for (const [from, to] of data.detail) {
      if (from > begin && begin < end) parts.push([begin, Math.min(from, end)]);
      begin = Math.max(begin, to);
    }
    if (begin < end) parts.push([begin, end]);
    return parts.filter(([from, to]) => from < to);
  }

  function drawColumns(columns, y, height) {
    for (let column = 0; column < columns.length / COUNT; column++) {
      let base = y + height;
      for (const kind of ORDER) {
        const part = Math.min(1, columns[column * COUNT + kind]) * height;
        if (part > 0.05) fill(kind, gutter + column, (base = Math.max(y, base - part)), 1, part);
      }
      const moved = Math.min(1, columns[column * COUNT + TRANSFER]);
      if (moved > 0.01) { context.globalAlpha = 0.25 + 0.75 * moved; fill(TRANSFER, gutter + column, y + laneHeight - STRIP, 1, STRIP); context.globalAlpha = 1; }
    }
  }

  function drawAxis() {
    const step = niceStep((view[1] - view[0]) * data.tick_s * 90 / plotWidth());
    context.font = font(12);
    context.textBaseline = "alphabetic";
    const bottom = top(lanes.length);
    for (let n = Math.ceil(view[0] * data.tick_s / step); n * step <= view[1] * data.tick_s; n++) {
      const place = x(n * step / data.tick_s), text = seconds(n * step, step, view[1] * data.tick_s > 300);
      context.fillStyle = colours.line;
      context.fillRect(Math.round(place), AXIS - 6, 1, bottom - AXIS + 6);
      context.fillStyle = colours.soft;
      context.fillText(text, Math.min(place + 4, width - context.measureText(text).width), AXIS - 10);
    }
    context.fillStyle = colours.line;
    context.fillRect(gutter, AXIS - 4, plotWidth(), 1);
    if (data.bins) for (const [begin, end] of data.detail) { const from = Math.max(gutter, x(begin)); context.fillStyle = colours.ink; context.fillRect(from, AXIS - 5, Math.max(2, Math.min(width, x(end)) - from), 3); }
    context.fillStyle = colours.track; // which part of the run is in view
    context.fillRect(gutter, bottom + 2, plotWidth(), 3);
    context.fillStyle = colours.soft;
    context.fillRect(gutter + view[0] / data.length * plotWidth(), bottom + 2, Math.max(3, (view[1] - view[0]) / data.length * plotWidth()), 3);
  }

  function drawCuts() {
    context.strokeStyle = colours.ink;
    context.setLineDash([4, 3]);
    for (const cut of data.cuts) { context.beginPath(); context.moveTo(x(cut), AXIS - 6); context.lineTo(x(cut), top(lanes.length)); context.stroke(); }
    context.setLineDash([]);
  }

  function niceStep(least) {
    const power = 10 ** Math.floor(Math.log10(least));
    const found = [1, 2, 5, 10].map((n) => n * power).find((step) => step >= least);
    return found < 30 ? found : [30, 60, 120, 300, 600, 1800, 3600, 7200, 14400, 43200, 86400].find((step) => step >= least) || Math.ceil(least / 86400) * 86400;
  }

  function seconds(value, step = 0, long = value >= 300) {
    const size = Math.max(Math.abs(value), 1e-9), by = step || size / 1000;
    const digits = (unit) => Math.max(0, Math.min(6, Math.ceil(-Math.log10(by / unit) - 1e-9)));
    if (!long && size < 1e-3 && value) return `${(value * 1e6).toFixed(digits(1e-6))} µs`;
    if (!long && size < 1 && value) return `${(value * 1e3).toFixed(digits(1e-3))} ms`;
    if (!long) return `${value.toFixed(digits(1))} s`;
    const minutes = Math.floor(value / 60), rest = value - minutes * 60;
    const small = rest.toFixed(step ? digits(1) : 0).padStart(2, "0");
    return minutes < 60 ? `${minutes}m${small}s` : `${Math.floor(minutes / 60)}h${String(minutes % 60).padStart(2, "0")}m${rest ? `${small}s` : ""}`;
  }

  // --- looking up ---

  function first(lane, tick) { // the first span that may reach beyond this moment
    let low = 0, high = lane.count;
    while (low < high) { const middle = (low + high) >> 1; if (lane.reach[middle] > tick) high = middle; else low = middle + 1; }
    return low;
  }

  function describe(px, py) {
    const index = Math.floor((py - AXIS) / (laneHeight + GAP)), lane = lanes[index];
    if (!lane || px < gutter) return null;
    const inStrip = py - top(index) >= laneHeight - STRIP - 1, begin = tickAt(px - 0.5), end = tickAt(px + 0.5);
    const totals = new Float64Array(COUNT);
    let found = -1, best = Infinity, number = 0;
    for (let i = first(lane, begin); i < lane.count && lane.start[i] < end; i++) {
      const inside = Math.min(end, lane.start[i] + lane.ticks[i]) - Math.max(begin, lane.start[i]);
      if (inside < 0) continue;
      number++;
      totals[lane.kind[i]] += inside / (end - begin);
      const away = ((lane.kind[i] === TRANSFER) === inStrip ? 0 : 2) + (lane.group[i] < 0 ? 1 : 0) - Math.min(1, inside / (end - begin));
      if (away < best) { best = away; found = i; }
    }
    const head = `${lane.label}\n${lane.title}`;
    if (found >= 0 && lane.ticks[found] * scale() >= 1.2) return `${spanText(lane, found)}\n${head}`;
    if (data.bins) addBins(lane, begin, end, totals);
    const shares = KINDS.map((kind, k) => [kind, totals[k]]).filter(([, part]) => part > 0.004).sort((a, b) => b[1] - a[1]);
    if (!shares.length) return null;
    const list = shares.map(([kind, part]) => `${name(kind)} ${Math.round(part * 100)} %`).join(", ");
    return `${seconds((end - begin) * data.tick_s)} here: ${list}${number ? ` (${number} spans)` : ""}\n${head}`;
  }

  function addBins(lane, begin, end, totals) {
    eachBin(lane, begin, end, (kind, from, to, part) => { totals[kind] += part * (to - from) / (end - begin); });
  }

  function name(kind) { return kind.replace("_", " "); }
  function spanText(lane, i) {
    const kind = name(KINDS[lane.kind[i]]), from = seconds(lane.start[i] * data.tick_s), took = seconds(lane.ticks[i] * data.tick_s);
    const which = lane.group[i] < 0 || kind === "load" ? "" : `, group ${lane.group[i]}, step ${lane.step[i]}`;
    return `${kind}${which}: ${took}\nfrom ${from}`;
  }

  function show(begin, end) {
    const size = Math.min(data.length, Math.max(end - begin, 20));
    const from = Math.min(Math.max(0, (begin + end - size) / 2), data.length - size);
    view = [from, from + size];
    requestAnimationFrame(draw);
  }

  function select(range) { selection = range; draw(); }

  new ResizeObserver(resize).observe(root);
  return { root, canvas, data, axis: AXIS, show, select, describe, tickAt, resize, view: () => view, window: () => padded(data.window) };
})();
