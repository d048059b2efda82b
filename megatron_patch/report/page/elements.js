/* The page's elements, made of text alone: nothing here reads HTML. */

const CONTENT = JSON.parse(document.getElementById("content").textContent);

/** A text in the page's language, with `values` in its places {0}, {1}. */
function t(text, ...values) {
  const said = Object.hasOwn(CONTENT.words, text) ? CONTENT.words[text] : text;
  return said.replace(/\{(\d)\}/g, (_, place) => values[place]);
}

/** An element. `props` are its properties, `on…` listeners and, behind `data-`, `aria-` or `role`, its attributes. */
function el(name, props = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(props)) {
    if (value === undefined) continue;
    if (/^(data-|aria-|role$|for$)/.test(key)) made.setAttribute(key, value);
    else if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else made[key] = value;
  }
  made.append(...children.flat(Infinity).filter(child => child != null && child !== false));
  return made;
}

/** A square in the colour of run number `place`. */
function swatch(place) {
  const made = el("span", { className: "swatch" });
  made.style.background = `var(--run-${place % COLORS})`;
  return made;
}

/** A variable of the style sheet, as the theme has it now. */
function css(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

const COLORS = 8;
/** The colour of run number `place`. */
function colorOf(place) {
  return css(`--run-${place % COLORS}`);
}

/** A hexadecimal colour, see-through to `share`. */
function faded(color, share) {
  return color + Math.round(share * 255).toString(16).padStart(2, "0");
}
