// Headers of tables become buttons that sort: ascending, descending, as it was.  Without this the table just stands.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const heads = [...table.tHead.rows[0].cells];
  const key = (row, column) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
  heads.forEach((head, column) => {
    const values = rows.map((row) => key(row, column)).filter((value) => value !== "");
    const numeric = head.classList.contains("number") && values.every((value) => !Number.isNaN(Number(value)));
    const compare = (a, b) => (numeric ? a - b : a.localeCompare(b, undefined, { numeric: true }));
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const turn = { ascending: "descending", descending: "none" }[head.getAttribute("aria-sort")] ?? "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      if (turn !== "none") head.setAttribute("aria-sort", turn);
      const sign = turn === "descending" ? -1 : 1;
      const sorted = [...rows];
      if (turn !== "none")
        sorted.sort((one, two) => {
          const [a, b] = [key(one, column), key(two, column)];
          if (a === "" || b === "") return (a === "") - (b === ""); // what is missing comes last, either way
          return sign * compare(a, b);
        });
      body.append(...sorted);
    });
  });
}
