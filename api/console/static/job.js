// One job while it goes on: events as they happen, the panel when the status changes, curves from the figures.

import { fragment, localise, show } from "./page.js";
import { bytes, curve, say } from "./plots.js";

const panel = document.getElementById("panel");
const live = document.getElementById("live");
const list = document.getElementById("events");
const job = panel.dataset.job;
const QUIET = new Set(["progress", "metrics"]);
const MOST_SHOWN = 400;
let seq = Number(panel.dataset.seq);
let ended = panel.dataset.ended === "yes";
const sent = sessionStorage.getItem("sent-draft");
if (sent) for (const key of [sent, "sent-draft"]) sessionStorage.removeItem(key);
let source = null;
let retry = 1_000;

// ---- words of time and size, as the server says them
const duration = (s) => (s == null ? "–" : s < 60 ? `${s.toFixed(1)} s` : s < 3600 ? `${Math.floor(s / 60)} min ${Math.round(s % 60)} s` : `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`);
const loss = (v) => (v == null ? "–" : v.toFixed(3));
const WORDS = { loss, held_out_loss: loss, tokens_per_s: say, memory_bytes: bytes, left_s: duration };

function progressed(data) {
  const box = document.getElementById("progress");
  if (!box || !data.steps) return;
  box.hidden = false;
  const bar = document.getElementById("bar");
  bar.max = data.steps;
  bar.value = data.step;
  box.querySelector("[data-figure=step]").replaceChildren(`${say(data.step)} `, Object.assign(document.createElement("small"), { textContent: `of ${say(data.steps)}` }));
  for (const [name, words] of Object.entries(WORDS)) {
    const figure = box.querySelector(`[data-figure=${name}]`);
    figure.textContent = words(data[name]);
    figure.parentElement.hidden = data[name] == null;
  }
}

function listed(event) {
  const atEnd = list.scrollTop + list.clientHeight > list.scrollHeight - 24;
  const item = document.createElement("li");
  item.className = event.level;
  item.dataset.seq = event.seq;
  const time = Object.assign(document.createElement("time"), { dateTime: event.created_at, textContent: event.created_at });
  const text = Object.assign(document.createElement("b"), { textContent: event.message });
  const type = Object.assign(document.createElement("span"), { className: "type", textContent: event.type });
  item.append(time, text, type);
  list.append(item);
  localise(item);
  while (list.children.length > MOST_SHOWN) list.firstElementChild.remove();
  if (atEnd) list.scrollTop = list.scrollHeight;
}

let refreshing = null;
function refresh() {
  clearTimeout(refreshing);
  refreshing = setTimeout(async () => {
    try {
      const { html } = await fragment(`/jobs/${job}/panel`);
      show(panel, html);
    } catch { /* the stream says when the server is back */ }
  }, 50);
}

function heard(message) {
  const event = JSON.parse(message.data);
  if (event.seq <= seq) return;
  seq = event.seq;
  if (event.type === "progress") {
    progressed(event.data);
    added(event.data);
  }
  if (QUIET.has(event.type)) return;
  if (!list.querySelector(`[data-seq="${event.seq}"]`)) listed(event);
  refresh();
  if (event.type.startsWith("job.")) told(event.message);
  if (/^job\.(succeeded|failed|cancelled)$/.test(event.type)) {
    ended = true;
    source.close();
    told(`The job has ended: ${event.message}.`);
  }
}

function told(text, lost = false) {
  live.textContent = text;
  live.classList.toggle("lost", lost);
}

function listen() {
  if (ended || document.hidden || source?.readyState === EventSource.OPEN) return;
  source?.close();
  source = new EventSource(`/v1/customization/jobs/${job}/events?after=${seq}`);
  source.onmessage = heard;
  source.onopen = () => { retry = 1_000; told("Live: this page follows the job."); };
  source.onerror = () => {
    told("The connection is lost. Trying again; nothing of the job is lost.", true);
    if (source.readyState !== EventSource.CLOSED) return; // it tries again by itself
    setTimeout(async () => {
      retry = Math.min(30_000, 2 * retry);
      const { status } = await fragment(`/jobs/${job}/panel`).catch(() => ({ status: 0 }));
      if (status === 401) live.replaceChildren("Your session has ended. ", Object.assign(document.createElement("a"), { href: `/sign-in?then=/jobs/${job}`, textContent: "Sign in" }), " to go on.");
      else listen();
    }, retry);
  };
}
document.addEventListener("visibilitychange", () => {
  if (document.hidden) { source?.close(); source = null; } else listen();
});

// ---- curves
const plots = new Map();
const columns = new Map();

const label = (name) => (name === "tokens_per_s" ? "speed" : name.replaceAll("_", " "));

function draw(stage) {
  const { steps, series } = columns.get(stage);
  const wanted = { Loss: ["loss", "held_out_loss"], Speed: ["tokens_per_s"] };
  for (const [title, names] of Object.entries(wanted)) {
    const there = names.filter((name) => series[name]?.some((value) => value != null));
    if (!there.length || steps.length < 2) continue;
    const data = [steps, ...there.map((name) => series[name])];
    const key = `${stage} ${title} ${there.length}`;
    if (plots.has(key)) { plots.get(key).set(data); describe(stage, title, there, data); continue; }
    document.getElementById(`plot-${stage}-${title}`)?.remove();
    const figure = document.createElement("figure");
    figure.id = `plot-${stage}-${title}`;
    const place = Object.assign(document.createElement("div"), { className: "plot" });
    place.setAttribute("role", "img");
    const caption = document.createElement("figcaption");
    caption.className = "note";
    figure.append(Object.assign(document.createElement("h3"), { textContent: `${stage}: ${title.toLowerCase()}` }), place, caption);
    document.getElementById("plots").append(figure);
    plots.set(key, curve(place, { yLabel: title === "Loss" ? "nats/token" : "tokens/s", names: there.map(label), data }));
    describe(stage, title, there, data);
  }
  document.getElementById("no-curves").hidden = plots.size > 0;
}

function describe(stage, title, names, data) {
  const figure = document.getElementById(`plot-${stage}-${title}`);
  const unit = title === "Loss" ? "nats a token" : "tokens a second";
  const parts = names.map((name, place) => {
    const values = data[place + 1].filter((value) => value != null);
    return `${label(name)} from ${say(values[0])} to ${say(values.at(-1))} ${unit}, lowest ${say(Math.min(...values))}`;
  });
  const text = `Steps ${say(data[0][0])} to ${say(data[0].at(-1))}: ${parts.join("; ")}.`;
  figure.querySelector("figcaption").textContent = text;
  figure.querySelector(".plot").setAttribute("aria-label", text);
}

function added(data) {
  if (data.loss == null) return;
  const column = columns.get(data.stage) ?? { steps: [], series: { loss: [], held_out_loss: [], tokens_per_s: [] } };
  columns.set(data.stage, column);
  if (column.steps.length && data.step <= column.steps.at(-1)) return; // repeated after a crash: it is drawn on reload
  column.steps.push(data.step);
  for (const name of ["loss", "held_out_loss", "tokens_per_s"]) (column.series[name] ??= column.steps.slice(1).map(() => null)).push(data[name] ?? null);
  soon(data.stage);
}
const waiting = new Set();
function soon(stage) {
  if (!waiting.size) setTimeout(() => { for (const one of waiting) draw(one); waiting.clear(); }, 250);
  waiting.add(stage);
}

const answer = await fetch(document.getElementById("curves").dataset.figures).catch(() => null);
if (answer?.ok) {
  const { stages } = await answer.json();
  for (const [stage, column] of Object.entries(stages)) {
    columns.set(stage, column);
    draw(stage);
  }
}
list.scrollTop = list.scrollHeight;
listen();
