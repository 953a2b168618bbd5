// Curves and points by uPlot, in the colours of the page, with words for who does not see them.

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const short = new Intl.NumberFormat(undefined, { notation: "compact", maximumSignificantDigits: 3 });
const exact = new Intl.NumberFormat(undefined, { maximumSignificantDigits: 4 });
export const say = (value) => (value == null ? "–" : Math.abs(value) >= 10_000 ? short.format(value) : exact.format(value));
export const bytes = (value) => {
  if (value == null) return "–";
  for (const [limit, unit] of [[1e12, "TB"], [1e9, "GB"], [1e6, "MB"], [1e3, "kB"]]) {
    if (value >= limit) return `${exact.format(value / limit)} ${unit}`;
  }
  return `${value} B`;
};

function axes(xLabel, yLabel, xValues) {
  const common = { stroke: colour("--soft"), grid: { stroke: colour("--rule"), width: 1 }, ticks: { stroke: colour("--rule") } };
  return [
    { ...common, label: xLabel, labelSize: 20, size: 36, values: (_, ticks) => ticks.map(xValues) },
    { ...common, label: yLabel, labelSize: 18, size: 56, values: (_, ticks) => ticks.map(say) },
  ];
}

// A place that follows the width of its column, and is drawn anew in the other colours when the reader changes them.
function keep(place, make) {
  let plot = make(Math.max(240, place.clientWidth));
  new ResizeObserver(() => {
    const width = Math.max(240, place.clientWidth);
    if (width !== plot.width) plot.setSize({ width, height: plot.height });
  }).observe(place);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    const data = plot.data;
    plot.destroy();
    plot = make(Math.max(240, place.clientWidth), data);
  });
  return { set: (data) => plot.setData(data) };
}

export function curve(place, { title, yLabel, names, data }) {
  const lines = ["--c1", "--c2", "--c3", "--c4"];
  return keep(place, (width, now = data) => new uPlot({
    width, height: 220, title: undefined, cursor: { y: false }, scales: { x: { time: false } },
    axes: axes("step", yLabel, say),
    series: [{ label: "step", value: (_, v) => say(v) }, ...names.map((label, place) => ({
      label, stroke: colour(lines[place]), width: 2, dash: place ? [6, 3] : undefined, spanGaps: true,
      points: { show: now[0].length < 40 }, value: (_, v) => say(v),
    }))],
  }, now, place));
}

// Points with their names beside them: x is bytes, y is a loss.
export function scatter(place, points) {
  const sorted = [...points].sort((one, other) => one.bytes - other.bytes);
  const of = (kind) => sorted.map((point) => (point.kind === kind ? point.loss : null));
  const names = {
    hooks: {
      draw: (plot) => {
        const context = plot.ctx;
        context.save();
        context.fillStyle = colour("--ink");
        context.font = `${12 * devicePixelRatio}px ${getComputedStyle(document.body).fontFamily}`;
        for (const point of sorted) {
          const x = plot.valToPos(point.bytes, "x", true);
          const nearEnd = x > plot.bbox.left + plot.bbox.width * 0.6;
          context.textAlign = nearEnd ? "right" : "left";
          context.fillText(point.label, x + (nearEnd ? -10 : 10) * devicePixelRatio, plot.valToPos(point.loss, "y", true) + 4 * devicePixelRatio);
        }
        context.restore();
      },
    },
  };
  const series = (label, tint) => ({
    label, stroke: colour(tint), paths: () => null, points: { show: true, size: 11, fill: colour(tint) }, value: (_, v) => say(v),
  });
  const room = (low, high) => { const gap = (high - low || high || 1) * 0.12; return [Math.max(0, low - gap), high + gap]; };
  return keep(place, (width, now = [sorted.map((p) => p.bytes), of("variant"), of("teacher")]) => new uPlot({
    width, height: 320, plugins: [names], cursor: { y: false },
    scales: { x: { time: false, range: (_, low, high) => room(low, high) }, y: { range: (_, low, high) => room(low, high) } },
    axes: axes("bytes on the device", "held-out loss (nats/token)", bytes),
    series: [{ label: "size", value: (_, v) => bytes(v) }, series("variant", "--c1"), series("teacher", "--c2")],
  }, now, place));
}
