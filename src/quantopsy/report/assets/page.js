(() => {
  const { DATA, byId, html, svg, elide, tickText, linearTicks, drawScatters } = shared;
  const GUTTER = 64;
  const layers = DATA.layers;
  const column = new Map(layers.map((layer, index) => [layer.layer, index]));
  const cells = new Map(DATA.cells.map((cell) => [cell.layer + ":" + cell.bits, cell]));
  const state = { layer: DATA.start.layer, bits: DATA.start.bits, view: "degradation", sort: "rank", down: false };

  const cellAt = (layer, bits) => cells.get(layer + ":" + bits);

  const fillOf = (tint, strong) =>
    `fill:color-mix(in oklab,var(--${strong}) ${(100 * Math.abs(tint)).toFixed(1)}%,var(--zero))`;
  const described = (cell) => {
    if (!cell) return ["not measured"];
    const t = cell.texts;
    return [
      `degradation ${t.lost}${DATA.suffix}`,
      `noise ${t.noise}${cell.stderr === null ? "" : " \u00b1 " + t.stderr}, SQNR ${t.sqnr || "unknown"} dB`,
      `${cell.screened ? DATA.screened : "exact"}, ${cell.samples} images, ${t.verdict}`,
    ].concat(cell.rough ? [DATA.rough] : []);
  };

  // ---- the aligned bands: heatmap, bars, names ------------------------------------------------------

  // A small tilde in the corner opposite to the notch.
  const roughMark = (right, bottom, size) =>
    `M${right - size} ${bottom}q${size / 4} ${-size * 0.8} ${size / 2} ${-size * 0.3}t${size / 2} ${-size * 0.3}`;

  function geometry() {
    const room = byId("chart").clientWidth - GUTTER - 16;
    const least = byId("numbers").checked || layers.length <= 30 ? 34 : 6;
    const width = Math.min(60, Math.max(least, room / layers.length));
    return { width, total: width * layers.length, text: width >= 19 };
  }

  function band(g, height, gutter, plot, title) {
    const parts = [
      html("div", { class: "band" },
        svg("svg", { class: "gutter", width: GUTTER, height, "aria-hidden": "true" }, gutter),
        svg("svg", { width: g.total, height, "aria-hidden": "true" }, plot)),
    ];
    return title ? [html("h3", {}, title), ...parts] : parts;
  }

  const columnBand = (g, height) =>
    svg("rect", { class: "column", x: column.get(state.layer) * g.width, y: 0, width: g.width, height });

  function heat(g) {
    const row = g.text ? 30 : 24, plot = [], gutter = [];
    const [tint, text, strong] = state.view === "noise" ? ["noise_tint", "noise_cell", "noise"] : ["tint", "cell", "worse"];
    const gap = g.width > 12 ? 1 : 0.5;
    DATA.bits.forEach((bits, r) => {
      const y = r * row;
      gutter.push(svg("text", { x: GUTTER - 10, y: y + row / 2 + 4, "text-anchor": "end",
        class: bits === state.bits ? "chosen-name" : undefined }, `${bits} bits`));
      layers.forEach((layer, c) => {
        const cell = cellAt(layer.layer, bits), x = c * g.width;
        const box = { x: x + gap / 2, y: y + 0.5, width: g.width - gap, height: row - 1, rx: g.width > 12 ? 2 : 0,
          "data-layer": layer.layer, "data-bits": bits };
        const share = cell ? cell[tint] : null;
        if (share === null) {
          plot.push(svg("rect", { ...box, class: "hit" }),
            svg("rect", { ...box, class: "absent cell", x: x + 1.5, y: y + 1.5, width: Math.max(1, g.width - 3), height: row - 3 }));
        } else {
          plot.push(svg("rect", { ...box, class: "cell", style: fillOf(share, share < 0 ? "better" : strong) }));
        }
        const turns = DATA.strong[share < 0 ? "better" : strong];
        const loud = share === null ? "" : (Math.abs(share) >= turns[0] ? " in-light" : "") + (Math.abs(share) >= turns[1] ? " in-dark" : "");
        if (cell && cell.screened) {
          const n = Math.min(5, g.width * 0.6);
          plot.push(svg("path", { class: "notch" + loud, d: `M${x + gap / 2} ${y + 0.5}h${n}l${-n} ${n}z` }));
          if (cell.rough) plot.push(svg("path", { class: "rough" + loud, d: roughMark(x + g.width - gap / 2 - 2, y + row - 3, n - 1) }));
        }
        const label = cell && share !== null ? cell.texts[text] : "";
        const size = Math.min(11, (g.width - 2) / (0.58 * label.length));
        if (g.text && label && size >= 7.4)
          plot.push(svg("text", { class: "value" + loud + (cell.screened ? " screened" : ""), x: x + g.width / 2, y: y + row / 2 + 4,
            style: `font-size:${size.toFixed(1)}px` }, label));
      });
    });
    const height = row * DATA.bits.length;
    plot.push(columnBand(g, height), svg("rect", { class: "chosen", x: column.get(state.layer) * g.width + 0.5,
      y: DATA.bits.indexOf(state.bits) * row + 0.5, width: Math.max(3, g.width - 1), height: row - 1, rx: 2 }));
    return band(g, height + 1, gutter, plot);
  }

  function bars(g, title, key, ends, scale, colour) {
    const height = 150, top = 8, bottom = height - 8;
    const y = (value) => bottom - ((Math.min(Math.max(value, scale.low), scale.high) - scale.low) / (scale.high - scale.low)) * (bottom - top);
    const gutter = [], plot = [];
    for (const tick of scale.ticks) {
      plot.push(svg("line", { class: tick === scale.base ? "zero" : "line", x1: 0, x2: g.total, y1: y(tick), y2: y(tick) }));
      gutter.push(svg("text", { x: GUTTER - 10, y: y(tick) + 4, "text-anchor": "end" }, scale.text(tick)));
    }
    layers.forEach((layer, c) => {
      const cell = cellAt(layer.layer, state.bits);
      const value = cell && cell[key] !== null ? scale.map(cell[key]) : null;
      const x = c * g.width, thick = Math.max(1, Math.min(26, g.width * 0.7)), middle = x + g.width / 2;
      if (value !== null) {
        // A bar too flat to be hollow is drawn full: its outline alone would be higher than it is.
        const from = y(scale.base), to = y(value), hollow = cell.screened && Math.abs(to - from) > 2;
        plot.push(svg("rect", { x: middle - thick / 2, width: thick, y: Math.min(from, to), height: Math.max(0.75, Math.abs(to - from)),
          style: hollow ? `fill:var(--${colour(cell)});fill-opacity:0.08;stroke:var(--${colour(cell)})` : `fill:var(--${colour(cell)})`,
          opacity: 0.85 }));
        const [low, high] = ends(cell);
        if (low !== null && high !== null)
          plot.push(svg("line", { class: "whisker", x1: middle, x2: middle, y1: y(scale.map(low)), y2: y(scale.map(high)) }));
      }
      plot.push(svg("rect", { class: "hit", x, y: 0, width: g.width, height, "data-layer": layer.layer, "data-bits": state.bits }));
    });
    plot.push(columnBand(g, height));
    return band(g, height, gutter, plot, title);
  }

  function degradationScale() {
    const shown = DATA.cells.filter((cell) => cell.bits === state.bits);
    const values = shown.flatMap((cell) => [cell.degradation, cell.low, cell.high]).filter((value) => value !== null);
    let low = Math.min(0, ...values), high = Math.max(0, ...values);
    if (high - low === 0) high = 1;
    return { low, high, base: 0, map: (value) => value, text: tickText, ticks: linearTicks(low, high, 4) };
  }

  function noiseScale() {
    const values = DATA.cells.filter((cell) => cell.bits === state.bits && cell.noise > 0).map((cell) => Math.log10(cell.noise));
    if (!values.length) values.push(0);
    const low = Math.floor(Math.min(...values) - 0.2), high = Math.max(low + 1, Math.ceil(Math.max(...values)));
    const step = Math.ceil((high - low) / 4), ticks = [];
    for (let tick = low; tick <= high; tick += step) ticks.push(tick);
    return { low, high, base: low, map: (value) => (value > 0 ? Math.log10(value) : low), text: (tick) => tickText(10 ** tick), ticks };
  }

  function names(g) {
    const chosen = (layer) => (layer.layer === state.layer ? "chosen-name" : undefined);
    if (g.width >= 14) {
      const longest = Math.min(24, Math.max(...layers.map((layer) => layer.name.length)));
      const plot = layers.map((layer, c) => svg("text", { class: chosen(layer), "data-layer": layer.layer, "text-anchor": "end",
        transform: `translate(${(c + 0.5) * g.width + 4} 8) rotate(-90)` }, elide(layer.name, 24)));
      return band(g, longest * 6.6 + 12, [], plot);
    }
    const plot = layers.filter((layer, c) => c % 10 === 0).map((layer) =>
      svg("text", { x: (column.get(layer.layer) + 0.5) * g.width, y: 14, "text-anchor": "middle" }, String(layer.layer)));
    return band(g, 20, [svg("text", { x: GUTTER - 10, y: 14, "text-anchor": "end" }, "layer")], plot);
  }

  function drawChart() {
    const chart = byId("chart"), g = geometry();
    const spread = (cell) => [cell.stderr === null ? null : Math.max(cell.noise - cell.stderr, 0), cell.stderr === null ? null : cell.noise + cell.stderr];
    const at = `at ${state.bits} bits`;
    chart.replaceChildren(
      ...heat(g),
      ...bars(g, `Degradation${DATA.unit} ${at}`, "degradation", (cell) => [cell.low, cell.high], degradationScale(),
        (cell) => (cell.degradation < 0 ? "better" : "worse")),
      ...bars(g, `Noise ${at}, logarithmic`, "noise", spread, noiseScale(), () => "noise"),
      ...names(g));
    byId("numbers-label").hidden = layers.length <= 30;
  }

  function drawLegend() {
    const noise = state.view === "noise";
    const colours = noise ? "var(--zero),var(--noise)" : "var(--better),var(--zero),var(--worse)";
    const limits = DATA.limits[state.view];
    const caption = noise ? "colour: noise, logarithmic; number: SQNR in dB"
      : `colour and number: degradation${DATA.unit}` + (DATA.robust ? ", saturating at the 95th percentile" : "");
    const parts = [
      html("div", { class: "bar" }, html("i", { style: `background:linear-gradient(in oklab to right,${colours})` }),
        html("div", {}, ...limits.map((text) => html("span", {}, text)))),
      html("span", {}, caption),
    ];
    if (DATA.cells.some((cell) => cell.screened)) {
      parts.push(html("span", { class: "key" },
        svg("svg", { width: 14, height: 14 }, svg("rect", { width: 14, height: 14, rx: 2, style: "fill:var(--zero)" }),
          svg("path", { class: "notch", d: "M0 0h5l-5 5z" })),
        `${DATA.screened}; its bar is hollow`));
    }
    if (DATA.cells.some((cell) => cell.rough)) {
      parts.push(html("span", { class: "key" },
        svg("svg", { width: 14, height: 14 }, svg("rect", { width: 14, height: 14, rx: 2, style: "fill:var(--zero)" }),
          svg("path", { class: "notch", d: "M0 0h5l-5 5z" }), svg("path", { class: "rough", d: roughMark(12, 12, 4) })),
        DATA.rough));
    }
    if (DATA.cells.length < layers.length * DATA.bits.length || DATA.cells.some((cell) => cell[noise ? "noise_tint" : "tint"] === null))
      parts.push(html("span", { class: "key" }, svg("svg", { width: 14, height: 14 },
        svg("rect", { class: "absent", x: 1, y: 1, width: 12, height: 12 })), "not known"));
    byId("legend").replaceChildren(...parts);
  }

  // ---- one layer -------------------------------------------------------------------------------------

  function drawCards(cards) {
    const nodes = cards.map(([title]) => html("div", { class: "card" }, html("h3", {}, title)));
    byId("cards").append(...nodes);
    // All cards are laid out before any is drawn: together they decide each one's width.
    const width = nodes.length ? nodes[0].clientWidth - 32 : 0;
    cards.forEach(([, text, draw], i) => {
      if (draw) nodes[i].append(draw(width));
      if (text) nodes[i].append(html("p", {}, text));
    });
  }

  function weightChart(h, width) {
    const height = 190, floor = height - 24, top = 18, left = 34;
    const span = h.high - h.low || 1;
    const x = (value) => left + 8 + ((value - h.low) / span) * (width - left - 16);
    const most = Math.log10(Math.max(...h.counts, 1)) + 0.3, least = Math.log10(0.5);
    const y = (count) => floor - ((Math.log10(Math.max(count, 0.5)) - least) / (most - least)) * (floor - top);
    const nodes = [];
    for (let decade = 0; decade <= most; decade++) {
      nodes.push(svg("line", { class: "line", x1: left, x2: width, y1: y(10 ** decade), y2: y(10 ** decade) }),
        svg("text", { x: left - 6, y: y(10 ** decade) + 4, "text-anchor": "end" }, tickText(10 ** decade)));
    }
    h.counts.forEach((count, i) => {
      if (count > 0) nodes.push(svg("rect", { class: "weights", x: x(h.edges[i]), y: y(count),
        width: Math.max(0.5, x(h.edges[i + 1]) - x(h.edges[i]) - 0.4), height: floor - y(count) }));
    });
    nodes.push(svg("line", { class: "zero", x1: left, x2: width, y1: floor, y2: floor }));
    [h.low, h.high].forEach((end, i) => {
      nodes.push(svg("line", { class: "range", x1: x(end), x2: x(end), y1: 4, y2: floor }),
        svg("text", { class: "range-text", x: x(end) + (i ? -5 : 5), y: 12, "text-anchor": i ? "end" : "start" }, h.ends[i]));
    });
    if (h.low < 0 && h.high > 0)
      nodes.push(svg("text", { x: x(0), y: height - 8, "text-anchor": "middle" }, "0"));
    return svg("svg", { height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "Histogram of the weights, logarithmic count" }, nodes);
  }

  function channelChart(c, width) {
    const height = 190, left = 46, top = 10, floor = height - 24;
    const low = Math.min(0, ...c.low), high = Math.max(0, ...c.high), span = high - low || 1;
    const y = (value) => floor - ((value - low) / span) * (floor - top);
    const step = (width - left - 4) / c.low.length;
    const path = c.low.map((value, i) => `M${(left + (i + 0.5) * step).toFixed(2)} ${y(value).toFixed(2)}V${(y(c.high[i]) - 0.01).toFixed(2)}`).join("");
    const nodes = [];
    for (const tick of linearTicks(low, high, 4))
      nodes.push(svg("line", { class: tick === 0 ? "zero" : "line", x1: left, x2: width, y1: y(tick), y2: y(tick) }),
        svg("text", { x: left - 6, y: y(tick) + 4, "text-anchor": "end" }, tickText(tick)));
    nodes.push(svg("path", { class: "channel", d: path, "stroke-width": Math.max(0.8, Math.min(14, step * 0.72)) }),
      svg("text", { x: left, y: height - 6 }, "channel 0"),
      svg("text", { x: width - 4, y: height - 6, "text-anchor": "end" }, String(c.low.length - 1)));
    return svg("svg", { height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "Range of the weights of every output channel" }, nodes);
  }

  function rangeChart(ranges, width) {
    const row = 44, height = row * ranges.length + 22, left = 4;
    const low = Math.min(0, ...ranges.map((r) => r.low)), high = Math.max(0, ...ranges.map((r) => r.high)), span = high - low || 1;
    const x = (value) => left + ((value - low) / span) * (width - left - 8);
    const nodes = [svg("text", { x: x(0), y: height - 5, "text-anchor": x(0) < 12 ? "start" : "middle" }, "0")];
    ranges.forEach((r, i) => {
      nodes.push(svg("text", { x: left, y: i * row + 14 }, `${r.edge}: ${r.text}`),
        svg("rect", { class: "weights", x: x(r.low), y: i * row + 20, width: Math.max(1, x(r.high) - x(r.low)), height: 12, rx: 2 }),
        svg("line", { class: "zero", x1: x(0), x2: x(0), y1: i * row + 17, y2: i * row + 35 }));
    });
    return svg("svg", { height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "Calibrated activation ranges" }, nodes);
  }

  function measurements(layer) {
    const headings = ["weight bits", `degradation${DATA.unit}`, `${DATA.level} interval`, "noise", "\u00b1", "SQNR (dB)", "agreement (%)", "images", "verdict", "method"];
    const rows = DATA.bits.map((bits) => {
      const cell = cellAt(layer.layer, bits);
      const texts = cell ? [cell.texts.degradation, cell.texts.interval, cell.texts.noise, cell.texts.stderr, cell.texts.sqnr,
        cell.texts.agreement, String(cell.samples), cell.texts.verdict, cell.texts.method] : ["not measured", "", "", "", "", "", "", "", ""];
      const kind = [cell && cell.guilty ? "guilty" : "", cell && cell.improves ? "improves" : "", bits === state.bits ? "selected" : ""].join(" ");
      return html("tr", { class: kind }, html("th", { scope: "row" }, String(bits)),
        ...texts.map((text, i) => html("td", { class: i === 0 ? "lost" : undefined }, text)));
    });
    return html("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Measurements of this layer by bit-width" },
      html("table", {}, html("thead", {}, html("tr", {}, ...headings.map((text) => html("th", { scope: "col" }, text)))), html("tbody", {}, ...rows)));
  }

  function drawPanel() {
    const layer = layers[column.get(state.layer)];
    const facts = [`layer ${layer.layer}`, layer.activation ? `${layer.op} + ${layer.activation}` : layer.op, layer.source,
      layer.weight && `weight ${layer.weight}`, layer.output && `output ${layer.output}`,
      layer.macs > 0 && `${layer.macs_text} MACs`, layer.weight && `${layer.parameters} parameters`].filter(Boolean);
    byId("panel").replaceChildren(
      html("p", { class: "name", id: "chosen" }, layer.name),
      html("ul", { class: "facts" }, ...facts.map((fact) => html("li", {}, fact))),
      html("div", { class: "cards", id: "cards" }), measurements(layer));
    drawCards([
      layer.histogram && ["Weights, count on a logarithmic scale", layer.histogram.text, (w) => weightChart(layer.histogram, w)],
      layer.channels && ["Weight range by output channel", layer.channels.text, (w) => channelChart(layer.channels, w)],
      !layer.weight && ["Weights", "This layer has none, so its numbers are the same at every bit-width of the weights."],
      layer.ranges.length > 0 && ["Activation ranges", "", (w) => rangeChart(layer.ranges, w)],
    ].filter(Boolean));
  }

  // ---- the table -------------------------------------------------------------------------------------

  const COLUMNS = [
    { key: "layer", text: "layer no.", value: (l) => l.layer, show: (l) => String(l.layer) },
    { key: "name", text: "name", words: true, value: (l) => l.name, show: (l) => html("a", { href: `#layer=${l.layer}`, title: l.name }, elide(l.name, 44)) },
    { key: "op", text: "op", words: true, value: (l) => l.op, show: (l) => l.op },
    { key: "source", text: "source", words: true, value: (l) => l.source, show: (l) => elide(l.source, 40) },
    { key: "degradation", text: `degradation${DATA.unit}`, value: (l, c) => c && c.degradation, show: (l, c) => c && c.texts.degradation, kind: "lost" },
    { key: "interval", text: `${DATA.level} interval`, value: (l, c) => c && c.low, show: (l, c) => c && c.texts.interval },
    { key: "noise", text: "noise", value: (l, c) => c && c.noise, show: (l, c) => c && c.texts.noise },
    { key: "share", text: "share", value: (l, c) => c && c.share, show: (l, c) => c && c.texts.share },
    { key: "sqnr", text: "SQNR (dB)", value: (l, c) => c && c.sqnr, show: (l, c) => c && c.texts.sqnr },
    { key: "agreement", text: "agreement (%)", value: (l, c) => c && c.agreement, show: (l, c) => c && c.texts.agreement },
    { key: "macs", text: "MACs", value: (l) => l.macs, show: (l) => l.macs_text },
    { key: "verdict", text: "verdict", words: true, value: (l, c) => c && c.texts.verdict, show: (l, c) => c && c.texts.verdict },
    { key: "method", text: "method", words: true, value: (l, c) => c && c.texts.method, show: (l, c) => c && c.texts.method },
  ].filter((c) => c.key !== "source" || layers.some((l) => l.source));

  function compare(a, b) {
    // What is not known comes last whichever way the column is sorted.
    const absent = (v) => v === null || v === undefined || v === "";
    if (absent(a) || absent(b)) return absent(a) - absent(b);
    const order = typeof a === "number" ? a - b : a.localeCompare(b, "en", { numeric: true });
    return state.down ? -order : order;
  }

  function drawTable() {
    const table = byId("table"), wanted = byId("filter").value.trim().toLowerCase();
    const how = COLUMNS.find((c) => c.key === state.sort);
    const value = how ? how.value : (l, c) => (c ? c.rank : null);
    const shown = layers.map((layer) => [layer, cellAt(layer.layer, state.bits)])
      .filter(([l]) => [l.name, l.op, l.source].some((text) => text.toLowerCase().includes(wanted)))
      .sort((a, b) => compare(value(...a), value(...b)));
    table.tHead.replaceChildren(html("tr", {}, ...COLUMNS.map((c) => html("th", { scope: "col", class: c.words ? "words" : undefined,
      "aria-sort": c.key === state.sort ? (state.down ? "descending" : "ascending") : undefined },
      html("button", { type: "button", "data-sort": c.key }, c.text)))));
    table.tBodies[0].replaceChildren(...shown.map(([l, c]) => html("tr", { "data-layer": l.layer,
      class: [c && c.guilty ? "guilty" : "", c && c.improves ? "improves" : "", l.layer === state.layer ? "selected" : ""].join(" ") },
      ...COLUMNS.map((col) => html("td", { class: [col.words ? "words" : "", col.kind || ""].join(" ") }, col.show(l, c) || "\u2014")))));
    byId("matches").textContent = wanted ? `${shown.length} of ${layers.length}` : "";
  }

  // ---- state, events ---------------------------------------------------------------------------------

  function drawControls() {
    for (const select of document.querySelectorAll("select.bits")) select.value = String(state.bits);
    byId("layers").value = String(state.layer);
    for (const radio of document.querySelectorAll("input[name=view]")) radio.checked = radio.value === state.view;
    const layer = layers[column.get(state.layer)];
    byId("readout").textContent = [`${layer.name}, ${state.bits} bits`, ...described(cellAt(state.layer, state.bits))].join("; ");
  }

  function draw() {
    const chart = byId("chart"), left = chart.scrollLeft;
    drawControls(); drawChart(); drawLegend(); drawPanel(); drawTable();
    chart.scrollLeft = left;
  }

  function choose(change) {
    Object.assign(state, change);
    history.replaceState(null, "", `#layer=${state.layer}&bits=${state.bits}&view=${state.view}`);
    draw();
  }

  function readHash() {
    const wanted = new URLSearchParams(location.hash.slice(1));
    const layer = Number(wanted.get("layer") ?? NaN), bits = Number(wanted.get("bits") ?? NaN), view = wanted.get("view");
    if (column.has(layer)) state.layer = layer;
    if (DATA.bits.includes(bits)) state.bits = bits;
    if (view === "noise" || view === "degradation") state.view = view;
  }

  function keepInSight() {
    const chart = byId("chart"), g = geometry(), x = column.get(state.layer) * g.width;
    const room = chart.clientWidth - GUTTER - 16;
    if (x < chart.scrollLeft) chart.scrollLeft = x;
    if (x + g.width > chart.scrollLeft + room) chart.scrollLeft = x + g.width - room;
  }

  function listen() {
    const chart = byId("chart"), tip = byId("tip");
    const under = (event) => event.target.closest("[data-layer]");
    chart.addEventListener("click", (event) => {
      const hit = under(event);
      if (hit) choose({ layer: Number(hit.dataset.layer), bits: Number(hit.dataset.bits || state.bits) });
    });
    chart.addEventListener("pointermove", (event) => {
      const hit = under(event);
      tip.hidden = !hit;
      if (!hit) return;
      const layer = layers[column.get(Number(hit.dataset.layer))], bits = Number(hit.dataset.bits || state.bits);
      tip.replaceChildren(html("b", {}, layer.name), ...[[layer.op, layer.source].filter(Boolean).join(", "), `${bits} bits`,
        ...described(cellAt(layer.layer, bits))].flatMap((line) => [line, html("br")]));
      const box = tip.getBoundingClientRect();
      tip.style.left = `${Math.max(4, Math.min(event.clientX + 14, innerWidth - box.width - 8))}px`;
      tip.style.top = `${event.clientY + 18 + box.height > innerHeight ? event.clientY - box.height - 12 : event.clientY + 18}px`;
    });
    chart.addEventListener("pointerleave", () => { tip.hidden = true; });
    chart.addEventListener("keydown", (event) => {
      const [right, down] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key] || [0, 0];
      if (!right && !down) return;
      event.preventDefault();
      const layer = layers[column.get(state.layer) + right], bits = DATA.bits[DATA.bits.indexOf(state.bits) + down];
      choose({ layer: layer ? layer.layer : state.layer, bits: bits ?? state.bits });
      keepInSight();
    });
    for (const select of document.querySelectorAll("select.bits"))
      select.addEventListener("change", () => choose({ bits: Number(select.value) }));
    byId("layers").addEventListener("change", (event) => choose({ layer: Number(event.target.value) }));
    for (const radio of document.querySelectorAll("input[name=view]"))
      radio.addEventListener("change", () => choose({ view: radio.value }));
    byId("numbers").addEventListener("change", () => { drawChart(); keepInSight(); });
    byId("filter").addEventListener("input", drawTable);
    byId("table").addEventListener("click", (event) => {
      const sort = event.target.closest("[data-sort]"), row = event.target.closest("tr[data-layer]");
      if (sort) {
        const key = sort.dataset.sort, words = COLUMNS.find((c) => c.key === key).words || key === "layer";
        Object.assign(state, { sort: key, down: state.sort === key ? !state.down : !words });
        drawTable();
        byId("table").querySelector(`[data-sort="${key}"]`).focus();
      } else if (row && !event.target.closest("a")) choose({ layer: Number(row.dataset.layer) });
    });
    addEventListener("hashchange", () => { readHash(); draw(); keepInSight(); });
    let known = innerWidth;
    addEventListener("resize", () => { if (innerWidth !== known) { known = innerWidth; draw(); drawScatters(); } });
  }

  for (const select of document.querySelectorAll("select.bits"))
    select.append(...DATA.bits.map((bits) => html("option", { value: bits }, `${bits} bits`)));
  byId("layers").append(...layers.map((layer) => html("option", { value: layer.layer }, `${layer.layer}  ${elide(layer.name, 48)}`)));
  readHash();
  draw();
  drawScatters();
  keepInSight();
  listen();
  document.body.dataset.ready = "true";
})();
