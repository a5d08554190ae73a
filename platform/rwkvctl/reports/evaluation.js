"use strict";
// Tables: a click on a heading sorts by its column, numbers from the largest, text from A; a second click turns it round.
// Cells without a value stay last.
const NOTHING = "-";
for (const table of document.querySelectorAll("table.sortable")) {
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => heading.firstElementChild.addEventListener("click", () => {
    const body = table.tBodies[0];
    const rows = [...body.rows].map(row => [row.cells[column].textContent.replaceAll(",", ""), row]);
    const numeric = rows.every(([text]) => text === NOTHING || text === "" || Number.isFinite(Number(text)));
    const before = heading.getAttribute("aria-sort");
    const up = before ? before === "descending" : !numeric;
    const known = rows.filter(([text]) => text !== NOTHING && text !== "");
    known.sort(([a], [b]) => (up ? 1 : -1) * (numeric ? a - b : a.localeCompare(b, undefined, { numeric: true })));
    headings.forEach(other => other.removeAttribute("aria-sort"));
    heading.setAttribute("aria-sort", up ? "ascending" : "descending");
    body.append(...known.map(([, row]) => row), ...rows.filter(each => !known.includes(each)).map(([, row]) => row));
  }));
}

// The table of cases shows the rows that have a text in them.
for (const field of document.querySelectorAll("input[data-filters]")) {
  const rows = document.getElementById(field.dataset.filters).tBodies[0].rows;
  field.addEventListener("input", () => {
    const sought = field.value.toLowerCase();
    for (const row of rows) row.hidden = !row.textContent.toLowerCase().includes(sought);
  });
}

// The volume: a slider, the wheel or the arrow keys choose the slice; truth and prediction are layers over it.
for (const viewer of document.querySelectorAll(".viewer")) {
  const volume = JSON.parse(document.getElementById(viewer.dataset.volume).textContent);
  const [image, prediction, truth] = viewer.querySelectorAll(".layers img");
  const slider = viewer.querySelector("input[type=range]");
  const told = viewer.querySelector("output");
  const show = position => {
    position = Math.max(0, Math.min(volume.images.length - 1, position));
    slider.value = position;
    image.src = "data:image/jpeg;base64," + volume.images[position];
    prediction.src = "data:image/png;base64," + volume.prediction[position];
    truth.src = "data:image/png;base64," + volume.truth[position];
    told.textContent = `slice ${volume.zs[position] + 1} of ${volume.depth}`;
  };
  slider.addEventListener("input", () => show(Number(slider.value)));
  viewer.querySelector(".layers").addEventListener("wheel", event => {
    event.preventDefault();
    show(Number(slider.value) + Math.sign(event.deltaY));
  }, { passive: false });
  const steps = { ArrowUp: -1, ArrowLeft: -1, ArrowDown: 1, ArrowRight: 1, PageUp: -10, PageDown: 10, Home: -1e9, End: 1e9 };
  viewer.addEventListener("keydown", event => {
    if (event.key in steps) {
      event.preventDefault();
      show(Number(slider.value) + steps[event.key]);
    }
  });
  for (const box of viewer.querySelectorAll("input[type=checkbox]")) {
    const layer = { truth, prediction }[box.dataset.layer];
    box.addEventListener("change", () => { layer.hidden = !box.checked; });
  }
  show(volume.first);
}
