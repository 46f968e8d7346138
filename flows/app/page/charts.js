/** Charts as SVG and bars, in the colours of the page. */

import { element } from "./dom.js";

const NAMESPACE = "http://www.w3.org/2000/svg";

/**
 * Return a chart of the points (x[i], y[i]) and the line through them.
 *
 * `most`: the vertical axis goes from 0 to it, and not over the values.  `dots`: each point is marked.
 */
export function lineChart({ x, y, across, up, alt, most = null, dots = false, width = 480, height = 220 }) {
  const [left, right, top, bottom] = [48, 12, 10, 42];
  const points = x.map((value, index) => [value, y[index]]).filter(([, value]) => value !== null);
  const xs = axis(points.map(([value]) => value), 6);
  const ys = axis(most === null ? points.map(([, value]) => value) : [0, 1.05 * most], 4);
  const place = (value, { low, high }, from, to) => from + ((value - low) / (high - low)) * (to - from);
  const atX = value => place(value, xs, left, width - right);
  const atY = value => place(value, ys, height - bottom, top);
  const chart = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": alt, class: "chart" });
  for (const tick of ys.ticks) {
    chart.append(svg("line", { x1: left, x2: width - right, y1: atY(tick), y2: atY(tick), class: "grid" }));
    chart.append(svg("text", { x: left - 6, y: atY(tick) + 4, class: "end" }, short(tick)));
  }
  for (const tick of xs.ticks) {
    chart.append(svg("line", { x1: atX(tick), x2: atX(tick), y1: height - bottom, y2: height - bottom + 4, class: "tick" }));
    chart.append(svg("text", { x: atX(tick), y: height - bottom + 17, class: "middle" }, short(tick)));
  }
  chart.append(svg("line", { x1: left, x2: width - right, y1: height - bottom, y2: height - bottom, class: "tick" }));
  chart.append(svg("text", { x: (left + width - right) / 2, y: height - 6, class: "middle" }, across));
  chart.append(svg("text", { transform: `translate(12 ${(top + height - bottom) / 2}) rotate(-90)`, class: "middle" }, up));
  const path = points.map(([a, b], index) => `${index ? "L" : "M"}${atX(a).toFixed(1)} ${atY(b).toFixed(1)}`);
  chart.append(svg("path", { d: path.join(""), class: "curve" }));
  if (dots) for (const [a, b] of points) chart.append(svg("circle", { cx: atX(a), cy: atY(b), r: 2, class: "dot" }));
  return chart;
}

/** Return the ends of an axis that holds the values, and round numbers between them. */
function axis(values, parts) {
  let [low, high] = [Math.min(...values), Math.max(...values)];
  if (!(high > low)) [low, high] = [low - 0.5, low + 0.5];
  const rough = (high - low) / parts;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * ([1, 2, 5, 10].find(factor => factor * power >= rough) ?? 10);
  const ticks = [];
  for (let number = Math.ceil(low / step); number * step <= high + step / 1e6; number += 1) ticks.push(number * step);
  return { low, high, ticks };
}

const short = number => String(Number(number.toPrecision(3))).replace("-", "\u2212");

function svg(name, attributes, text = "") {
  const made = document.createElementNS(NAMESPACE, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.textContent = text;
  return made;
}

/** Return probabilities as a table with bars; `names[i]` belongs to `values[i]`, of which `ranges[i]` may be the ends. */
export function bars(names, values, best, ranges) {
  const rows = names.map((name, index) => {
    const bar = element("span", { className: index === best ? "bar best" : "bar" });
    bar.style.inlineSize = `${(100 * values[index]).toFixed(2)}%`;
    return element(
      "tr",
      { className: index === best ? "best" : "" },
      element("th", { scope: "row", textContent: name }),
      element("td", { className: "track" }, element("span", { className: "rail" }, bar)),
      element("td", { className: "number", textContent: ranges[index] ? range(ranges[index]) : percent(values[index]) }),
    );
  });
  const titles = [["class", 1], ["probability", 2]].map(([textContent, colSpan]) => element("th", { scope: "col", textContent, colSpan }));
  const head = element("thead", { className: "hidden" }, element("tr", {}, ...titles));
  return element("table", { className: "bars" }, head, element("tbody", {}, ...rows));
}

/** Return two shares as whole percents with what lies between them, such as "11–100%". */
const range = ([low, high]) => `${Math.max(0, Math.floor(100 * low))}\u2013${Math.min(100, Math.ceil(100 * high))}%`;

function percent(share) {
  if (share > 0 && share < 0.001) return "< 0.1%";
  if (share < 1 && share > 0.999) return "> 99.9%";
  return `${(100 * share).toFixed(1)}%`;
}
