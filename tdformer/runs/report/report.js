"use strict";
// A click on a heading sorts its table by the data-value of the cells. Rows without a value, and rows of the paper, stay at the end.
for (const heading of document.querySelectorAll("th[data-sort]")) {
  heading.tabIndex = 0;
  const sort = () => {
    const body = heading.closest("table").tBodies[0];
    const column = heading.cellIndex;
    const was = heading.getAttribute("aria-sort");
    const up = was ? was === "descending" : heading.dataset.sort === "up";
    const valueOf = (row) => row.cells[column].dataset.value ?? "";
    const order = (a, b) => {
      const [x, y] = [valueOf(a), valueOf(b)];
      if (x === "" || y === "") return (x === "") - (y === "");
      const numbers = Number(x) - Number(y);
      const difference = Number.isNaN(numbers) ? x.localeCompare(y, "en", { numeric: true }) : numbers;
      return up ? difference : -difference;
    };
    for (const other of heading.parentElement.cells) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", up ? "ascending" : "descending");
    const rows = [...body.rows];
    const [own, paper] = [rows.filter((row) => !row.matches(".paper")), rows.filter((row) => row.matches(".paper"))];
    body.append(...own.sort(order), ...paper);
  };
  heading.addEventListener("click", sort);
  heading.addEventListener("keydown", (event) => { if (event.key === "Enter") sort(); });
}
// A long table shows its first twenty rows until a button is pressed.
for (const table of document.querySelectorAll("div.scroll > table")) {
  const rows = table.tBodies[0].rows.length;
  if (rows <= 25 || !table.tHead) continue;
  table.classList.add("folded");
  const button = document.createElement("button");
  button.textContent = `show all ${rows}`;
  button.addEventListener("click", () => { table.classList.remove("folded"); button.remove(); });
  table.parentElement.after(button);
}
// While the pointer is over a row or a curve, the charts show its group alone.
const tagOf = (event) => event.target.closest?.("[data-tag]")?.dataset.tag;
let shown;
document.addEventListener("mouseover", (event) => {
  const tag = tagOf(event);
  if (tag === shown) return;
  shown = tag;
  document.body.classList.toggle("picked", tag !== undefined);
  for (const element of document.querySelectorAll(".hot")) element.classList.remove("hot");
  if (tag !== undefined) {
    for (const element of document.querySelectorAll(`[data-tag="${CSS.escape(tag)}"]`)) element.classList.add("hot");
  }
});
