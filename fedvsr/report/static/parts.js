"use strict";
// Curves and the comparison of frames, which the report's page and the live page share.
const parts = (() => {
  const byId = (id) => document.getElementById(id);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const element = (tag, props = {}, ...children) => {
    const node = Object.assign(document.createElement(tag), props);
    node.append(...children);
    return node;
  };
  const fill = (select, names, values = names) => {
    select.replaceChildren(...names.map((name, i) => element("option", { textContent: name, value: values[i] })));
  };
  // A dark page mixes the colours with white.
  const tone = (hex) => {
    if (!dark.matches) return hex;
    const parts = [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
    return `rgb(${parts.map((p) => Math.round(p + 0.35 * (255 - p))).join(",")})`;
  };
  const faint = (colour) => colour.startsWith("#")
    ? `${colour}26` : colour.replace("rgb", "rgba").replace(")", ",.18)");

  // Curves. A panel is shown if its network and metric are chosen, or if it is to be shown always.
  let panels = [], metrics = {};
  const hidden = new Set();
  let charts = [];

  const show = (value, metric) => value == null ? "–" : value.toFixed(metrics[metric].decimals);

  // Decimals that tell neighbouring ticks apart: 2 for steps of 0.05, 3 for 0.025.
  function digits(ticks) {
    const step = ticks.length > 1 ? ticks[1] - ticks[0] : 1;
    let decimals = 0;
    while (decimals < 8 && Math.abs(step * 10 ** decimals - Math.round(step * 10 ** decimals)) > 1e-6) decimals += 1;
    return decimals;
  }

  function readout(panel, index) {
    const round = panel.rounds[index];
    const shown = panel.lines.filter((line) => !hidden.has(line.method) && line.mean[index] != null);
    shown.sort((a, b) => b.mean[index] - a.mean[index]);
    const cells = shown.map((line) => {
      const swatch = element("i", { className: "swatch" });
      swatch.style.background = tone(line.colour);
      const spread = line.high && line.high[index] != null
        ? ` ± ${show(line.high[index] - line.mean[index], panel.metric)}` : "";
      return element("span", {}, swatch, `${line.method} ${show(line.mean[index], panel.metric)}${spread}`);
    });
    if (panel.bicubic != null) cells.push(element("span", { textContent: `bicubic ${show(panel.bicubic, panel.metric)}` }));
    return [element("b", { textContent: `Round ${round} ` }), ...cells];
  }

  // The numbers of a panel in the order of its series.
  function columns(panel) {
    const values = [panel.rounds, panel.rounds.map(() => panel.bicubic)];
    for (const line of panel.lines) {
      if (line.high) values.push(line.high, line.low);
      values.push(line.mean);
    }
    return values;
  }

  function chart(panel) {
    const metric = metrics[panel.metric];
    const label = `${panel.title}, ${metric.name} over rounds`;
    const plotBox = element("div", { className: "plot", tabIndex: 0 });
    plotBox.setAttribute("role", "application");
    plotBox.setAttribute("aria-roledescription", "chart");
    plotBox.setAttribute("aria-label", `${label}. Arrows move between rounds, + and − zoom, 0 resets.`);
    const text = element("p", { className: "readout" });
    // Read aloud as the keys move between rounds, but not whenever a live page gets a new one.
    plotBox.addEventListener("focus", () => text.setAttribute("aria-live", "polite"));
    plotBox.addEventListener("blur", () => text.removeAttribute("aria-live"));
    const buttons = element("span", { className: "buttons" });
    const box = element("figure", { className: "chart" },
      element("figcaption", {}, element("span", { textContent: panel.title }), buttons), plotBox, text);

    const series = [{}, { label: "bicubic", stroke: css("--ink"), width: 1, points: { show: false } }];
    const bands = [];
    const owners = [null, null];
    for (const line of panel.lines) {
      const colour = tone(line.colour);
      if (line.high) {
        for (let edge = 0; edge < 2; edge += 1) {
          series.push({ label: `${line.method} band`, stroke: "transparent", width: 0, points: { show: false } });
          owners.push(line.method);
        }
        bands.push({ series: [series.length - 2, series.length - 1], fill: faint(colour) });
      }
      series.push({
        spanGaps: true, // a method may be scored in fewer rounds than others
        label: line.method, stroke: colour, width: line.ours ? 3 : 2,
        dash: line.dashes.map((length) => 2 * length),
        points: { show: () => panel.rounds.length <= 20, size: 5, fill: colour },
      });
      owners.push(line.method);
    }
    series.forEach((one, i) => { if (owners[i]) one.show = !hidden.has(owners[i]); });
    const axis = { stroke: css("--soft"), grid: { stroke: css("--line"), width: 0.5 }, ticks: { stroke: css("--line"), width: 0.5 } };
    let first, last, margin, at;
    const measure = () => {
      [first, last] = [panel.rounds[0], panel.rounds[panel.rounds.length - 1]];
      // A margin shows the first and the last point completely.
      margin = Math.max(0.02 * (last - first), 0.05);
    };
    measure();
    at = panel.rounds.length - 1;
    const plot = new uPlot({
      width: 300, height: 260, series, bands,
      legend: { show: false },
      cursor: { drag: { x: true, y: false, setScale: true }, points: { show: false } },
      scales: { x: { time: false, range: (u, low, high) => low === high ? [low - 1, high + 1] : [low, high] } },
      axes: [
        { ...axis, label: "Round", labelSize: 20, size: 32, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000] },
        { ...axis, label: metric.label, labelSize: 20, size: 62, values: (u, ticks) => ticks.map((tick) => tick.toFixed(digits(ticks))) },
      ],
      hooks: {
        setCursor: [(u) => {
          const index = u.cursor.idx;
          if (index != null) { at = index; text.replaceChildren(...readout(panel, at)); }
        }],
      },
    }, columns(panel), plotBox);
    const reset = () => plot.setScale("x", { min: first - margin, max: last + margin });
    const zoom = (factor) => {
      const { min, max } = plot.scales.x;
      const centre = panel.rounds[at] >= min && panel.rounds[at] <= max ? panel.rounds[at] : (min + max) / 2;
      const low = Math.max(first - margin, centre - factor * (centre - min));
      const high = Math.min(last + margin, centre + factor * (max - centre));
      if (high - low > 0.5) plot.setScale("x", { min: low, max: high });
    };
    const move = (step) => {
      at = Math.min(Math.max(at + step, 0), panel.rounds.length - 1);
      const { min, max } = plot.scales.x, round = panel.rounds[at];
      if (round < min) plot.setScale("x", { min: round - margin, max: round - margin + max - min });
      if (round > max) plot.setScale("x", { min: round + margin - max + min, max: round + margin });
      plot.setCursor({ left: plot.valToPos(round, "x"), top: 10 });
      text.replaceChildren(...readout(panel, at));
    };
    const keys = {
      ArrowLeft: () => move(-1), ArrowRight: () => move(1), Home: () => move(-1e9), End: () => move(1e9),
      "+": () => zoom(0.5), "=": () => zoom(0.5), "-": () => zoom(2), 0: reset, Escape: reset,
    };
    plotBox.addEventListener("keydown", (event) => {
      if (!keys[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      keys[event.key]();
    });
    plot.over.addEventListener("dblclick", (event) => { event.stopImmediatePropagation(); reset(); });
    for (const [name, title, act] of [["+", "Zoom in", () => zoom(0.5)], ["−", "Zoom out", () => zoom(2)], ["0", "Reset", reset]]) {
      const button = element("button", { type: "button", textContent: name, title });
      button.setAttribute("aria-label", `${title}: ${label}`);
      button.addEventListener("click", act);
      buttons.append(button);
    }
    // Take the points of a panel with the same lines: a zoom stays, and so does the chosen round.
    const renew = (newer) => {
      const { min, max } = plot.scales.x;
      const whole = min === first - margin && max === last + margin;
      const followed = at === panel.rounds.length - 1;
      panel = newer;
      measure();
      at = followed ? panel.rounds.length - 1 : Math.min(at, panel.rounds.length - 1);
      plot.batch(() => {
        plot.setData(columns(panel), false);
        if (whole) reset(); else plot.setScale("x", { min, max });
      });
      text.replaceChildren(...readout(panel, at));
    };
    reset();
    text.replaceChildren(...readout(panel, at));
    return { box, plot, plotBox, owners, renew, again: () => text.replaceChildren(...readout(panel, at)) };
  }

  function resize() {
    for (const { plot, plotBox } of charts) {
      const width = Math.floor(plotBox.clientWidth);
      const height = Math.min(420, Math.max(260, Math.round(0.45 * width)));
      if (width > 0 && width !== plot.width) plot.setSize({ width, height });
    }
  }

  function chosen() {
    return panels.filter((p) => p.always || (p.model === byId("model").value && p.metric === byId("metric").value));
  }

  function draw() {
    charts.forEach(({ plot }) => plot.destroy());
    const shown = chosen();
    charts = shown.map(chart);
    byId("charts").replaceChildren(...charts.map(({ box }) => box));
    if (byId("legend")) legend(shown);
    resize();
  }

  // What makes a new chart necessary, rather than new points in the one that is there.
  const shape = () => JSON.stringify(chosen().map((p) => [p.title, p.metric, p.lines.map((line) => [line.method, !line.high])]));
  let drawn = null;

  function again() {
    drawn = shape();
    draw();
  }

  // Show panels of curves, with the metrics by name; called again, with the newest points.
  function curves(newer) {
    const first = drawn === null;
    ({ panels, metrics } = newer);
    const scored = panels.filter((panel) => !panel.always);
    const models = [...new Set(scored.map((panel) => panel.model))];
    const names = Object.keys(metrics).filter((name) => scored.some((panel) => panel.metric === name));
    const choices = [["model", models, models], ["metric", names.map((name) => metrics[name].name), names]];
    for (const [id, labels, values] of choices) {
      const select = byId(id), before = select.value;
      if (values.join() !== [...select.options].map((option) => option.value).join()) {
        fill(select, labels, values);
        if (values.includes(before)) select.value = before;
      }
      byId(`${id}-label`).hidden = values.length < (id === "model" ? 2 : 1);
    }
    if (shape() !== drawn) again();
    else chosen().forEach((panel, i) => charts[i].renew(panel));
    if (!first) return;
    byId("model").addEventListener("change", again);
    byId("metric").addEventListener("change", again);
    dark.addEventListener("change", again);
    addEventListener("resize", resize);
  }

  function legend(shown) {
    const lines = new Map();
    shown.forEach((panel) => panel.lines.forEach((line) => lines.set(line.method, line)));
    const bicubic = element("span", { className: "key" });
    bicubic.append(element("i", { className: "thin" }), "bicubic");
    byId("legend").replaceChildren(...[...lines.values()].map((line) => {
      const button = element("button", { type: "button" });
      const sample = document.createElementNS("http://www.w3.org/2000/svg", "svg");
      sample.setAttribute("width", 26);
      sample.setAttribute("height", 6);
      sample.setAttribute("aria-hidden", "true");
      const stroke = document.createElementNS("http://www.w3.org/2000/svg", "path");
      stroke.setAttribute("d", "M0 3H26");
      stroke.setAttribute("stroke", tone(line.colour));
      stroke.setAttribute("stroke-width", 3);
      stroke.setAttribute("stroke-dasharray", line.dashes.map((length) => 2 * length).join(" "));
      sample.append(stroke);
      const seeds = line.seeds === 1 ? "1 seed" : `${line.seeds} seeds`;
      button.append(sample, line.method + (line.state ? ` (${line.state})` : ""));
      button.title = `${seeds}; show or hide`;
      button.setAttribute("aria-pressed", String(!hidden.has(line.method)));
      button.addEventListener("click", () => {
        if (!hidden.delete(line.method)) hidden.add(line.method);
        const visible = !hidden.has(line.method);
        button.setAttribute("aria-pressed", String(visible));
        for (const { plot, owners, again } of charts) {
          owners.forEach((owner, i) => { if (owner === line.method) plot.setSeries(i, { show: visible }); });
          again();
        }
      });
      return button;
    }), bicubic);
  }

  // Frames.
  let scenes = [];
  const pair = byId("pair"), slider = byId("at"), zoom = byId("zoom");

  function place(share) {
    slider.value = Math.min(Math.max(share, 0), 100);
    pair.style.setProperty("--at", `${slider.value}%`);
  }
  function picture(side) {
    const scene = scenes[byId("scene").value];
    const chosen = scene.pictures.find((one) => one.name === byId(side).value);
    const psnr = chosen.psnr_db == null ? "" : `, ${chosen.psnr_db.toFixed(2)} dB`;
    byId(`picture-${side}`).src = chosen.url;
    byId(`picture-${side}`).alt = `${scene.name}, ${chosen.name}`;
    byId(`caption-${side}`).textContent = chosen.name + psnr;
  }
  function enlarge() {
    const scene = scenes[byId("scene").value];
    pair.style.aspectRatio = `${scene.width} / ${scene.height}`;
    pair.style.width = `${100 * zoom.value}%`;
    pair.classList.toggle("zoomed", zoom.value !== "1");
    size();
  }
  function size() {
    const scene = scenes[byId("scene").value];
    const percent = Math.round(100 * pair.clientWidth / scene.width);
    const how = percent > 100 ? "enlarged to" : percent < 100 ? "reduced to" : "shown at";
    byId("size").textContent = `Frames of ${scene.width} x ${scene.height} pixels, ${how} ${percent} %.`;
  }
  function open() {
    const scene = scenes[byId("scene").value];
    const names = scene.pictures.map((one) => one.name);
    for (const [side, wish] of [["left", "FedAvg"], ["right", "FedVSR"]]) {
      const before = byId(side).value;
      fill(byId(side), names);
      const fallback = side === "left" ? names[0] : names[names.length - 2];
      byId(side).value = [before, wish, fallback].find((name) => names.includes(name));
      picture(side);
    }
    enlarge();
  }
  // Show scenes, each with the pictures of one frame; called again, with others.
  function frames(newer) {
    const first = !scenes.length, before = byId("scene").value;
    scenes = newer;
    fill(byId("scene"), scenes.map((scene) => scene.name), scenes.map((_, i) => i));
    if (!first && before < scenes.length) byId("scene").value = before;
    open();
    if (first) listen();
  }

  function listen() {
    byId("scene").addEventListener("change", open);
    for (const side of ["left", "right"]) byId(side).addEventListener("change", () => picture(side));
    zoom.addEventListener("change", enlarge);
    addEventListener("resize", size);
    slider.addEventListener("input", () => place(Number(slider.value)));
    const follow = (event) => {
      const bounds = pair.getBoundingClientRect();
      place(100 * (event.clientX - bounds.left) / bounds.width);
    };
    pair.addEventListener("pointerdown", (event) => {
      pair.setPointerCapture(event.pointerId);
      follow(event);
    });
    pair.addEventListener("pointermove", (event) => { if (pair.hasPointerCapture(event.pointerId)) follow(event); });
    place(50);
  }

  return { byId, element, fill, curves, frames };
})();
