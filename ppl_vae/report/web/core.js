// What all parts use: values from the page, elements, colours.

const values = JSON.parse(document.getElementById("values").textContent);

/** Numbers from base64; bytes are little-endian, and so are the machines that run browsers. */
function unpack(packed) {
  const text = atob(packed.base64);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return packed.kind === "uint8" ? bytes : new Float32Array(bytes.buffer);
}

const SVG = "http://www.w3.org/2000/svg";
const OF_SVG = new Set(["svg", "path", "line", "rect", "text", "circle", "g"]);

/** An element with attributes and children; texts are texts and never markup. */
function make(name, attributes = {}, ...children) {
  const element = OF_SVG.has(name) ? document.createElementNS(SVG, name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

/** A number as people read it, with a true minus. */
function shown(value, digits = 4) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  const text = size !== 0 && (size >= 1e6 || size < 1e-4) ? value.toExponential(digits - 1) : String(Number(value.toPrecision(digits)));
  return text.replace("-", "−");
}

/** A latent to two places, which do not dance as it moves. */
const fixed = (value) => (Math.abs(value) < 0.005 ? 0 : value).toFixed(2).replace("-", "−");

const clamp = (value, low, high) => Math.min(high, Math.max(low, value));

/** A colour of the style sheet as it is now: light, dark or on paper. */
function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

function channels(text) {
  const whole = text.length === 4 ? [...text.slice(1)].map((c) => c + c).join("") : text.slice(1);
  return [0, 2, 4].map((i) => parseInt(whole.slice(i, i + 2), 16));
}

// Cividis at five points: in order of lightness with any colour vision, and in grey.
const RAMP = ["#00224e", "#4b566d", "#7d7c78", "#bbac6a", "#fee838"].map(channels);

function ramp(share) {
  const at = clamp(share, 0, 1) * (RAMP.length - 1);
  const left = Math.min(RAMP.length - 2, Math.floor(at));
  const mixed = RAMP[left].map((c, i) => Math.round(c + (at - left) * (RAMP[left + 1][i] - c)));
  return `rgb(${mixed.join(",")})`;
}

/** Nice places for ticks between two values. */
function ticks(low, high, most) {
  const rough = (high - low) / most;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough) ?? 10 * power;
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9 * step; i++) found.push(i * step);
  return found;
}

/** A drawing function that runs at most once a frame. */
function eachFrame(draw) {
  let waiting = false;
  return () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      draw();
    });
  };
}

/** Draw again when colours change or the page is printed. */
function onNewColours(draw) {
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  addEventListener("beforeprint", draw);
  addEventListener("afterprint", draw);
}

addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details:not([open])")) {
    details.open = true;
    addEventListener("afterprint", () => (details.open = false), { once: true });
  }
});
