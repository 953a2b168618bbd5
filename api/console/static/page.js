// What every page does: times in the reader's zone, no form sent twice, and a focus that finds what went wrong.

const zoned = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });
const precise = new Intl.DateTimeFormat(undefined, { dateStyle: "full", timeStyle: "long" });

export function localise(root) {
  for (const time of root.querySelectorAll("time[datetime]:not([data-local])")) {
    const at = new Date(time.dateTime);
    if (Number.isNaN(at.getTime())) continue;
    time.textContent = zoned.format(at);
    time.title = precise.format(at);
    time.dataset.local = "yes";
  }
}

// A part of a page from the server. Says what is wrong in the same words as the server; throws when nothing came at all.
export async function fragment(address, options = {}) {
  const headers = { "X-Fragment": "yes", Accept: "text/html", ...options.headers };
  if (options.method === "POST") headers["X-CSRF-Token"] = document.querySelector("meta[name=csrf-token]").content;
  const answer = await fetch(address, { ...options, headers });
  return { status: answer.status, html: await answer.text() };
}

export function show(place, html) {
  const focused = place.contains(document.activeElement) ? document.activeElement.id : "";
  const open = [...place.querySelectorAll("details[open] > summary")].map((summary) => summary.textContent);
  place.innerHTML = html; // made by the server, which escapes
  for (const summary of place.querySelectorAll("details > summary")) summary.parentElement.open ||= open.includes(summary.textContent);
  localise(place);
  if (focused) document.getElementById(focused)?.focus();
}

// Sent once: a second press while the answer is on its way does nothing. A page that comes back from the browser's memory
// can be sent again; its word for the server stays the same, so that nothing is made twice.
document.addEventListener("submit", (event) => {
  const form = event.target;
  if (form.dataset.sent) {
    event.preventDefault();
    return;
  }
  if (event.submitter?.formAction?.endsWith("/estimate") || form.method === "get") return;
  form.dataset.sent = "yes";
});
window.addEventListener("pageshow", () => {
  for (const form of document.querySelectorAll("form[data-sent]")) delete form.dataset.sent;
});

// What is live on the overview: asked for once a second while it is seen and something is going on, else every ten.
const live = document.querySelector("[data-live]");
if (live) {
  let shown = "";
  const look = async () => {
    let pause = 10_000;
    if (!document.hidden) {
      try {
        const { status, html } = await fragment(live.dataset.live);
        const open = live.querySelector("details[open], :focus");
        if (html !== shown && !open) show(live, html);
        shown = html;
        if (status === 200 && live.querySelector("progress, .pill.queued, .pill.running")) pause = 1_000;
      } catch { /* the server is away; the page keeps what it has and asks again */ }
    }
    setTimeout(look, pause);
  };
  setTimeout(look, 1_000);
}

localise(document);
document.getElementById("problems")?.focus();
