// Lines over the last quarter of an hour. Each line has a dash of its own, so that colour is not needed to tell them.

import { NONE, bounded, bytes, milliseconds, minute, moment, number } from "./format.js";
import { text } from "./text.js";

const DASHES = [[], [7, 4], [2, 3]];
const HEIGHT = 170;

const CHARTS = [
  { id: "throughput", wide: true, clips: true, show: number, lines: [["accepted", "accepted"], ["written", "written"], ["merged", "merged"]] },
  { id: "waitingRows", show: number, lines: [["pending", "all"], ["in_memory", "inMemory"]] },
  { id: "journalBytes", show: bytes, base: 1024, lines: [["journal_bytes", "size"]] },
  { id: "answers", show: milliseconds, bounds: true, lines: [["answer_p50_ms", "p50Line"], ["answer_p99_ms", "p99Line"]] },
  { id: "flushes", show: milliseconds, bars: true, lines: [["flush_ms", "flush"]] },
];

// A line with fewer values is shown whole; a peak this many times above what is usual is clipped, at half of that.
const FEW = 5;
const FAR = 4;

// Where to clip, so that one burst does not flatten all else: null where nothing stands out. What is usual is what four
// fifths of a line's values do not pass; zeros do not count, since a line that is written by flushes is mostly zero.
export function ceiling(columns) {
  let usual = 0;
  let highest = 0;
  for (const column of columns) {
    const values = column.filter((value) => value > 0).sort((a, b) => a - b);
    if (!values.length) continue;
    highest = Math.max(highest, values.at(-1));
    usual = Math.max(usual, values.length < FEW ? values.at(-1) : values[Math.ceil(0.8 * values.length) - 1]);
  }
  return highest > FAR * usual ? (FAR / 2) * usual : null;
}

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function element(tag, name, parent) {
  const made = document.createElement(tag);
  if (name) made.className = name;
  parent.append(made);
  return made;
}

// Powers of 1024 for bytes, so that the marks at the side are round.
function steps(base) {
  const found = [];
  for (let unit = 1; unit < 2 ** 50; unit *= base) {
    for (const step of [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]) found.push(unit * step);
  }
  return found;
}

class Chart {
  constructor(spec, parent) {
    this.spec = spec;
    this.data = [[], ...spec.lines.map(() => [])];
    this.down = [];
    this.ceiling = null;
    this.chosen = null; // the time of the sample that the keyboard has chosen
    this.value = spec.show;
    this.figure = element("figure", spec.wide ? "chart card wide" : "chart card", parent);
    this.figure.id = `chart-${spec.id}`;
    this.figure.tabIndex = 0;
    const head = element("figcaption", "", this.figure);
    element("h3", "", head).textContent = text[spec.id];
    this.when = element("span", "when", head);
    this.legend = element("ul", "legend", this.figure);
    this.values = spec.lines.map(([, label], index) => this.entry(label, `line line-${index}`));
    this.outage = this.entry("outage", "band").closest("li");
    this.outage.hidden = true;
    if (spec.clips) {
      this.peak = this.entry("peak", "clipped");
      this.peak.closest("li").hidden = true;
    }
    this.area = element("div", "area", this.figure);
    this.figure.addEventListener("keydown", (event) => this.key(event));
    this.figure.addEventListener("blur", () => this.choose(null));
    this.area.addEventListener("pointermove", () => (this.chosen = null));
    this.build();
    new ResizeObserver(() => this.fit()).observe(this.area);
  }

  entry(label, swatch) {
    const item = element("li", "", this.legend);
    if (this.spec.bars && swatch !== "band") swatch = "bar";
    element("span", `swatch ${swatch}`, item).setAttribute("aria-hidden", "true");
    element("span", "", item).textContent = text[label];
    return element("strong", "", item);
  }

  build() {
    this.plot?.destroy();
    const grid = { stroke: colour("--grid"), width: 1 };
    const axis = { stroke: colour("--muted"), font: `12px ${getComputedStyle(document.body).fontFamily}`, grid, ticks: { show: false } };
    const { spec } = this;
    const options = {
      width: this.area.clientWidth || 300,
      height: HEIGHT,
      padding: [10, 24, 0, 0],
      legend: { show: false },
      cursor: { y: false, drag: { x: false, y: false }, points: { size: 7 } },
      scales: { x: { time: true, range: () => [this.now - this.span, this.now] }, y: { range: (_, _min, max) => [0, this.ceiling ?? (max > 0 ? max * 1.1 : 1)] } },
      axes: [
        { ...axis, size: 28, grid: { show: false }, space: 70, values: (_, ticks) => ticks.map((tick) => minute(tick * 1000)), incrs: [60, 120, 180, 300] },
        { ...axis, size: 64, gap: 6, space: 36, values: (_, ticks) => ticks.map(spec.show), ...(spec.base && { incrs: steps(spec.base) }) },
      ],
      series: [{}, ...spec.lines.map((_, index) => this.line(index))],
      hooks: { drawClear: [(plot) => this.shade(plot)], draw: [(plot) => this.clip(plot)], setCursor: [(plot) => this.read(plot.cursor.idx)] },
    };
    this.now ??= Date.now() / 1000;
    this.span ??= 900;
    this.plot = new uPlot(options, this.data, this.area);
  }

  line(index) {
    const stroke = colour(`--line-${index}`);
    if (this.spec.bars) {
      return { stroke, fill: stroke, paths: uPlot.paths.bars({ size: [0.7, 5, 2] }), points: { show: false } };
    }
    return { stroke, width: 2, dash: DASHES[index], points: { show: false }, ...(index === 0 && { fill: colour("--fill") }) };
  }

  fit() {
    const width = this.area.clientWidth;
    if (width && width !== this.plot.width) this.plot.setSize({ width, height: HEIGHT });
  }

  // The times without a database, behind the lines.
  shade(plot) {
    const { ctx, bbox } = plot;
    const at = this.data[0];
    ctx.save();
    ctx.fillStyle = colour("--outage");
    this.down.forEach((down, index) => {
      if (!down) return;
      const end = plot.valToPos(at[index], "x", true);
      const start = plot.valToPos(index ? Math.max(at[index - 1], at[index] - 10) : at[index] - 5, "x", true);
      const left = Math.max(bbox.left, start);
      if (end > left) ctx.fillRect(left, bbox.top, end - left, bbox.height);
    });
    ctx.restore();
  }

  // A mark at the edge for each sample that goes past it.
  clip(plot) {
    if (this.ceiling === null) return;
    const { ctx, bbox } = plot;
    const size = 5 * devicePixelRatio;
    ctx.save();
    this.spec.lines.forEach((_, line) => {
      ctx.fillStyle = colour(`--line-${line}`);
      this.data[line + 1].forEach((value, index) => {
        if (value <= this.ceiling) return;
        const x = plot.valToPos(this.data[0][index], "x", true);
        ctx.beginPath();
        ctx.moveTo(x - size, bbox.top);
        ctx.lineTo(x + size, bbox.top);
        ctx.lineTo(x, bbox.top - 1.5 * size);
        ctx.fill();
      });
    });
    ctx.restore();
  }

  // What is clipped is told.
  tellPeak() {
    this.peak.closest("li").hidden = this.ceiling === null;
    if (this.ceiling === null) return;
    const columns = this.data.slice(1);
    const highest = columns.map((column) => Math.max(...column));
    const line = highest.indexOf(Math.max(...highest));
    const at = this.data[0][columns[line].indexOf(highest[line])];
    const peak = `${text[this.spec.lines[line][1]]} ${this.value(highest[line])}, ${moment(at * 1000)}`;
    if (this.peak.textContent !== peak) this.peak.textContent = peak;
  }

  show({ samples, answers, now, span_seconds: span }) {
    this.now = now;
    this.span = span;
    this.value = this.spec.bounds ? bounded(answers.limit_ms) : this.spec.show;
    this.down = samples.sink_up.map((up) => !up);
    this.outage.hidden = !this.down.includes(true);
    this.data = [samples.at, ...this.spec.lines.map(([column]) => samples[column])];
    if (this.peak) {
      this.ceiling = ceiling(this.data.slice(1));
      this.tellPeak();
    }
    this.plot.setData(this.data);
    if (this.chosen === null) this.read(this.plot.cursor.idx);
    // After uPlot has taken over the new scale, which it does in a microtask of its own.
    else queueMicrotask(() => this.chosen !== null && this.choose(Math.max(0, samples.at.findLastIndex((at) => at <= this.chosen)))); // the oldest, once it is gone
  }

  // Show the values of one sample in the legend: the one pointed at, else the latest.
  read(index) {
    const at = this.data[0];
    const pointed = index !== null && index !== undefined && index < at.length;
    const sample = pointed ? index : at.length - 1;
    this.when.textContent = pointed ? moment(at[sample] * 1000) : "";
    const said = this.spec.lines.map(([, label], line) => {
      const column = this.data[line + 1];
      // A flush is not in every sample; the latest there was is what is looked for.
      const found = pointed || !this.spec.bars ? column[sample] : column.findLast((value) => value !== null);
      const shown = sample < 0 ? NONE : this.value(found);
      this.values[line].textContent = shown;
      return `${text[label]} ${shown}`;
    });
    this.figure.setAttribute("aria-label", [text[this.spec.id], this.when.textContent, ...said].filter(Boolean).join(", "));
  }

  choose(index) {
    this.chosen = index === null ? null : this.data[0][index];
    if (index === null) {
      this.plot.setCursor({ left: -10, top: -10 });
    } else {
      this.plot.setCursor({ left: this.plot.valToPos(this.data[0][index], "x"), top: 20 });
    }
  }

  key(event) {
    const last = this.data[0].length - 1;
    const index = this.plot.cursor.idx ?? last + 1;
    const moves = { ArrowLeft: index - 1, ArrowRight: index + 1, Home: 0, End: last, Escape: null };
    if (!(event.key in moves) || last < 0) return;
    event.preventDefault();
    const to = moves[event.key];
    this.choose(to === null ? null : Math.min(Math.max(to, 0), last));
    document.getElementById("spoken").textContent = this.figure.getAttribute("aria-label");
  }
}

export function makeCharts(parent) {
  const charts = CHARTS.map((spec) => new Chart(spec, parent));
  // Colours are drawn, not styled: another scheme needs another drawing.
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => charts.forEach((chart) => chart.build()));
  return charts;
}
