// The live latent space: move over the plane and see p(x|z).

function latentSpace(place, space, still) {
  const { dim, low, high, datum, data } = space;
  const points = unpack(space.points);
  const count = points.length / dim;
  const labels = space.labels ? unpack(space.labels.values) : null;
  const known = space.values ? unpack(space.values) : null;
  const size = known ? known.length / space.conditions.length : 0;
  const decoder = space.decoder.kind === "grid" ? interpolated(space.decoder) : perceptron(space.decoder);
  const shownX = unpackData(data.x, datum);
  const numX = shownX.length / data.number;
  const one = dim === 1;
  const wordOf = (label) => space.labels.words[label] ?? shown(label);
  const labelOf = (k) => (space.labels.classes ? space.labels.classes[labels[k]] : wordOf(labels[k]));

  const z = new Float32Array(dim);
  if (dim > 2) for (let u = 0; u < dim; u++) for (let k = 0; k < count; k++) z[u] += points[k * dim + u] / count;
  if (space.decoder.kind === "grid" && dim > 2) z.set(unpack(space.decoder.start));
  let pair = one ? [0] : space.decoder.axes ?? space.order.slice(0, 2).sort((a, b) => a - b);
  let which = 0; // the condition
  let chosen = null; // the datum
  let path = [];
  let drawing = false;
  let playing = null;
  let colours = []; // of the points, until they change
  const on = { data: true, prior: true, aggregate: false, posterior: Boolean(data.density) };

  const condition = (k) => (known ? known.subarray(k * size, (k + 1) * size) : null);
  const decode = (at, k = which) => decoder(Float32Array.from(at), condition(k), k);
  const checked = space.decoder.probes ? probe(space.decoder, decoder) : null;

  // ---- elements
  const back = make("canvas", { "aria-hidden": true });
  const front = make("canvas", { "aria-hidden": true });
  const plane = make("div", { class: one ? "plane line" : "plane", tabindex: 0, role: "application", "aria-roledescription": "latent plane" }, back, front);
  const axis = make("div", { class: "axis", "aria-hidden": true });
  const legend = make("div", { class: "legend" });
  const told = make("div", { class: "hidden", role: "status", "aria-live": "polite" });
  const picture = datum.kind === "image" ? imageCanvas(datum.shape) : make("div", { class: "columns-list", role: "img", tabindex: 0 });
  const where = make("figcaption");
  const original = datum.kind === "image" ? imageCanvas(datum.shape) : null;
  const originalFigure = make("figure", { class: "small" }, original, make("figcaption"));
  const close = make("canvas", { class: "smooth", width: 384, height: one ? 192 : 384, role: "img" });
  const closeFigure = make("figure", { class: "small" }, close, make("figcaption"));
  const about = make("p", { class: "told" });
  const decoded = make("div", { class: "decoded" }, make("figure", { class: datum.kind === "image" ? null : "wide" }, picture, where), originalFigure, closeFigure);

  const toggle = (name, words, there) =>
    there
      ? make("label", {}, make("input", { type: "checkbox", checked: on[name], onchange: (e) => ((on[name] = e.target.checked), drawBack(), drawFront()), "data-toggle": name }), words)
      : null;
  const toggles = make(
    "div",
    { class: "controls", role: "group", "aria-label": "what the plane shows" },
    toggle("data", "data", true),
    toggle("prior", "prior p(z)", Boolean(space.prior)),
    toggle("aggregate", space.spread ? "aggregate posterior q(z)" : "aggregate posterior q(z), draws", true),
    toggle("posterior", "true posterior p(z|x) and q(z|x)", Boolean(data.density)),
  );

  const button = (words, act, more = {}) => make("button", { type: "button", onclick: act, ...more }, words);
  const pen = button("Draw a path", () => setDrawing(!drawing), { "aria-pressed": "false", "data-act": "draw" });
  const play = button("Play", () => (playing ? stop() : start()), { disabled: true, "data-act": "play" });
  const clear = button("Clear", () => ((path = []), stop(), drawFront()), { "data-act": "clear" });
  const nameOf = (k) => `datum ${k + 1}${labels && k < count ? ` (label ${labelOf(k)})` : ""}`;
  const pick = make(
    "select",
    { onchange: (e) => choose(e.target.value === "" ? null : Number(e.target.value)), "data-act": "datum" },
    make("option", { value: "" }, "none"),
    ...Array.from({ length: data.number }, (_, k) => make("option", { value: k }, nameOf(k))),
  );
  const conditions = space.conditions
    ? make("select", { onchange: (e) => ((which = Number(e.target.value)), drawBack(), moved()), "data-act": "condition" }, ...space.conditions.map((name, k) => make("option", { value: k }, name)))
    : null;
  const controls = make(
    "div",
    { class: "controls" },
    conditions && make("label", {}, "condition", conditions),
    make("label", {}, "datum", pick),
    pen,
    play,
    clear,
  );
  const axes = dim > 2 && !space.decoder.axes
    ? make("div", { class: "controls" }, ...[0, 1].map((i) =>
        make("label", {}, i ? "up" : "across", make("select", { onchange: (e) => setAxis(i, Number(e.target.value)), "data-act": i ? "up" : "across" },
          ...space.order.map((u) => make("option", { value: u, selected: pair[i] === u }, `z${u + 1}`))))))
    : null;
  const sliders = dim > 2 && !space.decoder.axes ? space.order.map(slider) : [];
  const most = 16;
  const help = make("p", { class: "help live-help" },
    "Move the pointer, or focus the plane and press the arrow keys (with Shift: further). Enter adds a point to the path, P plays it, Home goes to the middle, ] and [ choose a datum. Each density is drawn to its own largest value." +
      (labels ? ` A label is the data set's own, which the model ${space.conditions ? "may read as its condition" : "never saw"}.` : ""),
    checked ? make("span", { "data-checked": String(checked.good) }, checked.good
      ? ` Held against PyTorch as this page opened: decoded means differ by at most ${checked.worst.toExponential(0)}.`
      : ` Held against PyTorch as this page opened, decoded means differ by ${checked.worst.toExponential(1)}: do not trust the picture.`) : null);
  place.append(
    make("div", {}, plane, axis, legend),
    make("div", {}, decoded, about, toggles, controls, axes, sliders.length ? make("div", { class: "sliders" }, ...sliders.slice(0, most).map((s) => s.row)) : null,
      sliders.length > most ? make("details", {}, make("summary", {}, `${sliders.length - most} more latents`), make("div", { class: "sliders" }, ...sliders.slice(most).map((s) => s.row))) : null,
      help, told),
  );
  for (const child of place.querySelectorAll("figure.small")) child.hidden = true;

  function slider(u) {
    const input = make("input", { type: "range", min: low, max: high, step: (high - low) / 400, value: z[u], "aria-label": `z${u + 1}`, oninput: (e) => ((z[u] = Number(e.target.value)), moved()) });
    const output = make("output");
    return { u, input, output, row: make("label", {}, `z${u + 1}`, input, output) };
  }

  function setAxis(i, u) {
    if (pair[1 - i] === u) pair[1 - i] = pair[i];
    pair[i] = u;
    axes.querySelectorAll("select").forEach((select, k) => (select.value = pair[k]));
    path = [];
    drawBack();
    moved();
  }

  // ---- places
  const ratio = () => Math.min(3, devicePixelRatio || 1);
  let box = { width: 1, height: 1 };
  const toX = (v) => ((v - low) / (high - low)) * box.width;
  const toY = (v) => box.height - ((v - low) / (high - low)) * box.height;
  const colourOf = (k) => {
    if (!labels) return colour("accent");
    return space.labels.classes ? colour(`c${space.labels.colours[labels[k]]}`) : ramp((labels[k] - space.labels.low) / (space.labels.high - space.labels.low || 1));
  };

  function sized(canvas) {
    const scale = ratio();
    canvas.width = Math.round(box.width * scale);
    canvas.height = Math.round(box.height * scale);
    const context = canvas.getContext("2d");
    context.setTransform(scale, 0, 0, scale, 0, 0);
    context.clearRect(0, 0, box.width, box.height);
    return context;
  }

  // ---- what stands still: densities and data
  const rows = () => (space.labels?.classes?.length ?? 1);
  function drawBack() {
    box = { width: plane.clientWidth || 1, height: plane.clientHeight || 1 };
    const context = sized(back);
    const layers = [
      [on.prior && priorDensity(space, pair, which), colour("quiet"), 0.45],
      [on.aggregate && aggregateDensity(space, points, pair), colour("accent"), 0.5],
    ];
    for (const [grid, tint, strongest] of layers) {
      if (!grid) continue;
      if (one) curve(context, grid, tint, strongest);
      else {
        context.imageSmoothingEnabled = true;
        context.drawImage(tinted(grid, CELLS, tint, strongest), 0, 0, box.width, box.height);
      }
    }
    if (on.data) {
      const radius = one ? 1.6 : count > 1000 ? 1.9 : 2.6;
      context.globalAlpha = one ? 0.5 : 0.8;
      for (let k = 0; k < count; k++) {
        context.fillStyle = colours[k] ?? (colours[k] = colourOf(k));
        const x = toX(points[k * dim + pair[0]]);
        if (one) {
          const row = space.labels?.classes ? labels[k] : 0;
          context.fillRect(x - 0.6, box.height - 8 * (rows() - row) - 2, 1.2, 7);
        } else {
          context.beginPath();
          context.arc(x, toY(points[k * dim + pair[1]]), radius, 0, 7);
          context.fill();
        }
      }
      context.globalAlpha = 1;
    }
    axis.replaceChildren(make("span", {}, shown(low, 3)), make("span", {}, one ? "z1" : `z${pair[0] + 1} across, z${pair[1] + 1} up`), make("span", {}, shown(high, 3)));
  }
  function curve(context, grid, tint, strongest, [from, to] = [low, high]) {
    const floor = box.height - 8 * rows() - 10;
    context.beginPath();
    context.moveTo(toX(from), floor);
    grid.forEach((v, i) => context.lineTo(toX(from + ((i + 0.5) * (to - from)) / grid.length), floor - v * (floor - 12)));
    context.lineTo(toX(to), floor);
    context.globalAlpha = strongest / 2;
    context.fillStyle = tint;
    context.fill();
    context.globalAlpha = 1;
    context.strokeStyle = tint;
    context.stroke();
  }

  // ---- what moves: z, the path, the datum with its posterior
  const dataOf = Object.fromEntries(["density", "low", "high", "mean", "covariance", "log_evidence", "error", "elbo", "y"].map((n) => [n, data[n] ? unpack(data[n]) : null]));
  const nodes = data.density ? data.density.shape[1] : 0;

  function posteriorOf(k) {
    const grid = Float32Array.from(dataOf.density.subarray(k * nodes ** dim, (k + 1) * nodes ** dim), (v) => (v / 255) ** 2);
    const part = (name, width) => [...dataOf[name].subarray(k * width, (k + 1) * width)];
    const [low, high] = [part("low", dim), part("high", dim)]; // of nodes, which are drawn as the middles of cells
    const half = (high[0] - low[0]) / (nodes - 1) / 2;
    return { grid, low: low.map((v) => v - half), high: high.map((v) => v + half), mean: dataOf.mean && part("mean", dim), covariance: dataOf.covariance && part("covariance", dim * dim) };
  }

  /** The ellipse of q at two standard deviations, in a plane with these scales. */
  function ellipse(context, { mean, covariance }, x, y) {
    if (!mean) return;
    const [a, b, , d] = covariance;
    const root = Math.sqrt(((a - d) / 2) ** 2 + b * b);
    const turn = 0.5 * Math.atan2(2 * b, a - d);
    const [r1, r2] = [(a + d) / 2 + root, (a + d) / 2 - root].map((v) => 2 * Math.sqrt(Math.max(v, 0)));
    context.beginPath();
    for (let i = 0; i <= 60; i++) {
      const [c, s] = [r1 * Math.cos(i * 0.1047197551), r2 * Math.sin(i * 0.1047197551)];
      context.lineTo(x(mean[0] + c * Math.cos(turn) - s * Math.sin(turn)), y(mean[1] + c * Math.sin(turn) + s * Math.cos(turn)));
    }
    context.stroke();
  }

  function drawFront() {
    const context = sized(front);
    context.strokeStyle = context.fillStyle = colour("text");
    if (chosen !== null && on.posterior && dataOf.density) {
      const found = posteriorOf(chosen);
      if (one) curve(context, found.grid, colour("c1"), 0.9, [found.low[0], found.high[0]]);
      else {
        const corner = [toX(found.low[0]), toY(found.high[1]), toX(found.high[0]) - toX(found.low[0]), toY(found.low[1]) - toY(found.high[1])];
        context.drawImage(tinted(found.grid, nodes, colour("c1"), 0.8), ...corner);
        context.lineWidth = 1.2;
        ellipse(context, found, toX, toY);
        context.globalAlpha = 0.5;
        context.strokeRect(...corner);
        context.globalAlpha = 1;
      }
    }
    if (chosen !== null && chosen < count) {
      context.strokeStyle = colour("text");
      context.lineWidth = 2;
      context.beginPath();
      context.arc(toX(points[chosen * dim + pair[0]]), one ? box.height - 8 * rows() - 4 : toY(points[chosen * dim + pair[1]]), 7, 0, 7);
      context.stroke();
    }
    if (path.length) {
      context.lineWidth = 2;
      context.setLineDash([5, 4]);
      context.beginPath();
      for (const p of path) context.lineTo(toX(p[0]), one ? box.height / 2 : toY(p[1]));
      context.stroke();
      context.setLineDash([]);
    }
    const [x, y] = [toX(z[pair[0]]), one ? box.height / 2 : toY(z[pair[1]])];
    context.lineWidth = 1.5;
    context.strokeStyle = colour("text");
    context.beginPath();
    context.moveTo(x, one ? 0 : y - 9);
    context.lineTo(x, one ? box.height : y + 9);
    if (!one) {
      context.moveTo(x - 9, y);
      context.lineTo(x + 9, y);
    }
    context.stroke();
    context.beginPath();
    context.fillStyle = colour("ground");
    context.arc(x, y, 3.5, 0, 7);
    context.fill();
    context.stroke();
    play.disabled = path.length < 2;
  }

  const originalOf = (k) => shownX.subarray(k * numX, (k + 1) * numX);
  function paint(x) {
    if (datum.kind === "image") paintImage(picture, x, datum);
    else bars(picture, x, chosen === null ? null : originalOf(chosen), datum);
  }

  function nearestOf(limit, latents = pair) {
    let best = null, least = Infinity;
    for (let k = 0; k < limit; k++) {
      let far = 0;
      for (const u of latents) far += (points[k * dim + u] - z[u]) ** 2;
      if (far < least) [best, least] = [k, far];
    }
    return { k: best, distance: Math.sqrt(least) };
  }

  let last = null;
  function words() {
    const said = dim <= 3 ? [...z.keys()] : pair;
    const at = said.map((u) => `z${u + 1} ${fixed(z[u])}`).join(", ");
    const near = labels && count ? ` Nearest of the data: label ${labelOf(nearestOf(count, [...z.keys()]).k)}.` : "";
    const given = space.conditions ? ` under condition ${space.conditions[which]}` : "";
    return `Mean of p(x|z) at ${at}${given}.${near}`;
  }

  let timer = 0;
  const refresh = eachFrame(() => {
    last = decode(z);
    paint(last);
    const text = words();
    picture.setAttribute("aria-label", text);
    where.textContent = text;
    plane.setAttribute("aria-label", `${one ? "line" : "plane"} of latents. ${text}`);
    for (const s of sliders) [s.input.value, s.output.textContent] = [z[s.u], fixed(z[s.u])];
    drawFront();
    clearTimeout(timer);
    timer = setTimeout(() => (told.textContent = text), 600);
  });
  const moved = () => refresh();

  function choose(k) {
    chosen = k;
    pick.value = k === null ? "" : k;
    if (k !== null && k < count) z.set(points.subarray(k * dim, (k + 1) * dim));
    if (k !== null && dataOf.y && space.conditions) {
      const own = dataOf.y.subarray(k * size, (k + 1) * size);
      const same = space.conditions.findIndex((_, c) => condition(c).every((v, i) => v === own[i]));
      if (same >= 0 && same !== which) {
        conditions.value = which = same;
        drawBack();
      }
    }
    originalFigure.hidden = k === null || !original;
    closeFigure.hidden = k === null || !dataOf.density;
    about.textContent = "";
    if (k !== null && original) {
      paintImage(original, originalOf(k), datum);
      original.setAttribute("aria-label", nameOf(k));
      originalFigure.lastChild.textContent = nameOf(k);
    }
    if (k !== null && dataOf.density) closeUp(k);
    moved();
  }

  function closeUp(k) {
    const found = posteriorOf(k);
    const context = close.getContext("2d");
    context.fillStyle = colour("raised");
    context.fillRect(0, 0, close.width, close.height);
    const share = (u) => (v) => (v - found.low[u]) / (found.high[u] - found.low[u]);
    const x = (v) => share(0)(v) * close.width;
    context.lineWidth = 3;
    if (one) {
      let top = 1; // the largest of both densities, in units of the true posterior's
      const line = (values, tint) => {
        context.strokeStyle = tint;
        context.beginPath();
        values.forEach((v, i) => context.lineTo(((i + 0.5) / nodes) * close.width, close.height * (1 - (0.92 * v) / top)));
        context.stroke();
      };
      if (found.mean) {
        const step = (found.high[0] - found.low[0]) / nodes;
        const mass = found.grid.reduce((a, b) => a + b, 0) * step; // of a density whose largest is 1
        const q = (v) => (Math.exp(-0.5 * (v - found.mean[0]) ** 2 / found.covariance[0]) / Math.sqrt(2 * Math.PI * found.covariance[0])) * mass;
        top = Math.max(1, q(found.mean[0]));
        line(Array.from({ length: nodes }, (_, i) => q(found.low[0] + (i + 0.5) * step)), colour("text"));
      }
      line([...found.grid], colour("c1"));
    } else {
      context.drawImage(tinted(found.grid, nodes, colour("c1"), 1), 0, 0, close.width, close.height);
      context.strokeStyle = colour("text");
      ellipse(context, found, x, (v) => (1 - share(1)(v)) * close.height);
    }
    const gap = dataOf.log_evidence[k] - dataOf.elbo[k];
    const doubt = dataOf.error[k] > 0.01 ? ` (log p(x) is known to ${shown(dataOf.error[k], 2)})` : "";
    const drawn = found.mean ? `; ${one ? "line" : "ellipse"}: q(z|x)${one ? "" : " at 2 standard deviations"}` : "";
    const text = `${nameOf(k)}: log p(x${space.conditions ? "|y" : ""}) ${shown(dataOf.log_evidence[k])}, ELBO ${shown(dataOf.elbo[k])}, gap ${shown(gap, 3)} nats${doubt}. Colour: the true posterior p(z|x)${drawn}.`;
    close.setAttribute("aria-label", text);
    closeFigure.lastChild.textContent = `close-up, ${shown(found.high[0] - found.low[0], 2)} across`;
    about.textContent = text[0].toUpperCase() + text.slice(1);
  }

  // ---- the path
  function setDrawing(now) {
    drawing = now;
    pen.setAttribute("aria-pressed", String(now));
    if (now) path = [];
    stop();
    drawFront();
  }

  function start() {
    if (path.length < 2) return;
    const lengths = [0];
    for (let i = 1; i < path.length; i++) lengths.push(lengths[i - 1] + Math.hypot(...path[i].map((v, u) => v - path[i - 1][u])));
    const whole = lengths[lengths.length - 1];
    const speed = (high - low) / 5; // a side of the plane in five seconds
    let began = null;
    const step = (now) => {
      began ??= now;
      const at = Math.min(whole, ((now - began) / 1000) * speed);
      const i = Math.max(1, lengths.findIndex((l) => l >= at));
      const part = (at - lengths[i - 1]) / (lengths[i] - lengths[i - 1] || 1);
      pair.forEach((u, axisNumber) => (z[u] = path[i - 1][axisNumber] + part * (path[i][axisNumber] - path[i - 1][axisNumber])));
      moved();
      if (at < whole) playing = requestAnimationFrame(step);
      else stop();
    };
    play.textContent = "Stop";
    playing = requestAnimationFrame(step);
  }

  function stop() {
    if (playing) cancelAnimationFrame(playing);
    playing = null;
    play.textContent = "Play";
  }

  // ---- pointer and keys
  function at(event) {
    const area = plane.getBoundingClientRect();
    const x = low + clamp((event.clientX - area.left - plane.clientLeft) / plane.clientWidth, 0, 1) * (high - low);
    const y = high - clamp((event.clientY - area.top - plane.clientTop) / plane.clientHeight, 0, 1) * (high - low);
    return one ? [x] : [x, y];
  }
  const setPair = (p) => pair.forEach((u, i) => (z[u] = p[i]));
  let down = false;
  plane.addEventListener("pointermove", (event) => {
    if (playing) return;
    const p = at(event);
    setPair(p);
    const before = path[path.length - 1];
    if (drawing && down && (!before || Math.hypot(...p.map((v, i) => v - before[i])) > (high - low) / 300)) path.push(p);
    moved();
  });
  plane.addEventListener("pointerdown", (event) => {
    plane.focus({ preventScroll: true });
    plane.setPointerCapture(event.pointerId);
    stop();
    down = true;
    setPair(at(event));
    if (drawing) path = [at(event)];
    else {
      const near = nearestOf(Math.min(data.number, count));
      if (near.k !== null && (near.distance / (high - low)) * box.width < (event.pointerType === "touch" ? 14 : 8)) return choose(near.k);
    }
    moved();
  });
  for (const name of ["pointerup", "pointercancel"]) {
    plane.addEventListener(name, () => {
      down = false;
      if (drawing && path.length > 1) {
        drawing = false;
        pen.setAttribute("aria-pressed", "false");
        drawFront();
      }
    });
  }
  plane.addEventListener("keydown", (event) => {
    const far = ((high - low) / 80) * (event.shiftKey ? 5 : 1);
    const step = (i, d) => () => i < pair.length && (z[pair[i]] = clamp(z[pair[i]] + d * far, low, high));
    const next = (d) => () => data.number && choose(((chosen ?? (d > 0 ? -1 : 0)) + d + data.number) % data.number);
    const keys = {
      ArrowRight: step(0, 1),
      ArrowLeft: step(0, -1),
      ArrowUp: step(1, 1),
      ArrowDown: step(1, -1),
      Home: () => pair.forEach((u) => (z[u] = (low + high) / 2)),
      Enter: () => path.push(pair.map((u) => z[u])),
      p: () => (playing ? stop() : start()),
      "]": next(1),
      "[": next(-1),
    };
    const act = keys[event.key] ?? keys[event.key.toLowerCase()];
    if (!act || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    act();
    moved();
  });

  function drawLegend() {
    colours = [];
    if (!labels) return;
    const dot = (tint) => make("svg", { viewBox: "0 0 10 10", "aria-hidden": true }, make("circle", { cx: 5, cy: 5, r: 5, fill: tint }));
    if (space.labels.classes) legend.replaceChildren(make("span", {}, "label of the data"), ...space.labels.classes.map((name, i) => make("span", {}, dot(colour(`c${space.labels.colours[i]}`)), name)));
    else legend.replaceChildren(make("span", {}, "label of the data"), make("span", {}, wordOf(space.labels.low), ...[0, 0.25, 0.5, 0.75, 1].map((s) => dot(ramp(s))), wordOf(space.labels.high)));
  }

  /** The plane decoded on a grid, for paper. */
  function drawStill() {
    if (datum.kind !== "image" || one) return;
    const across = 12;
    const line = Array.from({ length: across }, (_, i) => low + ((i + 0.5) * (high - low)) / across);
    const images = [...line].reverse().flatMap((up) => line.map((right) => {
      const at = Float32Array.from(z);
      [at[pair[0]], at[pair[1]]] = [right, up];
      return decode(at);
    }));
    const text = `Means of p(x|z) over the plane: z${pair[0] + 1} from ${shown(low, 3)} to ${shown(high, 3)} across, z${pair[1] + 1} the same up${dim > 2 ? ", the other latents as they were set" : ""}${space.conditions ? `, under condition ${space.conditions[which]}` : ""}.`;
    still.replaceChildren(make("figure", {}, mosaic(images, datum, across, text), make("figcaption", {}, text)));
  }
  addEventListener("beforeprint", drawStill);
  drawStill();

  const again = () => {
    drawLegend();
    drawBack();
    if (chosen !== null && dataOf.density) closeUp(chosen);
    moved();
  };
  new ResizeObserver(again).observe(plane);
  onNewColours(again);
  again();
  return {
    decode: (at, k) => [...decode(at, k)],
    densities: () => ({ prior: [...(priorDensity(space, pair, which) ?? [])], aggregate: [...aggregateDensity(space, points, pair)] }),
    milliseconds(times) {
      const took = [];
      for (let i = 0; i < times; i++) {
        const began = performance.now();
        decode(Float32Array.from(z, (v) => v + i * 1e-6));
        took.push(performance.now() - began);
      }
      return took.sort((a, b) => a - b)[times >> 1];
    },
    state: () => ({ z: [...z], which, chosen, pair: [...pair], path: path.length, playing: playing !== null, low, high, last: last && [...last], checked }),
  };
}
