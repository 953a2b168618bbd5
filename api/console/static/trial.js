import { fragment, show } from "./page.js";

const form = document.getElementById("trial");
const place = document.getElementById("answer");
form.addEventListener("submit", async (event) => {
  event.preventDefault();
  delete form.dataset.sent;
  const button = form.querySelector("button");
  button.disabled = true;
  place.textContent = "The variant is writing …";
  try {
    const { html } = await fragment(form.action, { method: "POST", body: new URLSearchParams(new FormData(form)) });
    show(place, html);
  } catch {
    place.textContent = "No answer came. Try again.";
  }
  button.disabled = false;
});
