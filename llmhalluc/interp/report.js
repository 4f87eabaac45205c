"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const find = (id) => document.getElementById(id);
let at = -1;

function trace() { return data.traces[find("trace").value]; }

function element(parent, name, attributes, text) {
  const made = document.createElementNS(name === "svg" || parent.namespaceURI.endsWith("svg")
    ? "http://www.w3.org/2000/svg" : "http://www.w3.org/1999/xhtml", name);
  for (const [key, value] of Object.entries(attributes || {})) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  parent.append(made);
  return made;
}

// Lines over layers, or bars, with a zero line; series: [[label, color, values]].
function plot(panel, heading, series, bars) {
  const box = element(panel, "div");
  element(box, "h3", {}, heading);
  const svg = element(box, "svg", { viewBox: "0 0 420 190" });
  const all = series.flatMap(([, , values]) => values);
  const low = Math.min(0, ...all), high = Math.max(0, ...all), span = high - low || 1;
  const count = Math.max(...series.map(([, , values]) => values.length));
  const x = (i) => 40 + (370 * (i + 0.5)) / count, y = (value) => 165 - (150 * (value - low)) / span;
  element(svg, "line", { x1: 40, x2: 410, y1: y(0), y2: y(0), stroke: "currentColor", opacity: 0.4 });
  element(svg, "text", { x: 2, y: y(high) + 10 }, high.toPrecision(3));
  element(svg, "text", { x: 2, y: y(low) }, low.toPrecision(3));
  series.forEach(([label, color, values], number) => {
    const width = (370 / count) * 0.8 / series.length;
    if (bars) values.forEach((value, i) => {
      const left = x(i) - (370 / count) * 0.4 + number * width;
      element(svg, "rect", { x: left, width, y: Math.min(y(0), y(value)), height: Math.abs(y(0) - y(value)), fill: color });
    });
    else element(svg, "polyline", { points: values.map((v, i) => `${x(i)},${y(v)}`).join(" "), fill: "none", stroke: color, "stroke-width": 2 });
    element(svg, "text", { x: 60 + 150 * number, y: 185, style: `fill:${color}` }, label);
  });
}

function show(i) {
  at = i;
  const token = trace().tokens[i], panel = find("panel");
  [...find("text").children].forEach((span, j) => span.classList.toggle("at", j === i));
  panel.replaceChildren();
  plot(panel, `Lens by layer: log-probability of ${JSON.stringify(trace().target)}`, [["lens", "#D55E00", token.lens]]);
  plot(panel, "Probe by layer: is something taken back next?", [["probability", "#0072B2", token.probe]]);
  if (token.effects) {
    const part = (kind) => token.effects.filter((_, k) => data.components[k].startsWith(kind));
    plot(panel, "Ablation by layer: what a sublayer adds, nats", [["attention", "#0072B2", part("attn")], ["MLP", "#D55E00", part("mlp")]], true);
  } else element(element(panel, "div"), "p", { class: "soft" }, "Ablations are measured near events alone.");
  const list = element(panel, "div");
  element(list, "h3", {}, "Attention: where this row looks, mean of all layers and heads");
  const texts = [...trace().prompt, ...trace().tokens.map((one) => one.text)];
  for (const [row, share] of token.looks) element(list, "p", {}, `${(100 * share).toFixed(1)}%  ${JSON.stringify(texts[row])} (row ${row})`);
  element(list, "p", { class: "soft" }, `Probability of all trigger ids here: ${(100 * token.mass).toFixed(2)}%`);
}

function draw() {
  const text = find("text"), kind = find("filter").value;
  text.replaceChildren();
  find("target").textContent = JSON.stringify(trace().target);
  trace().tokens.forEach((token, i) => {
    const marked = token.event && (!kind || token.event === kind);
    const span = element(text, "span", { class: `${marked ? "event" : ""} ${token.kind}`, tabindex: 0 }, token.kind === "back" ? "⌫" : token.text);
    span.addEventListener("click", () => show(i));
    span.addEventListener("keydown", (event) => { if (event.key === "Enter") show(i); });
  });
  at = -1;
  jump(1);
}

function jump(step) {
  const kind = find("filter").value, tokens = trace().tokens;
  const events = tokens.map((token, i) => [token.event, i]).filter(([event]) => event && (!kind || event === kind)).map(([, i]) => i);
  const later = step > 0 ? events.find((i) => i > at) ?? events[0] : [...events].reverse().find((i) => i < at) ?? events.at(-1);
  if (later !== undefined) show(later); else if (tokens.length) show(0);
}

data.traces.forEach((one, i) => element(find("trace"), "option", { value: i }, one.heading));
find("trace").addEventListener("change", draw);
find("filter").addEventListener("change", draw);
find("next").addEventListener("click", () => jump(1));
find("previous").addEventListener("click", () => jump(-1));
draw();
