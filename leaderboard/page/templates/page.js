"use strict";
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const filters = document.querySelector(".filters");
const drawer = document.getElementById("drawer");
const tip = document.getElementById("tip");

/* Filters: one form for every board, plot and gallery; the choice is kept in the address. */
function applyFilters() {
  const wanted = Object.fromEntries(new FormData(filters));
  let shown = 0, total = 0;
  for (const section of all(".workload")) {
    section.hidden = Boolean(wanted.workload) && section.dataset.workload !== wanted.workload;
    for (const item of all("[data-bits]", section)) {
      const reference = item.classList.contains("fp");
      const fits = reference || ["bits", "method", "status"].every(
        (name) => !wanted[name] || (item.dataset[name] ?? "ok") === wanted[name]);
      item.classList.toggle("filtered", !fits);
      if (item.matches(".record")) {
        total += 1;
        shown += fits && !section.hidden ? 1 : 0;
      }
    }
  }
  document.getElementById("count").textContent = `${shown} of ${total} shown`;
  return wanted;
}

function writeHash(wanted) {
  const set = Object.entries(wanted).filter(([, value]) => value);
  const hash = set.length ? "#" + new URLSearchParams(set) : " ";
  history.replaceState(null, "", hash === " " ? location.pathname : hash);
}

function readHash() {
  const hash = decodeURIComponent(location.hash.slice(1));
  if (hash.startsWith("cell-")) return openCell(hash);
  if (!filters || !hash.includes("=")) return;
  for (const [name, value] of new URLSearchParams(hash)) {
    const field = filters.elements[name];
    if (field && [...field.options].some((option) => option.value === value)) field.value = value;
  }
  applyFilters();
}

/* Sorting: pinned rows stay, empty cells go last, equal ones keep the order of the ranking. */
function sortable(table) {
  const heads = all("thead th", table);
  const body = table.tBodies[table.tBodies.length - 1];
  const original = [...body.rows];
  heads.forEach((head, column) => {
    if (!("sort" in head.dataset)) return;
    const button = document.createElement("button");
    const sub = head.querySelector("small");
    button.append(...[...head.childNodes].filter((node) => node !== sub));
    head.prepend(button);
    head.setAttribute("aria-sort", column === 0 ? "ascending" : "none");
    button.addEventListener("click", () => {
      const now = head.getAttribute("aria-sort");
      const first = head.dataset.sort === "desc" ? "descending" : "ascending";
      const next = now === "none" ? first : now === "ascending" ? "descending" : "ascending";
      for (const other of heads) if (other.hasAttribute("aria-sort")) other.setAttribute("aria-sort", "none");
      head.setAttribute("aria-sort", next);
      const sign = next === "ascending" ? 1 : -1;
      const value = (row) => row.cells.length === heads.length || column < 3 ? row.cells[column]?.dataset.v : undefined;
      const order = (a, b) => {
        const [x, y] = [value(a), value(b)];
        if (x === undefined || y === undefined) return (x === undefined) - (y === undefined);
        const numeric = x !== "" && y !== "" && !isNaN(x) && !isNaN(y);
        return sign * (numeric ? x - y : x.localeCompare(y));
      };
      body.append(...[...original].sort(order));
    });
  });
}

/* Details: the record of a cell in a drawer; without JavaScript the same link opens it in place. */
function openCell(id) {
  const record = document.getElementById(id);
  if (!record) return;
  const summary = record.closest(".record").querySelector("summary");
  document.getElementById("drawer-title").textContent = summary.childNodes[0].textContent.trim() + " "
    + summary.querySelector(".bits").textContent;
  document.getElementById("drawer-body").replaceChildren(...[...record.cloneNode(true).childNodes]);
  history.replaceState(null, "", "#" + id);
  if (!drawer.open) drawer.showModal();
  drawer.scrollTop = 0;
}

document.addEventListener("click", (event) => {
  const link = event.target.closest('a[href^="#cell-"]');
  if (link) {
    event.preventDefault();
    hideTip();
    openCell(link.getAttribute("href").slice(1));
  } else if (event.target === drawer) {
    drawer.close();
  }
});
drawer.addEventListener("close", () => filters ? writeHash(Object.fromEntries(new FormData(filters))) : null);

/* Labels of plot points, for mouse and keyboard alike. */
function showTip(point) {
  tip.textContent = point.getAttribute("aria-label").replaceAll("; ", "\n");
  tip.hidden = false;
  const at = point.querySelector("g").getBoundingClientRect();
  const box = tip.getBoundingClientRect();
  const left = Math.min(Math.max(8, at.x + at.width / 2 - box.width / 2), innerWidth - box.width - 8);
  const above = at.y - box.height - 6;
  tip.style.left = left + "px";
  tip.style.top = (above > 4 ? above : at.bottom + 6) + "px";
}
function hideTip() { tip.hidden = true; }
for (const point of all(".point")) {
  point.addEventListener("pointerenter", () => showTip(point));
  point.addEventListener("pointerleave", hideTip);
  point.addEventListener("focus", () => showTip(point));
  point.addEventListener("blur", hideTip);
}
/* Focus scrolls a point into view: its label has to follow, not to vanish. */
addEventListener("scroll", () => {
  const point = document.activeElement?.closest?.(".point");
  if (point && !tip.hidden) showTip(point);
  else hideTip();
}, { passive: true });

all("table.sortable").forEach(sortable);
if (filters) {
  filters.addEventListener("change", () => writeHash(applyFilters()));
  filters.addEventListener("reset", () => setTimeout(() => writeHash(applyFilters())));
  filters.addEventListener("submit", (event) => event.preventDefault());
  applyFilters();
}
addEventListener("hashchange", readHash);
readHash();
