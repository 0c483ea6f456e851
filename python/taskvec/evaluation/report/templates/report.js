"use strict";
(function () {
  // tables: a header's button sorts by the cells' data-sort, or by their text
  function key(row, column) {
    const cell = row.cells[column];
    const raw = cell.dataset.sort !== undefined ? cell.dataset.sort : cell.textContent.trim();
    if (raw === "" || raw === "–") return null;
    const number = Number(raw);
    return Number.isNaN(number) ? raw.toLowerCase() : number;
  }
  function compare(a, b) {
    if (typeof a === "number" && typeof b === "number") return a - b;
    return String(a).localeCompare(String(b));
  }
  document.querySelectorAll("table.sortable").forEach(function (table) {
    const headers = Array.from(table.tHead.rows[0].cells);
    headers.forEach(function (header, column) {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = header.textContent.trim();
      header.textContent = "";
      header.appendChild(button);
      header.setAttribute("aria-sort", "none");
      button.addEventListener("click", function () {
        const up = header.getAttribute("aria-sort") !== "ascending";
        headers.forEach(function (other) { other.setAttribute("aria-sort", "none"); });
        header.setAttribute("aria-sort", up ? "ascending" : "descending");
        const body = table.tBodies[0];
        const rows = Array.from(body.rows).map(function (row) { return [key(row, column), row]; });
        rows.sort(function (one, other) {
          if (one[0] === null || other[0] === null) return (one[0] === null) - (other[0] === null);
          return up ? compare(one[0], other[0]) : compare(other[0], one[0]);
        });
        rows.forEach(function (pair) { body.appendChild(pair[1]); });
      });
    });
  });

  // samples: text, task and direction narrow down what is shown
  const samples = Array.from(document.querySelectorAll(".sample"));
  const text = document.getElementById("sample-text");
  const task = document.getElementById("sample-task");
  const direction = document.getElementById("sample-direction");
  const count = document.getElementById("sample-count");
  const more = document.getElementById("sample-more");
  const step = 20;
  let most = step;
  function filter() {
    const words = text.value.toLowerCase().split(/\s+/).filter(Boolean);
    let fitting = 0;
    samples.forEach(function (sample) {
      const content = sample.textContent.toLowerCase();
      const fits = (!task.value || sample.dataset.task === task.value)
        && (!direction.value || sample.dataset.direction === direction.value)
        && words.every(function (word) { return content.includes(word); });
      fitting += fits ? 1 : 0;
      sample.hidden = !fits || fitting > most;
    });
    count.textContent = fitting + " of " + samples.length + " fit"
      + (fitting > most ? ", the first " + most + " are shown" : "");
    more.hidden = fitting <= most;
  }
  if (samples.length) {
    [text, task, direction].forEach(function (control) { control.addEventListener("input", function () { most = step; filter(); }); });
    more.addEventListener("click", function () { most += 100; filter(); });
    filter();
  }

  // on paper everything is open
  window.addEventListener("beforeprint", function () {
    document.querySelectorAll("details").forEach(function (item) { item.open = true; });
  });
})();
