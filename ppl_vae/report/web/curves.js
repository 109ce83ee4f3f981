// Curves: drag to zoom, double click for all of it, values under the pointer or by arrow keys.

const [LEFT, RIGHT, TOP, BOTTOM] = [56, 12, 10, 26];

function chart(place, given, number) {
  const at = given.at.map((x, i) => x ?? i);
  const whole = [Math.min(...at), Math.max(...at)];
  if (whole[0] === whole[1]) whole[1] += 1;
  const settled = whole[0] + (at.length < 30 ? 0 : 0.03 * (whole[1] - whole[0])); // the first of many steps would flatten the rest
  let view = null; // null: all of it
  let cursor = null;
  let [width, height] = [720, 260];

  const svg = make("svg", { tabindex: 0, role: "img" });
  const key = make("div", { class: "key" });
  const told = make("div", { class: "hidden", role: "status", "aria-live": "polite" });
  place.append(make("p", { class: "title" }, given.title), svg, key, told);

  function frame() {
    const [low, high] = view?.x ?? whole;
    let ends = view?.y;
    if (!ends) {
      const from = view ? low : settled;
      const seen = given.series.flatMap((s) => s.values.filter((v, i) => v !== null && at[i] >= from && at[i] <= high));
      const all = seen.length ? seen : given.series.flatMap((s) => s.values.filter((v) => v !== null));
      const [least, most] = [Math.min(...all), Math.max(...all)];
      const margin = 0.06 * (most - least) || 1;
      ends = [least - margin, most + margin];
    }
    const x = (v) => LEFT + ((v - low) / (high - low)) * (width - LEFT - RIGHT);
    const y = (v) => height - BOTTOM - ((v - ends[0]) / (ends[1] - ends[0])) * (height - TOP - BOTTOM);
    return { low, high, ends, x, y };
  }

  function path(values, { x, y }) {
    let text = "", pen = false;
    values.forEach((value, i) => {
      if (value === null) pen = false;
      else {
        text += `${pen ? "L" : "M"}${x(at[i]).toFixed(1)} ${clamp(y(value), -1e4, 1e4).toFixed(1)}`;
        if (!pen && (values[i + 1] ?? null) === null) text += "h0.1"; // a value between two gaps is a dot
        pen = true;
      }
    });
    return text;
  }

  const dash = (i) => (["", "6 4", "2 3", "8 3 2 3"])[Math.floor(i / 10 + (i % 4)) % 4];
  const id = `clip-${number}`;

  function draw() {
    const f = frame();
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    const parts = [];
    for (const v of ticks(f.ends[0], f.ends[1], 5)) {
      parts.push(make("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: f.y(v), y2: f.y(v) }));
      parts.push(make("text", { x: LEFT - 6, y: f.y(v) + 4, "text-anchor": "end" }, shown(v)));
    }
    for (const v of ticks(f.low, f.high, width / 90).filter((v) => f.x(v) > LEFT + 16)) parts.push(make("text", { x: f.x(v), y: height - 8, "text-anchor": "middle" }, shown(v)));
    parts.push(make("text", { x: LEFT - 6, y: height - 8, "text-anchor": "end" }, given.x));
    const clip = document.createElementNS(SVG, "clipPath");
    clip.setAttribute("id", id);
    clip.append(make("rect", { x: LEFT, y: TOP, width: width - LEFT - RIGHT, height: height - TOP - BOTTOM }));
    const inside = make("g", { "clip-path": `url(#${id})` });
    given.series.forEach((s, i) => {
      inside.append(make("path", { class: "curve", d: path(s.values, f), stroke: colour(`c${i % 10}`), "stroke-dasharray": dash(i), "stroke-linecap": "round" }));
    });
    if (cursor !== null) inside.append(make("line", { class: "cursor", x1: f.x(at[cursor]), x2: f.x(at[cursor]), y1: TOP, y2: height - BOTTOM }));
    svg.replaceChildren(clip, ...parts, inside);
    const reading = cursor ?? at.length - 1;
    key.replaceChildren(
      make("span", {}, `${given.x} ${shown(at[reading], 6)}`),
      ...given.series.map((s, i) => {
        const swatch = make("svg", { viewBox: "0 0 20 10", "aria-hidden": true }, make("line", { x1: 0, x2: 20, y1: 5, y2: 5, stroke: colour(`c${i % 10}`), "stroke-width": 2.5, "stroke-dasharray": dash(i) }));
        return make("span", {}, swatch, s.name, make("b", {}, shown(s.values[reading], 5)));
      }),
    );
    svg.setAttribute("aria-label", `${given.title}, ${given.x} ${shown(f.low)} to ${shown(f.high)}. Arrow keys read values, plus and minus zoom, Escape shows all.`);
  }

  function read(index, aloud) {
    cursor = index === null ? null : clamp(index, 0, at.length - 1);
    if (aloud) told.textContent = `${given.x} ${shown(at[cursor], 6)}: ${given.series.map((s) => `${s.name} ${shown(s.values[cursor], 5)}`).join(", ")}`;
    draw();
  }

  function where(event) {
    const box = svg.getBoundingClientRect();
    const f = frame();
    const share = ([from, to, low, high], v) => low + ((v - from) / (to - from)) * (high - low);
    const x = share([LEFT, width - RIGHT, f.low, f.high], ((event.clientX - box.left) / box.width) * width);
    const y = share([height - BOTTOM, TOP, ...f.ends], ((event.clientY - box.top) / box.height) * height);
    return { x: clamp(x, f.low, f.high), y: clamp(y, ...f.ends), f };
  }

  const nearest = (x) => at.reduce((best, v, i) => (Math.abs(v - x) < Math.abs(at[best] - x) ? i : best), 0);
  let from = null;
  svg.addEventListener("pointerdown", (event) => {
    from = where(event);
    svg.setPointerCapture(event.pointerId);
  });
  svg.addEventListener("pointermove", (event) => {
    const to = where(event);
    read(nearest(to.x));
    if (!from) return;
    const [x0, x1] = [to.f.x(from.x), to.f.x(to.x)];
    svg.append(make("rect", { class: "zone", x: Math.min(x0, x1), width: Math.abs(x1 - x0), y: TOP, height: height - TOP - BOTTOM }));
  });
  svg.addEventListener("pointerup", (event) => {
    const to = where(event);
    const box = svg.getBoundingClientRect();
    if (from && (Math.abs(to.x - from.x) / (to.f.high - to.f.low)) * box.width > 8) {
      const ends = [from.x, to.x].sort((a, b) => a - b);
      const tall = (Math.abs(to.y - from.y) / (to.f.ends[1] - to.f.ends[0])) * box.height > 40;
      view = { x: ends, y: tall ? [from.y, to.y].sort((a, b) => a - b) : null };
      draw();
    }
    from = null;
  });
  svg.addEventListener("pointercancel", () => (from = null));
  svg.addEventListener("pointerleave", () => !from && read(null));
  const reset = () => ((view = null), draw());
  svg.addEventListener("dblclick", reset);
  svg.addEventListener("keydown", (event) => {
    const here = cursor ?? at.length - 1;
    const wide = event.shiftKey ? 10 : 1;
    const f = frame();
    const zoom = (factor) => {
      const half = ((f.high - f.low) * factor) / 2;
      const x = [Math.max(whole[0], at[here] - half), Math.min(whole[1], at[here] + half)];
      view = x[0] === whole[0] && x[1] === whole[1] ? null : { x, y: null };
    };
    const keys = {
      ArrowLeft: () => read(here - wide, true),
      ArrowRight: () => read(here + wide, true),
      Home: () => read(0, true),
      End: () => read(at.length - 1, true),
      "+": () => zoom(0.5),
      "=": () => zoom(0.5),
      "-": () => zoom(2),
      Escape: reset,
    };
    if (!keys[event.key] || event.ctrlKey || event.metaKey) return;
    keys[event.key]();
    event.preventDefault();
    draw();
  });
  new ResizeObserver(() => {
    width = place.clientWidth || width;
    height = clamp(0.36 * width, 190, 280);
    draw();
  }).observe(place);
  draw();
  onNewColours(draw);
  return { frame: () => { const { low, high, ends } = frame(); return { x: [low, high], y: ends }; }, reading: () => cursor };
}
