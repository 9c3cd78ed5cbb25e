"use strict";
// Filters and sorting. The address keeps both, so that a view can be linked; without a script the table is complete.
(function () {
  const panel = document.getElementById("filter");
  const rows = Array.from(document.querySelectorAll("tr[data-id]"));
  const controls = Array.from(panel.querySelectorAll("input, select"));
  const found = document.getElementById("found");
  const nothing = document.getElementById("nothing");
  const tables = Array.from(document.querySelectorAll("table.sortable"));
  const texts = new Map(rows.map((row) => [row, (row.dataset.id + " " + row.textContent).toLowerCase()]));
  let sort = "";

  function parameters() {
    const text = location.hash.slice(1);
    return new URLSearchParams(text.includes("=") ? text : "");
  }

  function read() {
    const wanted = parameters();
    for (const control of controls) {
      const value = wanted.get(control.name) || "";
      const known = control.tagName !== "SELECT" || Array.from(control.options).some((one) => one.value === value);
      control.value = known ? value : "";
    }
    sort = wanted.get("sort") || "";
  }

  function write() {
    const chosen = new URLSearchParams();
    for (const control of controls) if (control.value.trim()) chosen.set(control.name, control.value.trim());
    if (sort) chosen.set("sort", sort);
    const text = chosen.toString();
    history.replaceState(null, "", text ? "#" + text : location.pathname + location.search);
  }

  function filter() {
    let shown = 0;
    const wanted = controls.filter((control) => control.value.trim());
    const words = [];
    const exact = [];
    for (const control of wanted) {
      if (control.name === "q") words.push(...control.value.toLowerCase().split(/\s+/).filter(Boolean));
      else exact.push([control.name, control.value]);
    }
    for (const row of rows) {
      const text = texts.get(row);
      const fits = exact.every(([name, value]) => row.dataset[name] === value) && words.every((word) => text.includes(word));
      row.hidden = !fits;
      shown += fits ? 1 : 0;
    }
    found.textContent = shown + " of " + rows.length + " cells";
    nothing.hidden = shown > 0 || rows.length === 0;
    document.getElementById("reset").hidden = wanted.length === 0 && !sort;
  }

  function order() {
    const name = sort.replace(/^-/, "");
    const sign = sort.startsWith("-") ? -1 : 1;
    for (const table of tables) {
      const heads = Array.from(table.tHead.rows[0].cells);
      const column = heads.findIndex((head) => head.dataset.sort === name);
      heads.forEach((head, index) => {
        if (index === column) head.setAttribute("aria-sort", sign < 0 ? "descending" : "ascending");
        else head.removeAttribute("aria-sort");
      });
      const body = table.tBodies[0];
      const lines = rows.filter((row) => row.parentElement === body); // in the order of the suite
      if (column >= 0) lines.sort((a, b) => compare(a.cells[column], b.cells[column], sign));
      body.append(...lines);
    }
  }

  // Cells without a figure come last in either direction.
  function compare(a, b, sign) {
    if (a.dataset.v === undefined) return sign * a.textContent.trim().localeCompare(b.textContent.trim(), "en", { numeric: true });
    if (a.dataset.v === "" || b.dataset.v === "") return (a.dataset.v === "" ? 1 : 0) - (b.dataset.v === "" ? 1 : 0);
    return sign * (Number(a.dataset.v) - Number(b.dataset.v));
  }

  function take() {
    read();
    filter();
    order();
    if (parameters().toString()) document.getElementById("cells").scrollIntoView({ behavior: "instant" });
  }

  for (const head of document.querySelectorAll("th[data-sort]")) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", function () {
      const name = head.dataset.sort;
      sort = sort === name ? "-" + name : sort === "-" + name ? "" : name;
      order();
      filter();
      write();
    });
  }
  for (const control of controls) {
    control.addEventListener("input", function () {
      filter();
      write();
    });
  }
  document.getElementById("reset").addEventListener("click", function () {
    for (const control of controls) control.value = "";
    sort = "";
    order();
    filter();
    write();
  });
  addEventListener("hashchange", take);
  panel.hidden = false;
  take();
})();
