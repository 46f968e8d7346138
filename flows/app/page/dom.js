/** Elements, and figures in words. */

/** Return a new element with these properties and children; text is always shown as text. */
export function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children.filter(child => child !== null));
  return made;
}

/** Show a line in an element that is hidden without one. */
export function say(place, line) {
  place.textContent = line ?? "";
  place.hidden = !line;
}

/** Return a number with as many decimals as its standard error makes meaningful, such as "1.62 ± 0.11". */
export function figure(number, error = null) {
  if (number === null || number === undefined) return "not finite";
  if (!error) return written(number, 4);
  const decimals = Math.min(4, Math.max(0, 1 - Math.floor(Math.log10(error))));
  return `${written(number, decimals)}\u00a0± ${written(error, decimals)}`;
}

function written(number, decimals) {
  return number.toFixed(decimals).replace("-", "\u2212");
}

/** Return a number and its noun: "1 picture", "8 pictures". */
export function counted(number, noun, nouns = `${noun}s`) {
  return `${number.toLocaleString("en")} ${number === 1 ? noun : nouns}`;
}
