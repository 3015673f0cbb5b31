"use strict";
(() => {
  const { byId, element } = parts;
  const { follow, badge, duration, number, signed, time } = live;
  const id = new URLSearchParams(location.search).get("id");
  const ask = (name) => (id === null ? name : `${name}?id=${encodeURIComponent(id)}`);
  const drawn = new Map();
  let state = null, changedAt = 0;

  // Draw a part of the page only if its values have changed, so that scrolling and focus stay.
  function part(name, values, draw) {
    const text = JSON.stringify(values);
    if (drawn.get(name) === text) return;
    drawn.set(name, text);
    draw(values);
  }

  function table(label, heads, rows) {
    const head = element("tr", {}, ...heads.map((name) => element("th", { scope: "col", textContent: name })));
    const body = rows.map((cells) => element("tr", {}, ...cells.map((text, i) => (
      i ? element("td", { textContent: text ?? "" }) : element("th", { scope: "row", textContent: text ?? "" })))));
    const box = element("div", { className: "table", tabIndex: 0 },
      element("table", {}, element("thead", {}, head), element("tbody", {}, ...body)));
    box.setAttribute("role", "region");
    box.setAttribute("aria-label", label);
    return box;
  }
  const title = (text) => element("h3", { textContent: text });
  const note = (text) => element("p", { className: "small", textContent: text });

  function timeLeft() {
    if (state.status !== "running" || !state.walls_s || !state.walls_s.length) return null;
    const per = state.walls_s.reduce((a, b) => a + b, 0) / state.walls_s.length;
    return per * (state.num_rounds - state.last_round) - Math.min(per, (Date.now() - changedAt) / 1000);
  }

  function numbers() {
    const left = timeLeft(), { now, last } = state;
    const loss = state.charts && state.charts.panels.find((panel) => panel.metric === "loss");
    const found = [
      ["Round", state.num_rounds == null ? "–" : `${state.last_round} of ${state.num_rounds}`],
      ["RGB PSNR", number(state.psnr_db, 2, " dB")],
      ["Over bicubic", signed(state.gain_db, 2, " dB")],
      ["Loss", number(loss ? loss.lines[0].mean[loss.rounds.length - 1] : null, 4)],
      ["Round time", state.walls_s && state.walls_s.length ? number(state.walls_s[state.walls_s.length - 1], 1, " s") : "–"],
    ];
    if (left != null) found.push(["Time left", duration(left)]);
    if (now && now.num_sampled) found.push(["Clients now", `${now.num_finished} of ${now.num_sampled}`]);
    else if (last && last.num_sampled) found.push(["Clients", `${last.bars.length} of ${last.num_sampled}`]);
    part("numbers", found, () => byId("numbers").replaceChildren(...found.map(([name, value]) => (
      element("div", {}, element("dt", { textContent: name }), element("dd", { textContent: value }))))));
  }

  function drawNow(now) {
    if (!now) { byId("now").replaceChildren(); return; }
    const count = now.num_sampled ? `${now.num_finished} of ${now.num_sampled} clients have finished` : "no client has finished yet";
    const chips = now.clients.map((own) => {
      const parts = [own.state];
      if (own.train_s != null) parts.push(`${own.train_s.toFixed(1)} s`);
      if (own.loss != null) parts.push(`loss ${own.loss.toFixed(4)}`);
      const chip = element("li", {}, element("b", { textContent: `client ${own.client_id}` }), ` ${parts.join(", ")}`);
      chip.dataset.state = own.state === "finished" ? "finished" : own.state.includes(",") ? "failed" : "waiting";
      return chip;
    });
    byId("now").replaceChildren(title(`Round ${now.round_idx}, under way`), note(`${count}.`), element("ul", { className: "chips" }, ...chips));
  }

  const remark = (bar) => [
    bar.rejected ? "rejected" : "", bar.upload_failed ? "upload lost" : "", bar.attempts > 1 ? `${bar.attempts} attempts` : "",
  ].filter(Boolean).join(", ");

  function drawLast(last) {
    if (!last) { byId("last").replaceChildren(note("No round has been trained yet.")); return; }
    const { bars } = last;
    const end = Math.max(...bars.map((bar) => (bar.started_s || 0) + (bar.train_s || 0)), last.train_s || 0, 1e-9);
    const slots = [...new Set(bars.map((bar) => bar.slot))].sort((a, b) => a - b);
    const lanes = slots.map((slot) => {
      const own = bars.filter((bar) => bar.slot === slot);
      const lane = element("div", { className: "lane" });
      for (const bar of own) {
        const box = element("span", { textContent: bar.client_id, title: `client ${bar.client_id}: ${number(bar.train_s, 1, " s")}` });
        box.style.left = `${100 * (bar.started_s || 0) / end}%`;
        box.style.width = `${100 * (bar.train_s || 0) / end}%`;
        box.classList.toggle("odd", Boolean(remark(bar)));
        lane.append(box);
      }
      const node = own.find((bar) => bar.node);
      const name = slot == null ? "one after another" : `slot ${slot}`;
      const label = element("span", { className: "label", textContent: name, title: node ? `node ${node.node}` : "" });
      return element("div", { className: "slot" }, label, lane);
    });
    const picture = element("div", { className: "lanes" }, ...lanes,
      element("div", { className: "axis" }, element("span", { textContent: "0 s" }), element("span", { textContent: `${end.toFixed(1)} s` })));
    picture.setAttribute("aria-hidden", "true");
    const counts = [`${bars.length} of ${last.num_sampled ?? bars.length} sampled clients sent a report`];
    if (last.num_online != null) counts.push(`${last.num_online} of ${state.num_clients} clients were online`);
    for (const [name, what] of [["num_failed", "gave no update"], ["num_rejected", "rejected"], ["num_upload_failures", "lost their upload"]]) {
      if (last[name]) counts.push(`${last[name]} ${what}`);
    }
    if (last.absent.length) counts.push(`no report from client ${last.absent.join(", ")}`);
    if (bars.some(remark)) counts.push("brown: see the remark in the table");
    const rows = bars.map((bar) => [
      bar.client_id, bar.slot ?? "", (bar.node || "").slice(0, 8), number(bar.started_s, 1), number(bar.train_s, 1),
      number(bar.loss, 4), remark(bar),
    ]);
    byId("last").replaceChildren(
      title(`Round ${last.round_idx}, who trained where`), note(`${counts.join("; ")}.`), ...(bars.length ? [picture] : []),
      element("details", {}, element("summary", { textContent: "As a table" }),
        table(`Clients of round ${last.round_idx}`, ["Client", "Slot", "Node", "Start s", "Seconds", "Loss", "Remark"], rows)),
    );
  }

  function drawAll(clients) {
    if (!clients.num) { byId("all").replaceChildren(); return; }
    const rows = clients.rows.map((own) => [
      own.client_id, ...(own.owner ? [own.owner] : []), own.rounds, own.last_round ?? "–", number(own.mean_s, 1), number(own.loss, 4), own.faults || "",
    ]);
    const missing = state.num_clients - clients.num;
    const lines = [];
    if (clients.rows.length < clients.num) lines.push(note(`The first ${clients.rows.length} of ${clients.num}.`));
    if (missing > 0) lines.push(note(`${missing} of ${state.num_clients} clients have not been sampled yet.`));
    byId("all").replaceChildren(title("All clients so far"), ...lines,
      table("All clients so far", ["Client", ...(clients.rows[0].owner ? ["Owner"] : []), "Rounds", "Last round", "Mean s", "Last loss", "Faults"], rows));
  }

  function drawFaults(faults) {
    if (!faults.num) { byId("fault-rows").replaceChildren(note("None.")); return; }
    const rows = faults.rows.map((row) => [
      row.round_idx, row.client_id ?? "–", row.kind, row.final ? "given up" : "retried", row.message, number(row.lost_s, 1), (row.node || "").slice(0, 8),
    ]);
    const lines = faults.rows.length < faults.num ? [note(`The newest ${faults.rows.length} of ${faults.num}.`)] : [];
    byId("fault-rows").replaceChildren(...lines,
      table("Faults, the newest first", ["Round", "Client", "Kind", "Then", "Message", "Lost s", "Node"], rows));
  }

  function drawLog(lines) {
    if (!lines.length) { byId("log-lines").replaceChildren(element("li", { textContent: "Nothing yet." })); return; }
    byId("log-lines").replaceChildren(...lines.map((line) => (
      element("li", {}, element("time", { dateTime: line.at, textContent: line.at ? time(line.at) : "" }), ` ${line.text}`))));
  }

  function drawErrors(errors) {
    byId("errors").replaceChildren(...errors.map((text) => element("p", { className: "banner", textContent: text })));
  }

  // The server reads each picture for its PSNR, so they are asked for alone.
  async function askFrames(tag) {
    let scenes = [], text = "There are no pictures yet: a run keeps one frame of each test clip of its last scores.";
    if (tag) {
      try {
        const response = await fetch(ask("frames.json"), { signal: AbortSignal.timeout(120000) });
        const { frames, errors } = await response.json();
        scenes = frames;
        if (errors.length) text = errors[0];
      } catch (error) {
        text = "The pictures could not be loaded; load the page again.";
      }
    }
    byId("frames").classList.toggle("without", !scenes.length);
    byId("no-frames").hidden = Boolean(scenes.length);
    byId("no-frames").textContent = text;
    if (scenes.length) part("frames", scenes, parts.frames);
  }

  function show(newer) {
    byId("main").hidden = false;
    if (!state || newer.last_round !== state.last_round) changedAt = Date.now();
    state = newer;
    document.title = state.num_rounds == null ? state.name : `${state.last_round}/${state.num_rounds} ${state.name}`;
    byId("name").textContent = state.name;
    badge(byId("badge"), state.status);
    const facts = [
      state.model && `${state.algorithm} with ${state.model}`, state.num_params && `${state.num_params.toLocaleString("en")} parameters`,
      state.num_clients && `${state.num_clients} clients`, state.seed != null && `seed ${state.seed}`, state.executor, state.device,
      state.test_set && `scored on ${state.test_set}`, state.started_at && `started ${new Date(state.started_at).toLocaleString()}`,
    ];
    byId("facts").textContent = facts.filter(Boolean).join(" · ");
    byId("progress").value = state.num_rounds ? state.last_round / state.num_rounds : 0;
    part("errors", [...(state.error ? [`The run failed: ${state.error}`] : []), ...state.errors], drawErrors);
    numbers();
    const panels = state.charts ? state.charts.panels : [];
    byId("curves").hidden = !panels.length;
    byId("no-curves").hidden = Boolean(panels.length);
    if (panels.length) part("curves", state.charts, parts.curves);
    part("now", state.now || null, drawNow);
    part("last", state.last || null, drawLast);
    part("all", state.clients || { num: 0 }, drawAll);
    part("faults", state.faults || { num: 0 }, drawFaults);
    part("pictures", state.frames || "", askFrames);
    part("log", state.log || [], drawLog);
    part("config", state.config || "", (text) => { byId("config").textContent = text; });
    return state.status === "running" || state.status === "starting";
  }

  setInterval(() => { if (state && state.status === "running") numbers(); }, 1000);
  follow(ask("run.json"), show);
})();
