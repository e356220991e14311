// Sorting, filtering, choosing columns and copying. Without it every table is there, by rank.
// What was chosen stands in the address after #, as `sort=auc:desc&q=aecnn&show=hours`: a link keeps it.
"use strict";

function state() {
  const text = location.hash.slice(1);
  return new URLSearchParams(text.includes("=") ? text : "");
}

function remember(key, value) {
  const now = state();
  if (value) now.set(key, value);
  else now.delete(key);
  const text = now.toString();
  if (text) history.replaceState(null, "", "#" + text);
  else history.replaceState(null, "", location.href.split("#")[0] + "#table");
}

function keyOf(head) {
  return head.dataset.key || head.textContent.trim().toLowerCase().replace(/\s+/g, "-");
}

// What a cell is sorted by: its number where it has one; null sorts last either way.
function valueOf(cell) {
  if (cell.dataset.v !== undefined) return cell.dataset.v === "" ? null : Number(cell.dataset.v);
  const text = cell.textContent.trim();
  if (text === "" || text === "–") return null;
  const number = cell.classList.contains("n") ? Number(text.replace(/,/g, "").split(" ")[0]) : NaN;
  return Number.isNaN(number) ? text.toLowerCase() : number;
}

function compare(a, b) {
  if (typeof a === "number" && typeof b === "number") return a - b;
  return String(a).localeCompare(String(b));
}

function sortBy(table, column, direction) {
  const body = table.tBodies[0];
  const rows = Array.from(body.rows, (row) => ({ row, value: valueOf(row.cells[column]) }));
  const sign = direction === "descending" ? -1 : 1;
  rows.sort((a, b) => {
    if (a.value === null || b.value === null) return (a.value === null) - (b.value === null);
    return sign * compare(a.value, b.value);
  });
  body.append(...rows.map((entry) => entry.row));
  Array.from(table.tHead.rows[0].cells).forEach((head, i) => {
    if (i === column) head.setAttribute("aria-sort", direction);
    else head.removeAttribute("aria-sort");
  });
}

function makeSortable(table) {
  const name = table.dataset.sortable;
  const heads = Array.from(table.tHead.rows[0].cells);
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    if (head.title) button.title = head.title;
    head.append(button);
    button.addEventListener("click", () => {
      // Good values first: a number's first click is descending, but a place and a text start small.
      const small = column === 0 || !head.classList.contains("n");
      const before = head.getAttribute("aria-sort");
      const first = small ? "ascending" : "descending";
      const direction = !before ? first : before === "ascending" ? "descending" : "ascending";
      sortBy(table, column, direction);
      remember(name === "methods" ? "sort" : "sort-" + name, keyOf(head) + ":" + (direction === "ascending" ? "asc" : "desc"));
    });
  });
}

function restoreSort(table) {
  const name = table.dataset.sortable;
  const [key, way] = (state().get(name === "methods" ? "sort" : "sort-" + name) || "").split(":");
  const column = Array.from(table.tHead.rows[0].cells).findIndex((head) => keyOf(head) === key);
  if (column >= 0) sortBy(table, column, way === "asc" ? "ascending" : "descending");
}

function element(name, properties, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

function makeTools(table) {
  const heads = Array.from(table.tHead.rows[0].cells);
  const search = element("input", { type: "search", placeholder: "filter methods" });
  const count = element("span", { className: "small" });
  count.setAttribute("role", "status");
  const filter = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const rows = Array.from(table.tBodies[0].rows);
    rows.forEach((row) => {
      const text = row.querySelector("th").textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
    });
    count.textContent = words.length ? rows.filter((row) => !row.hidden).length + " of " + rows.length + " rows" : "";
  };
  search.addEventListener("input", () => { filter(); remember("q", search.value); });

  const boxes = element("fieldset", {}, element("legend", {}, "columns"));
  const shown = (column, on) => {
    for (const row of table.rows) row.cells[column].hidden = !on;
  };
  const usual = (head) => !head.dataset.hidden;
  heads.forEach((head, column) => {
    if (["rank", "method"].includes(keyOf(head))) return;
    const box = element("input", { type: "checkbox" });
    boxes.append(element("label", {}, box, " " + head.textContent.trim()));
    box.addEventListener("change", () => {
      shown(column, box.checked);
      const other = heads.filter((h, i) => h.hidden === usual(h)).map(keyOf);
      remember("toggle", other.join(","));
    });
    head.box = box;
  });
  const copy = element("button", { type: "button" }, "Copy as CSV");
  copy.addEventListener("click", () => give(copy, asCsv(table)));
  const chooser = element("details", {}, element("summary", {}, "columns"), boxes);
  const label = element("label", {}, "Filter ", search);
  table.closest(".scroll").before(element("div", { className: "tools" }, label, count, chooser, copy));

  return () => {
    search.value = state().get("q") || "";
    filter();
    const other = (state().get("toggle") || "").split(",");
    heads.forEach((head, column) => {
      if (!head.box) return;
      head.box.checked = usual(head) !== other.includes(keyOf(head));
      shown(column, head.box.checked);
    });
  };
}

// A text that a spreadsheet would run as a formula is made plain text.
function asCsv(table) {
  const field = (cell) => {
    const text = cell.dataset.v || cell.textContent.trim().replace(/\s+/g, " ");
    const safe = /^[=+\-@\t\r]/.test(text) && Number.isNaN(Number(text)) ? "'" + text : text;
    return '"' + safe.replace(/"/g, '""') + '"';
  };
  return Array.from(table.rows)
    .filter((row) => !row.hidden)
    .map((row) => Array.from(row.cells).filter((cell) => !cell.hidden).map(field).join(","))
    .join("\r\n");
}

async function give(button, text) {
  const name = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    button.textContent = "The browser does not allow it";
  }
  setTimeout(() => { button.textContent = name; }, 2000);
}

function openTarget() {
  const target = location.hash.length > 1 && !location.hash.includes("=") && document.getElementById(location.hash.slice(1));
  if (target && target.tagName === "DETAILS") target.open = true;
}

const restores = [openTarget];
for (const table of document.querySelectorAll("table[data-sortable]")) {
  if (table.dataset.tools) restores.push(makeTools(table));
  makeSortable(table);
  restores.push(() => restoreSort(table));
}
for (const block of document.querySelectorAll("pre.command")) {
  const button = element("button", { type: "button", className: "copy" }, "Copy");
  button.addEventListener("click", () => give(button, block.textContent));
  block.after(button);
}
const restore = () => restores.forEach((each) => each());
addEventListener("hashchange", restore);
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((each) => { each.open = true; }));
restore();
