// Data as pictures or as rows of a table.

const imageCanvas = ([, height, width]) => make("canvas", { width, height, role: "img", "aria-label": "" });

/** Draw one image of a form's shape into a canvas, at a place. */
function paintImage(canvas, x, form, left = 0, top = 0) {
  const [depth, height, width] = form.shape;
  const context = canvas.getContext("2d");
  const image = context.createImageData(width, height);
  const scale = 255 / (form.high - form.low);
  for (let i = 0; i < width * height; i++) {
    for (let c = 0; c < 3; c++) image.data[4 * i + c] = Math.round((x[depth === 1 ? i : c * width * height + i] - form.low) * scale);
    image.data[4 * i + 3] = 255;
  }
  context.putImageData(image, left, top);
}

/** Images side by side, nothing between them but a gap. */
function mosaic(images, form, across, words) {
  const [, height, width] = form.shape;
  const gap = Math.max(1, Math.round(height / 14));
  const down = Math.ceil(images.length / across);
  const canvas = make("canvas", { class: "pixels", role: "img", "aria-label": words, width: across * (width + gap) - gap, height: down * (height + gap) - gap });
  images.forEach((x, i) => paintImage(canvas, x, form, (i % across) * (width + gap), Math.floor(i / across) * (height + gap)));
  return canvas;
}

/** Data as numbers; images come as the 256 levels of a screen. */
function unpackData(packed, form) {
  const all = unpack(packed);
  return packed.kind === "uint8" ? Float32Array.from(all, (v) => form.low + (v / 255) * (form.high - form.low)) : all;
}

/** Rows of packed data, each a Float32Array. */
function rowsOf(packed, form) {
  const all = unpackData(packed, form);
  const size = all.length / packed.shape[0];
  return Array.from({ length: packed.shape[0] }, (_, k) => all.subarray(k * size, (k + 1) * size));
}

/** A value of a column as text: the word of a category where it is one. */
function cellOf(value, words) {
  return words && Number.isInteger(value) && words[value] !== undefined ? words[value] : shown(value, 4);
}

/** A table whose first column names its rows; it scrolls where it is too wide. */
function table(head, rows, caption) {
  const line = (cells) => make("tr", {}, make("th", { scope: "row" }, cells[0]), ...cells.slice(1).map((cell) => make("td", {}, cell)));
  const top = head ? make("thead", {}, make("tr", {}, ...head.map((cell) => make("th", { scope: "col" }, cell)))) : null;
  const whole = make("table", {}, top, make("tbody", {}, ...rows.map(line)));
  return make("div", {}, make("p", { class: "caption" }, caption), make("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": caption }, whole));
}

/** Data of a table as rows, the first columns of those that vary most. */
function rowsTable(named, form, caption) {
  const kept = form.shown.slice(0, 12);
  const left = form.names.length - kept.length;
  const text = left ? `${caption} ${left} of ${form.names.length} columns are left out.` : caption;
  return table(["", ...kept.map((j) => form.names[j])], named.map(([name, x]) => [name, ...kept.map((j) => cellOf(x[j], form.words[j]))]), text);
}

/** A datum as bars in the range of the data, beside another where there is one. */
function bars(target, x, other, form) {
  const lines = form.shown.map((j) => {
    const [from, to] = [form.low[j], form.high[j]];
    const share = to > from ? clamp((x[j] - from) / (to - from), 0, 1) : 0;
    const own = other ? make("td", {}, cellOf(other[j], form.words[j])) : null;
    return make("tr", {}, make("th", { scope: "row" }, form.names[j]), make("td", {}, cellOf(x[j], form.words[j])), own, make("td", {}, make("svg", { viewBox: "0 0 100 1", preserveAspectRatio: "none", "aria-hidden": true }, make("rect", { width: 100 * share, height: 1 }))));
  });
  const head = make("tr", {}, make("th"), make("th", {}, "mean"), other ? make("th", {}, "datum") : null, make("th", {}, "in the range of the data"));
  const left = form.names.length - form.shown.length;
  const rest = left ? make("p", { class: "help" }, `${left} columns that vary less are left out.`) : "";
  target.replaceChildren(make("table", { class: "bars" }, make("thead", {}, head), make("tbody", {}, ...lines)), rest);
}

/** A picture that the run's folder holds. */
const stored = (base64, alt) => make("img", { class: "plot", src: `data:image/png;base64,${base64}`, alt });

/** How many data have a value in each of some ranges. */
function histogram(numbers, label, bins = 40) {
  const known = numbers.filter((v) => v !== null).sort((a, b) => a - b);
  const [low, high] = [known[0], known[known.length - 1]];
  if (!(high > low)) return null;
  const counts = new Array(bins).fill(0);
  for (const v of known) counts[Math.min(bins - 1, Math.floor(((v - low) / (high - low)) * bins))]++;
  const top = Math.max(...counts);
  const drawn = counts.map((c, i) => make("rect", { class: "bar", x: (i * 640) / bins, width: 640 / bins - 1, y: 160 - (160 * c) / top, height: (160 * c) / top }));
  const text = `${label}: ${known.length} data, from ${shown(low, 3)} to ${shown(high, 3)}, median ${shown(known[known.length >> 1], 3)}; at most ${top} in a bar.`;
  return make("figure", {},
    make("svg", { class: "histogram", viewBox: "0 0 640 160", preserveAspectRatio: "none", role: "img", "aria-label": text }, ...drawn),
    make("div", { class: "ends", "aria-hidden": true }, make("span", {}, shown(low, 3)), make("span", {}, label), make("span", {}, shown(high, 3))),
    make("figcaption", {}, text));
}
