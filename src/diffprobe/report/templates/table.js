(() => {
  const estimates = report.data.estimates;
  const body = document.querySelector("#estimates tbody");
  const rows = [...body.rows].map((element, index) => ({ element, data: estimates[index], text: element.textContent.toLowerCase() }));
  const [filter, probe] = [document.getElementById("filter"), document.getElementById("probe")];

  function sieve() {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of rows) {
      row.element.hidden = (probe.value && row.data.probe !== probe.value) || !words.every((word) => row.text.includes(word));
    }
    const left = rows.filter((row) => !row.element.hidden).length;
    document.getElementById("count").textContent = `${left} of ${rows.length}`;
  }

  /** What is null comes last, in either direction. */
  function sort(button) {
    const head = button.closest("th");
    const down = head.getAttribute("aria-sort") === "ascending";
    const value = (row) => (button.dataset.key ? row.data[button.dataset.key] : row.element.cells[2].textContent);
    const order = (a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x === null || y === null) return (x === null) - (y === null);
      const difference = typeof x === "number" ? x - y : x.localeCompare(y, undefined, { numeric: true });
      return down ? -difference : difference;
    };
    document.querySelectorAll("#estimates th").forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    body.append(...[...rows].sort(order).map((row) => row.element));
  }

  filter.addEventListener("input", sieve);
  probe.addEventListener("change", sieve);
  document.querySelectorAll("#estimates th button").forEach((button) => button.addEventListener("click", () => sort(button)));
  document.getElementById("csv").addEventListener("click", () => report.save("estimates.csv", report.csv(estimates), "text/csv"));
  document.getElementById("json").addEventListener("click", () => {
    const { title, created, identity } = report.data;
    report.save("estimates.json", JSON.stringify({ schema: 1, title, created, identity, estimates }, null, 2), "application/json");
  });
})();
