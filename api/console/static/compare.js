import { scatter } from "./plots.js";

const place = document.getElementById("plot");
if (place) scatter(place, JSON.parse(place.dataset.points));
