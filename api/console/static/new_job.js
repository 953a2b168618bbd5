// The form of a new job: an estimate that follows what is typed, a glance at the data, and a draft that outlives a reload.

import { fragment, show } from "./page.js";

const form = document.getElementById("job-form");
const place = document.getElementById("estimate");
const key = form.dataset.draft;
const PAGE_OWN = new Set(["csrf", "once", "parent"]);
const PAUSE_MS = 250;

// ---- the draft: kept in this tab until the job is submitted
function remember() {
  const fields = [...new FormData(form)].filter(([name]) => !PAGE_OWN.has(name));
  sessionStorage.setItem(key, JSON.stringify(fields));
}
function recall() {
  const kept = sessionStorage.getItem(key);
  if (!kept || "refused" in form.dataset || new URLSearchParams(location.search).has("data")) return;
  const fields = new Map();
  for (const [name, value] of JSON.parse(kept)) fields.set(name, [...(fields.get(name) ?? []), value]);
  for (const element of form.elements) {
    if (!element.name || PAGE_OWN.has(element.name)) continue;
    const values = fields.get(element.name) ?? [];
    if (element.type === "checkbox") element.checked = values.includes(element.value);
    else if (values.length) element.value = values[0];
  }
  for (const details of form.querySelectorAll("details.more")) {
    details.open ||= [...details.querySelectorAll("input, textarea")].some((field) => field.value);
  }
}

// ---- the estimate: the newest question is the one that is answered
let asking = null;
let timer = null;
function estimateSoon() {
  clearTimeout(timer);
  timer = setTimeout(estimate, PAUSE_MS);
}
async function estimate() {
  asking?.abort();
  asking = new AbortController();
  const mine = asking;
  place.classList.add("busy");
  place.setAttribute("aria-busy", "true");
  try {
    const { html } = await fragment(form.dataset.estimate, { method: "POST", body: new URLSearchParams(new FormData(form)), signal: mine.signal });
    show(place, html);
    const words = document.getElementById("estimate-words") ?? place; // short, so that it can be listened to while typing
    document.getElementById("estimate-said").textContent = words.textContent.trim();
  } catch (error) {
    if (error.name === "AbortError") return;
    place.textContent = "The service does not answer; the estimate comes when it is back.";
    setTimeout(estimateSoon, 5_000);
  }
  place.classList.remove("busy");
  place.setAttribute("aria-busy", "false");
}

// ---- a glance at the data
const data = document.getElementById("data");
const glance = document.getElementById("glance");
async function look() {
  if (!data.value) return glance.replaceChildren();
  const { html } = await fragment(data.dataset.glance + encodeURIComponent(data.value)).catch(() => ({ html: "" }));
  show(glance, html);
}

sessionStorage.removeItem("sent-draft");
recall();
form.addEventListener("input", () => { remember(); estimateSoon(); });
data.addEventListener("change", look);
form.addEventListener("submit", (event) => {
  if (event.submitter?.hasAttribute("formaction")) { event.preventDefault(); estimate(); return; }
  sessionStorage.setItem("sent-draft", key); // the page of the job forgets the draft
});
if (form.elements.teacher.value) estimate();
look();
