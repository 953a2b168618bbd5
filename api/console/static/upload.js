// Upload with a bar that tells how far it is. Without scripts the same form is sent as it stands.

import { show } from "./page.js";

const form = document.getElementById("upload");
form?.addEventListener("submit", (event) => {
  event.preventDefault();
  const words = document.getElementById("sent-words");
  const bar = document.getElementById("sent");
  const problem = document.getElementById("upload-problem");
  const button = form.querySelector("button.primary");
  const free = () => { button.disabled = false; delete form.dataset.sent; document.getElementById("sending").hidden = true; };
  const request = new XMLHttpRequest();
  request.upload.onprogress = ({ loaded, total }) => {
    bar.max = total;
    bar.value = loaded;
    words.textContent = loaded < total ? `${Math.floor((100 * loaded) / total)} % sent` : "Sent. The service reads every document now.";
  };
  request.onload = () => {
    const where = request.getResponseHeader("X-Location");
    if (request.status === 204 && where) { location.assign(where); return; }
    free();
    const page = new DOMParser().parseFromString(request.responseText, "text/html");
    const said = page.getElementById("problems") ?? page.querySelector(".notice");
    show(problem, said?.outerHTML ?? "");
    problem.querySelector("[role=alert]")?.focus();
  };
  request.onerror = () => { free(); problem.textContent = "The connection was lost before the file had arrived. Send it again."; };
  button.disabled = true;
  problem.replaceChildren();
  document.getElementById("sending").hidden = false;
  request.open("POST", form.action);
  request.setRequestHeader("X-Fragment", "yes");
  request.setRequestHeader("X-CSRF-Token", document.querySelector("meta[name=csrf-token]").content);
  request.send(new FormData(form));
});
