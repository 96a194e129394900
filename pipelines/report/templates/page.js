"use strict";
// Everything is in the page already; this adds sorting, filters, large pictures and the choice of colours.
document.documentElement.classList.add("scripted");

const byId = (id) => document.getElementById(id);

function chooseColours() {
  const button = byId("theme"), root = document.documentElement;
  const stored = () => { try { return localStorage.getItem("msrcnn-colours"); } catch { return null; } };
  const set = (dark) => {
    root.dataset.colours = dark ? "dark" : "light";
    button.setAttribute("aria-pressed", String(dark));
  };
  const system = matchMedia("(prefers-color-scheme: dark)");
  set(stored() ? stored() === "dark" : system.matches);
  system.addEventListener("change", (event) => { if (!stored()) set(event.matches); });
  button.addEventListener("click", () => {
    const dark = root.dataset.colours !== "dark";
    set(dark);
    try { localStorage.setItem("msrcnn-colours", dark ? "dark" : "light"); } catch { /* the choice lasts for this visit */ }
  });
}

function sortable(table) {
  const heads = [...table.tHead.rows].at(-1).cells, body = table.tBodies[0];
  const original = [...body.rows];
  const value = (row, column) => {
    const cell = row.cells[column];
    if (column === 0) return cell.textContent;
    return cell.dataset.value === undefined ? null : Number(cell.dataset.value);
  };
  [...heads].forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const now = head.getAttribute("aria-sort");
    const first = column === 0 ? "ascending" : "descending"; // numbers: the largest are asked for first
    const other = first === "ascending" ? "descending" : "ascending";
    const order = now === first ? other : first;
    for (const each of heads) each.setAttribute("aria-sort", "none");
    head.setAttribute("aria-sort", order);
    const sign = order === "ascending" ? 1 : -1;
    const rows = original.slice().sort((a, b) => {
      const x = value(a, column), y = value(b, column);
      if (x === null || y === null) return (x === null) - (y === null); // what has no number comes last
      return sign * (column === 0 ? x.localeCompare(y) : x - y);
    });
    body.append(...rows);
  }));
}

function filterCategories() {
  const input = byId("category-filter"), rows = [...byId("category-table").tBodies[0].rows];
  input.addEventListener("input", () => {
    const wanted = input.value.trim().toLowerCase();
    let count = 0;
    for (const row of rows) {
      row.hidden = !row.dataset.name.toLowerCase().includes(wanted);
      count += !row.hidden;
    }
    byId("category-count").textContent = `${count} of ${rows.length} categories`;
  });
}

function filterGallery(gallery) {
  const FEW = innerWidth < 600 ? 6 : 12; // of each kind, until more are asked for or a category is chosen
  const sections = [...gallery.querySelectorAll(".kind")], pictures = [...gallery.querySelectorAll(".picture")];
  const apply = () => {
    const kind = gallery.querySelector("input[name=kind]:checked").value;
    const wanted = { category: byId("gallery-category").value, run: byId("gallery-run")?.value ?? "" };
    const filters = Object.entries(wanted).filter(([, value]) => value);
    let count = 0;
    for (const section of sections) {
      section.hidden = kind !== "" && section.dataset.kind !== kind;
      const all = [...section.querySelectorAll(".picture")];
      const right = all.filter((picture) => filters.every(([name, value]) => picture.dataset[name] === value));
      const few = right.slice(0, wanted.category || section.dataset.all ? Infinity : FEW);
      for (const picture of all) picture.hidden = section.hidden || !few.includes(picture);
      const more = section.querySelector(".more");
      more.hidden = few.length === right.length;
      more.textContent = `Show all ${right.length}`;
      if (!section.hidden) count += few.length;
    }
    byId("gallery-count").textContent = `${count} of ${pictures.length} pictures`;
  };
  byId("gallery-controls").addEventListener("change", (event) => {
    const show = event.target.dataset.show;
    if (show) gallery.classList.toggle(show, event.target.checked); else apply();
  });
  for (const section of sections) section.querySelector(".more").addEventListener("click", () => {
    const next = section.querySelectorAll(".picture:not([hidden])").length;
    section.dataset.all = "yes";
    apply();
    section.querySelectorAll(".picture:not([hidden]) .enlarge")[next]?.focus(); // the button that was pressed is gone
  });
  apply();
}

function enlarge(gallery) {
  const viewer = byId("viewer"), body = byId("viewer-body");
  let shown = null;
  const visible = () => [...gallery.querySelectorAll(".picture")].filter((picture) => !picture.hidden);
  const show = (picture) => {
    shown = picture;
    const all = visible();
    byId("viewer-title").textContent = `${picture.dataset.kind}: ${picture.dataset.label}`;
    byId("viewer-place").textContent = `${all.indexOf(picture) + 1} of ${all.length}`;
    body.replaceChildren(picture.querySelector("svg").cloneNode(true), picture.querySelector("figcaption").cloneNode(true));
  };
  const step = (by) => {
    const all = visible(), next = all[all.indexOf(shown) + by];
    if (next) show(next);
  };
  gallery.addEventListener("click", (event) => {
    const button = event.target.closest(".enlarge");
    if (!button) return;
    show(button.closest(".picture"));
    viewer.showModal();
  });
  byId("viewer-before").addEventListener("click", () => step(-1));
  byId("viewer-next").addEventListener("click", () => step(1));
  byId("viewer-close").addEventListener("click", () => viewer.close());
  viewer.addEventListener("click", (event) => { if (event.target === viewer) viewer.close(); });
  viewer.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (by) { event.preventDefault(); step(by); }
  });
  viewer.addEventListener("close", () => shown?.querySelector(".enlarge").focus()); // at the picture that was last seen
}

chooseColours();
for (const table of document.querySelectorAll("table.sortable")) sortable(table);
if (byId("category-filter")) filterCategories();
if (byId("viewer")) { filterGallery(byId("gallery")); enlarge(byId("gallery")); }
