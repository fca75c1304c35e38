"use strict";
// What every page shares: making elements, ticks, and the charts of its sections.
const shared = (() => {
  const DATA = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);

  // Text always goes in as text nodes: names are the user's.
  function build(make, tag, attributes, children) {
    const node = make(tag);
    for (const [name, value] of Object.entries(attributes || {}))
      if (value !== undefined && value !== false) node.setAttribute(name, value);
    node.append(...children.flat().filter((child) => child !== null && child !== undefined));
    return node;
  }
  const html = (tag, attributes, ...children) => build((t) => document.createElement(t), tag, attributes, children);
  const svg = (tag, attributes, ...children) =>
    build((t) => document.createElementNS("http://www.w3.org/2000/svg", t), tag, attributes, children);

  const elide = (name, width) => {
    if (name.length <= width) return name;
    const tail = Math.floor(width / 2);
    return name.slice(0, width - 1 - tail) + "\u2026" + name.slice(name.length - tail);
  };
  const tickText = (value) => {
    const size = Math.abs(value);
    const text = size !== 0 && (size >= 1e5 || size < 1e-3) ? value.toExponential(0).replace("+", "") : String(+value.toPrecision(3));
    return text.replace(/-/g, "\u2212");
  };

  function linearTicks(low, high, wanted, whole) {
    const raw = (high - low) / wanted, power = 10 ** Math.floor(Math.log10(raw));
    const least = whole ? 1 : 0, step = Math.max(least, [1, 2, 5, 10].map((s) => s * power).find((s) => s >= raw * 0.7));
    const ticks = [];
    for (let i = Math.ceil(low / step); i * step <= high + step * 1e-6; i++) ticks.push(i * step);
    return ticks;
  }

  function logTicks(low, high) {
    // Over less than two decades powers of ten alone would be too few.
    const step = Math.max(1, Math.ceil((high - low) / 6)), ticks = [];
    for (let power = Math.floor(low); power <= high; power += step)
      ticks.push(...(high - low < 2 ? [1, 2, 5] : [1]).map((digit) => digit * 10 ** power));
    const held = ticks.filter((tick) => Math.log10(tick) >= low && Math.log10(tick) <= high);
    // One tick alone does not say what is logarithmic about the axis.
    return held.length > 1 ? held : linearTicks(10 ** low, 10 ** high, 4).filter((tick) => Math.log10(tick) >= low && Math.log10(tick) <= high);
  }

  function axisOf({ log, ends, names, whole }, from, to) {
    const map = log ? Math.log10 : (value) => value, [low, high] = ends.map(map);
    const clipped = (value) => Math.min(Math.max(value, ends[0]), ends[1]);
    return { at: (value) => from + ((map(value) - low) / (high - low)) * (to - from), clipped,
      ticks: names.length ? [...names.keys()] : log ? logTicks(low, high) : linearTicks(low, high, 5, whole).filter((tick) => tick >= low && tick <= high),
      lines: (tick) => names.length ? names[tick].split("\n").map((line) => elide(line, Math.floor((to - from) / names.length / 6))) : [tickText(tick)] };
  }

  const mark = (x, y, hollow, colour) => hollow
    ? svg("path", { d: `M${x} ${y - 5}l5 5l-5 5l-5 -5z`, style: `fill:none;stroke:${colour};stroke-width:1.5` })
    : svg("circle", { cx: x, cy: y, r: 4, style: `fill:${colour}`, opacity: 0.85 });

  function drawScatter(card, chart) {
    const width = card.clientWidth, height = Math.min(440, Math.round(width * (chart.identity ? 0.9 : 0.62)));
    const right = width - 8, top = 10, floor = height - 42;
    const gutter = 6.2 * Math.max(...axisOf(chart.y, floor, top).ticks.map((tick) => tickText(tick).length), 1);
    const left = 30 + gutter, x = axisOf(chart.x, left, right), y = axisOf(chart.y, floor, top);
    const nodes = [], drawing = [];
    for (const tick of x.ticks)
      nodes.push(svg("line", { class: "line", x1: x.at(tick), x2: x.at(tick), y1: top, y2: floor }),
        ...x.lines(tick).map((line, i) => svg("text", { x: x.at(tick), y: floor + 16 + 13 * i, "text-anchor": "middle" }, line)));
    for (const tick of y.ticks)
      nodes.push(svg("line", { class: "line", x1: left, x2: right, y1: y.at(tick), y2: y.at(tick) }),
        svg("text", { x: left - 6, y: y.at(tick) + 4, "text-anchor": "end" }, tickText(tick)));
    nodes.push(svg("text", { x: (left + right) / 2, y: height - 5, "text-anchor": "middle" }, chart.x.label),
      svg("text", { transform: `translate(11 ${(top + floor) / 2}) rotate(-90)`, "text-anchor": "middle" }, chart.y.label));
    if (chart.identity) drawing.push(svg("line", { class: "zero", x1: left, y1: floor, x2: right, y2: top }));
    const stroke = (line) => ({ style: `fill:none;stroke:${line.colour};stroke-width:1.5`, "stroke-dasharray": line.dashed && "5 4" });
    for (const line of chart.lines)
      drawing.push(svg("polyline", { ...stroke(line), points: line.corners.map(([cx, cy]) => `${x.at(cx).toFixed(1)},${y.at(cy).toFixed(1)}`).join(" ") }));
    const points = [];
    for (const group of chart.groups)
      for (const p of group.points) {
        const cx = x.at(p.x), cy = y.at(p.y), point = mark(cx, cy, p.hollow, group.colour);
        if (p.low !== null && p.high !== null)
          drawing.push(svg("line", { x1: cx, x2: cx, y1: y.at(y.clipped(p.low)), y2: y.at(y.clipped(p.high)), style: `stroke:${group.colour}`, opacity: 0.5 }));
        point.setAttribute("class", "point");
        if (p.title) point.append(svg("title", {}, p.title));
        drawing.push(point);
        points.push({ cx, cy, title: p.title });
      }
    const ring = svg("circle", { class: "ring", r: 8, visibility: "hidden" });
    const picture = svg("svg", { height, viewBox: `0 0 ${width} ${height}`, tabindex: "0", role: "img",
      "aria-label": `${chart.title}: ${chart.y.label} against ${chart.x.label}. Arrow keys go through the points.` }, nodes,
      // An inner picture cuts off what lies beyond the axes.
      svg("svg", { x: left, y: top, width: right - left, height: floor - top, viewBox: `${left} ${top} ${right - left} ${floor - top}` }, drawing, ring));
    const readout = html("p", { class: "readout", "aria-live": "polite" });
    card.replaceChildren(picture, scatterLegend(chart, stroke), readout);
    walkPoints(picture, points.sort((a, b) => a.cx - b.cx), ring, readout);
  }

  function walkPoints(picture, points, ring, readout) {
    let at = -1;
    picture.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1 }[event.key];
      if (!step || !points.length) return;
      event.preventDefault();
      at = Math.min(Math.max(at + step, 0), points.length - 1);
      for (const name of ["cx", "cy"]) ring.setAttribute(name, points[at][name]);
      ring.setAttribute("visibility", "visible");
      readout.textContent = points[at].title;
    });
    picture.addEventListener("blur", () => { ring.setAttribute("visibility", "hidden"); readout.textContent = ""; });
  }

  function scatterLegend(chart, stroke) {
    const key = (node, text) => html("span", { class: "key" }, svg("svg", { width: 14, height: 14 }, node), text);
    const seen = chart.groups.some((group) => group.points.some((p) => p.hollow));
    return html("div", { class: "legend" },
      ...chart.groups.map((group) => key(mark(7, 7, group.points.every((p) => p.hollow), group.colour), group.label)),
      ...(chart.hollow && seen ? [key(mark(7, 7, true, chart.groups[0].colour), chart.hollow)] : []),
      ...chart.lines.filter((line) => line.label).map((line) => key(svg("line", { ...stroke(line), x1: 0, x2: 14, y1: 7, y2: 7 }), line.label)),
      ...(chart.identity ? [key(svg("line", { class: "zero", x1: 0, x2: 14, y1: 14, y2: 0 }), chart.identity)] : []));
  }

  function drawScatters() {
    for (const [name, chart] of Object.entries(DATA.charts)) drawScatter(byId(name), chart);
  }

  return { DATA, byId, html, svg, elide, tickText, linearTicks, drawScatters };
})();
