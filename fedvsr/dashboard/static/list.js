"use strict";
(() => {
  const { byId, element, fill } = parts;
  const { follow, badge, number, signed } = live;
  const rows = new Map();
  let runs = [];

  function cell(name, className = "") {
    const node = element("td", { className });
    node.setAttribute("role", "cell");
    node.dataset.name = name;
    return node;
  }
  const set = (node, text) => { if (node.textContent !== text) node.textContent = text; };

  // A run's row is made once and then changed, so that the keyboard's focus stays where it is.
  function row(run) {
    let known = rows.get(run.id);
    if (!known) {
      const head = element("th", { scope: "row" });
      head.setAttribute("role", "rowheader");
      const link = element("a", { href: `run?id=${encodeURIComponent(run.id)}`, textContent: run.name });
      const error = element("span", { className: "error" });
      head.append(link, error);
      const state = cell("Status"), mark = element("span", { className: "badge" });
      state.append(mark);
      const round = cell("Round"), text = element("span"), bar = element("progress", { max: 1, value: 0 });
      bar.setAttribute("aria-hidden", "true");
      round.append(text, bar);
      const cells = {
        model: cell("Network"), algorithm: cell("Algorithm"), seed: cell("Seed", "number"),
        test_set: cell("Test set"), psnr: cell("RGB PSNR", "number"), gain: cell("Over bicubic", "number"),
      };
      const node = element("tr", {}, head, state, cells.model, cells.algorithm, cells.seed, round, cells.test_set, cells.psnr, cells.gain);
      node.setAttribute("role", "row");
      known = { node, error, mark, round: text, bar, cells };
      rows.set(run.id, known);
    }
    badge(known.mark, run.status);
    set(known.error, run.error || "");
    const { cells } = known;
    for (const name of ["model", "algorithm", "test_set"]) set(cells[name], run[name] || "");
    set(cells.seed, run.seed == null ? "" : String(run.seed));
    const counted = run.num_rounds != null;
    set(known.round, counted ? `${run.last_round} of ${run.num_rounds}` : "");
    known.bar.hidden = !counted;
    known.bar.value = counted ? run.last_round / run.num_rounds : 0;
    set(cells.psnr, run.psnr_db == null ? "" : number(run.psnr_db, 2, " dB"));
    set(cells.gain, run.gain_db == null ? "" : signed(run.gain_db, 2, " dB"));
    cells.gain.classList.toggle("below", run.gain_db < 0);
    for (const cell of known.node.children) cell.classList.toggle("empty", !cell.textContent);
    return known.node;
  }

  function chosen() {
    const words = byId("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
    const status = byId("status").value, sweep = byId("sweep").value, order = byId("order").value;
    const shown = runs.filter((run) => {
      if (status && run.status !== status) return false;
      if (sweep === "none" && run.sweep) return false;
      if (sweep.startsWith("of:") && run.sweep !== sweep.slice(3)) return false;
      const text = `${run.id} ${run.model} ${run.algorithm} ${run.test_set}`.toLowerCase();
      return words.every((word) => text.includes(word));
    });
    if (order === "started_at") return shown;
    return shown.sort((a, b) => (b[order] ?? -Infinity) - (a[order] ?? -Infinity));
  }

  function draw() {
    const shown = chosen(), body = byId("rows");
    const nodes = shown.map(row);
    const same = nodes.length === body.children.length && nodes.every((node, i) => node === body.children[i]);
    if (!same) {
      const focused = document.activeElement;
      body.replaceChildren(...nodes);
      if (focused && focused !== document.activeElement && body.contains(focused)) focused.focus();
    }
    const counts = new Map();
    runs.forEach((run) => counts.set(run.status, (counts.get(run.status) || 0) + 1));
    const states = [...counts].map(([status, count]) => `${count} ${status}`).join(", ");
    const total = runs.length === 1 ? "1 run" : `${runs.length} runs`;
    const part = shown.length < runs.length ? `${shown.length} of ` : "";
    byId("count").textContent = runs.length
      ? `${part}${total}: ${states}.` : "There are no runs here yet; `fedvsr run` makes one.";
    byId("runs").hidden = !shown.length;
  }

  function choices(id, labels, values) {
    const select = byId(id), before = select.value;
    if (values.join("\n") === [...select.options].map((option) => option.value).join("\n")) return;
    fill(select, labels, values);
    if (values.includes(before)) select.value = before;
  }

  function show(state) {
    runs = state.runs;
    const gone = new Set(rows.keys());
    runs.forEach((run) => gone.delete(run.id));
    gone.forEach((id) => rows.delete(id));
    const states = [...new Set(runs.map((run) => run.status))].sort();
    choices("status", ["any", ...states], ["", ...states]);
    const sweeps = [...new Set(runs.map((run) => run.sweep).filter(Boolean))].sort();
    const alone = runs.some((run) => !run.sweep);
    choices(
      "sweep",
      [...(alone ? ["left out"] : []), "shown", ...sweeps.map((name) => `only ${name}`)],
      [...(alone ? ["none"] : []), "", ...sweeps.map((name) => `of:${name}`)],
    );
    byId("sweep-label").hidden = !sweeps.length;
    draw();
    return runs.some((run) => ["running", "starting", "reading"].includes(run.status));
  }

  byId("filter").addEventListener("input", draw);
  for (const id of ["status", "sweep", "order"]) byId(id).addEventListener("change", draw);
  follow("runs.json", show);
})();
