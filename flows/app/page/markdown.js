/** The Markdown of a model's card as elements: headings, paragraphs, lists, tables, code, bold, and nothing else. */

import { element } from "./dom.js";

/** Return a card's elements; its first heading becomes an h3.  Nothing in it is HTML, and links are text. */
export function rendered(markdown) {
  const lines = markdown.split("\n");
  const made = [];
  while (lines.length) {
    const line = lines.shift();
    const heading = /^(#{1,4}) (.*)$/.exec(line);
    if (line.startsWith("```")) {
      const code = taken(lines, next => !next.startsWith("```"));
      lines.shift();
      made.push(element("pre", { tabIndex: 0, textContent: code.join("\n") }));
    } else if (heading) {
      made.push(element(`h${Math.min(6, heading[1].length + 2)}`, {}, ...spans(heading[2])));
    } else if (line.startsWith("|")) {
      made.push(table([line, ...taken(lines, next => next.startsWith("|"))]));
    } else if (/^[-*] /.test(line)) {
      const items = [line, ...taken(lines, next => /^([-*] | {2})/.test(next))].join("\n").split(/\n(?=[-*] )/);
      made.push(element("ul", {}, ...items.map(item => element("li", {}, ...spans(item.slice(2))))));
    } else if (line.trim()) {
      const text = [line, ...taken(lines, next => next.trim() && !/^(#|\||```|[-*] )/.test(next))].join(" ");
      made.push(element("p", {}, ...spans(text)));
    }
  }
  return made;
}

/** Take lines from the beginning of a list while they fit. */
function taken(lines, fits) {
  const found = [];
  while (lines.length && fits(lines[0])) found.push(lines.shift());
  return found;
}

function table(lines) {
  const rows = lines.filter(line => !/^[|\s:-]+$/.test(line)).map(line => line.slice(1).replace(/\|\s*$/, "").split(/(?<!\\)\|/).map(cell => cell.trim()));
  const row = ([first, ...others]) =>
    element("tr", {}, element("th", { scope: "row" }, ...spans(first)), ...others.map(cell => element("td", {}, ...spans(cell))));
  return element("table", {}, element("tbody", {}, ...rows.map(row)));
}

function spans(text) {
  return text.split(/(`[^`]+`|\*\*[^*]+\*\*|\[[^\]]*\]\([^)]*\))/).filter(Boolean).map(part => {
    if (part.startsWith("`")) return element("code", { textContent: part.slice(1, -1) });
    if (part.startsWith("**")) return element("strong", { textContent: unescaped(part.slice(2, -2)) });
    const link = /^\[([^\]]*)\]\(([^)]*)\)$/.exec(part);
    return unescaped(link ? `${link[1]} (${link[2]})` : part);
  });
}

/** Return text without the backslashes before punctuation. */
const unescaped = text => text.replace(/\\([!-/:-@[-`{-~])/g, "$1");
