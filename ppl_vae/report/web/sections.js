// The page: its sections, one run beside another in each.

const made = { charts: [], spaces: [] };

function addChart(given) {
  const place = make("div", { class: "chart" });
  made.charts.push([place, given]);
  const gaps = given.series.reduce((n, s) => n + s.values.filter((v) => v === null).length, 0);
  const notes = [gaps ? `${gaps} values are missing or not finite: the curve has gaps there.` : "", given.caveat ?? ""].join(" ").trim();
  return make("figure", {}, place, notes ? make("figcaption", {}, notes) : null);
}

const CHARTS = [ // title, and the figures of a record
  ["Bounds, nats per datum", ["elbo", "validation_elbo", "bound", "validation_bound"]],
  ["KL(q(z|x) || p(z)), nats per datum", ["kl", "validation_kl"]],
  ["Reconstruction error, mean L2 norm", ["reconstruction_error"]],
  ["Classification error", ["classification_error", "validation_classification_error"]],
];
const column = (history, name) => history.map((record) => (typeof record[name] === "number" ? record[name] : null));
const alike = (a, b) => a.every((v, i) => (v === null) === (b[i] === null) && (v === null || Math.abs(v - b[i]) <= 1e-4 * Math.abs(v)));

function curvesOf({ history, caveat }) {
  const found = [];
  for (const [title, names] of CHARTS) {
    const series = [];
    for (const name of names) {
      const numbers = column(history, name);
      const words = name.replace("validation_", "validation ").replaceAll("_", " ").replace("elbo", "ELBO").replace("kl", "KL");
      const twice = name.endsWith("bound") && alike(column(history, name.replace("bound", "elbo")), numbers); // the bound is the ELBO
      const known = numbers.some((v) => v !== null) && !twice;
      if (known) series.push({ name: /validation|error/.test(name) ? words : `${words}, training`, values: numbers });
    }
    if (series.length) found.push({ title, x: "epoch", at: column(history, "epoch"), series, caveat });
  }
  if (history.length < 2 || !found.length) return [absent(`There are no curves: ${history.length} epochs are recorded.`)];
  return found.map(addChart);
}

/** The ELBO of several runs on the same data in one chart. */
function together(subjects) {
  const trained = subjects.filter((s) => s.history.length > 1);
  if (trained.length < 2 || new Set(trained.map((s) => s.about.fingerprint)).size > 1) return null;
  const name = ["validation_elbo", "elbo"].find((n) => trained.every((s) => s.history.some((r) => typeof r[n] === "number")));
  if (!name) return null;
  const at = [...new Set(trained.flatMap((s) => column(s.history, "epoch")))].sort((a, b) => a - b);
  const series = trained.map((s) => {
    const known = new Map(s.history.map((r) => [r.epoch, r[name]]));
    return { name: s.name, values: at.map((epoch) => known.get(epoch) ?? null) };
  });
  const chart = addChart({ title: `ELBO on ${name === "elbo" ? "training" : "validation"} data, nats per datum`, x: "epoch", at, series });
  chart.querySelector("figcaption")?.remove(); // runs of unlike lengths are no fault
  return chart;
}

function latentSection(subject) {
  if (!subject.space) return (subject.notes ?? ["It needs the model and data, and one of them is not there."]).map(absent);
  const { points, of, decoder } = subject.space;
  const n = points.shape[0];
  const whole = n === of ? `all ${numeral(n)}` : `the first ${numeral(n)} of ${numeral(of)}`;
  const how = decoder.kind === "grid" ? "" : ` The picture is the mean of p(x|z), computed as you move by the decoder itself, its ${numeral(decoder.parameters)} numbers in float32.`;
  const place = make("div", { class: "latent" });
  const still = make("div", { class: "still" });
  made.spaces.push([place, subject.space, still]);
  return [make("p", {}, `Points are the centres of q(z|x) of ${whole} data (${subject.data_name}).${how} ${subject.notes.join(" ")}`), place, still];
}

const cutOf = ({ cut }, name, { low, high }) => (cut[name] ? ` ${shown(100 * cut[name], 2)}% of the values lie outside ${shown(low)} to ${shown(high)}, and are cut to it.` : "");

function reconstructionSection({ form, examples, data_name }) {
  if (!form) return [absent("They need the model and data, and one of them is not there.")];
  if (!examples.made) return [absent("A reconstruction is not finite: none is shown.")];
  const [x, again] = [rowsOf(examples.x, form), rowsOf(examples.made, form)];
  const text = `The first ${x.length} data of ${data_name}, each above its reconstruction: the mean of p(x|z) at the centre of q(z|x), no draw.${cutOf(examples, "made", form)}`;
  if (form.kind !== "image") return [rowsTable(x.flatMap((row, i) => [[`datum ${i + 1}`, row], ["reconstruction", again[i]]]), form, text)];
  const across = Math.min(8, x.length);
  const nothing = new Float32Array(x[0].length).fill(form.low);
  const order = [];
  for (let start = 0; start < x.length; start += across) for (const rows of [x, again]) for (let i = start; i < start + across; i++) order.push(rows[i] ?? nothing);
  return [make("figure", {}, mosaic(order, form, across, text), make("figcaption", {}, text))];
}

function sampleSection({ form, examples }) {
  if (!form) return [absent("They need the model and data, and one of them is not there.")];
  const given = examples.conditions ? ` The conditions come in turn: ${[...new Set(examples.conditions)].join(", ")}.` : "";
  const parts = [
    ["means", `Means of p(x|z) at draws of the prior p(z): smoother than data, and no draws.${given}${cutOf(examples, "means", form)}`],
    ["draws", `Draws from p(x|z) at the same z: data as the model has them.${given}${cutOf(examples, "draws", form)}`],
  ].map(([name, text]) => {
    if (!examples[name]) return absent(`${text} Some are not finite: they are not shown.`);
    const rows = rowsOf(examples[name], form);
    if (form.kind !== "image") return rowsTable(rows.map((row, i) => [String(i + 1), row]), form, text);
    return make("figure", {}, mosaic(rows, form, 8, text), make("figcaption", {}, text));
  });
  return [make("div", { class: form.kind === "image" ? "pair" : "" }, ...parts)];
}

function evaluationSection({ evaluation, name, about }) {
  if (!evaluation) return [absent(about.state ? `This run is not evaluated: ppl-vae evaluate ${name} does it.` : "There is no evaluation.")];
  const rows = Object.entries(evaluation.figures).map(([n, given]) => [labelOfFigure(n), figure(given), unitOfFigure(n)]);
  const kl = evaluation.kl_per_dimension ?? [];
  rows.push(...kl.slice(0, 16).map((v, i) => [`KL of latent ${i + 1}`, shown(v), "nats"]));
  if (kl.length > 16) rows.push([`KL of the ${kl.length - 16} others, largest`, shown(Math.max(...kl.slice(16))), "nats"]);
  const title = `${numeral(evaluation.num_data)} data, log p(x) by ${evaluation.method} (${kindOf(evaluation)}); 95% intervals over data`;
  const notes = evaluation.notes?.length ? make("ul", {}, ...evaluation.notes.map((note) => make("li", {}, note))) : null;
  return [table(["", "value [95% interval]", "unit"], rows, title), notes];
}

const OF_THE_GAP = { gaps: "the gap in its parts", true_posteriors: "true posteriors beside q", evidence: "log p(x) of each datum" };

function gapSection({ gap, pictures, evaluation, name }) {
  if (!gap) return [absent("There are no figures of each datum: they come with an evaluation.")];
  const side = evaluation?.kind === "exact" ? "" : " Here log p(x) is itself estimated from below, and so is the gap.";
  const text = `The gap of a datum is log p(x) − ELBO = KL(q(z|x) || p(z|x)), what the bound loses by its q.${side}`;
  return [make("p", {}, text), histogram(gap, "log p(x) − ELBO, nats"), ...Object.entries(pictures).map(([n, png]) => stored(png, `${OF_THE_GAP[n]}, ${name}`))];
}

function raceParts(content) {
  const found = new Map();
  for (const run of (content.runs ?? []).filter((run) => run.stopped !== "failed")) {
    const name = `${run.name} at K = ${run.num_particles}`;
    if (!found.has(name)) found.set(name, []);
    found.get(name).push(new Map(run.points.map((p) => [p.step, p.log_evidence])));
  }
  const at = [...new Set([...found.values()].flat().flatMap((points) => [...points.keys()]))].sort((a, b) => a - b);
  const mean = (seeds, step) => (seeds.every((p) => typeof p.get(step) === "number") ? seeds.reduce((sum, p) => sum + p.get(step), 0) / seeds.length : null);
  const series = [...found].map(([name, seeds]) => ({ name, values: at.map((step) => mean(seeds, step)) }));
  const parts = at.length > 1 ? [addChart({ title: "log p(x), nats per datum, mean over seeds", x: "step", at, series, caveat: content.caveat })] : [];
  for (const [key, unit] of [["equal_steps", "steps"], ["equal_time", "seconds"]]) {
    const { standings = [], step, seconds } = content[key] ?? {};
    const rows = standings.map((s) => [s.name, String(s.num_particles), figure(s.value), s.best ? "best" : figure(s.behind), String(s.seeds.length)]);
    if (rows.length) parts.push(table(["estimator", "K", "log p(x), nats", "behind the best, nats", "seeds"], rows, `After ${shown(step ?? seconds)} ${unit}; 95% intervals over seeds`));
  }
  const s = content.settings;
  if (s) parts.unshift(make("p", {}, `${numeral(s.steps)} steps (${s.epochs} epochs in batches of ${s.batch_size}) on ${s.data}; log p(x) of ${numeral(s.evaluation_size)} ${s.split} data.`));
  const failed = (content.runs ?? []).filter((run) => run.reason).map((run) => absent(`Failed: ${run.name} at K = ${run.num_particles}, seed ${run.seed}: ${run.reason}.`));
  return [...parts, ...failed];
}

function estimatorTable({ rows = [], data_shape, replicates, evidence, model, data }) {
  const blocks = [...new Set(rows.flatMap((row) => Object.keys(row.blocks ?? {})))];
  const head = ["estimator", "K", "bound", "value, nats", "value − log p(x), nats", "ms a step", ...blocks.flatMap((b) => [`SNR, ${b}`, `bias, ${b}`])];
  const lines = rows.map((row) => [
    row.name, String(row.num_particles), row.kind ?? "–", shown(row.value, 5), figure(row.bias),
    row.seconds ? shown(1000 * row.seconds.value, 3) : "–",
    ...blocks.flatMap((b) => [figure(row.blocks?.[b]?.snr), figure(row.blocks?.[b]?.bias)]),
  ]);
  const known = typeof evidence?.value === "number" ? `; log p(x) = ${shown(evidence.value, 5)}` : "";
  return table(head, lines, `${model ?? "a model"}: the first ${data_shape?.[0] ?? "–"} of ${data ?? "its data"}, ${replicates} replicates; SNR and bias are those of gradients${known}`);
}

function comparisonSection({ comparisons, name, about }) {
  if (!comparisons.length) return [absent(about.state ? `There is no comparison of estimators: ppl-vae compare ${name} makes one.` : "There is no comparison of estimators.")];
  return comparisons.flatMap(({ kind, name: where, content, pictures }) => {
    const drawn = Object.entries(pictures).map(([n, png]) => stored(png, `${n.replaceAll("_", " ")}, ${where}`));
    return [
      make("h3", {}, `${kind === "race" ? "A race of estimators while training" : "Estimators at fixed parameters"}: ${where}`),
      caveat(content.caveat),
      make("ul", {}, ...(content.sentences ?? []).map((text) => make("li", {}, text))),
      ...(kind === "race" ? raceParts(content) : [estimatorTable(content)]),
      drawn.length ? make("details", {}, make("summary", {}, drawn.length === 1 ? "its picture" : `${drawn.length} pictures`), ...drawn) : null,
    ];
  });
}

function configurationSection({ config }) {
  if (!config) return [absent("There is no configuration.")];
  return [make("details", {}, make("summary", {}, "the whole configuration, YAML"), make("pre", { tabindex: 0 }, config))];
}

function versionSection({ about, versions }) {
  const data = Object.entries({ ...about.data, fingerprint: about.fingerprint });
  const rows = [...data, ...Object.entries(versions)].filter(([, v]) => v !== null && v !== undefined).map(([name, v]) => [name === "name" ? "data" : name.replaceAll("_", " "), Array.isArray(v) ? v.join(" × ") : String(v)]);
  return rows.length ? [table(null, rows, "As it was trained")] : [absent("It does not say.")];
}

function caveats(subjects) {
  const known = new Set(subjects.filter((s) => s.about.fingerprint).map((s) => s.about.fingerprint));
  const texts = [
    ...subjects.filter((s) => s.caveat).map((s) => `${s.name}: ${s.caveat}`),
    known.size > 1 ? "These runs had different data, or splits of them: their figures cannot be compared." : null,
    "Figures are in nats per datum. A bound on training data is that of data which the model was fitted to.",
    subjects.some((s) => s.evaluation) ? "Intervals over data cover the choice of test data, and not another training run." : null,
    subjects.some((s) => s.space) ? "Distances in the plane are those of the latent space, which no likelihood fixes: two runs may turn it." : null,
  ];
  return make("ul", {}, ...texts.filter(Boolean).map((text) => make("li", {}, text)));
}

const SECTIONS = {
  Summary: summary,
  "Latent space": latentSection,
  Curves: curvesOf,
  Reconstructions: reconstructionSection,
  Samples: sampleSection,
  Evaluation: evaluationSection,
  "Gap and true posteriors": gapSection,
  "Comparison and race": comparisonSection,
  Configuration: configurationSection,
  "Data and versions": versionSection,
};
const HINT = "Drag over a curve to zoom, double click for all of it; the pointer or the arrow keys read values.";

const { subjects } = values;
const addSection = (title, ...content) => {
  const id = title.toLowerCase().replaceAll(" ", "-");
  document.querySelector("nav").append(make("a", { href: `#${id}` }, title));
  document.querySelector("main").append(make("section", { id }, make("h2", {}, title), ...content));
};
const onlyCompared = subjects.every((s) => s.comparisons.length && !s.about.state); // folders of comparisons: the rest is empty
for (const [title, draw] of Object.entries(SECTIONS)) {
  if (onlyCompared && !["Summary", "Comparison and race"].includes(title)) continue;
  const columns = subjects.map((s) => make("div", { class: "column" }, subjects.length > 1 ? make("h3", { class: "run" }, s.name) : null, ...draw(s)));
  const above = title === "Curves" ? [make("p", { class: "help live-help" }, HINT), together(subjects)] : [];
  addSection(title, ...above, make("div", { class: `columns of-${Math.min(3, columns.length)}` }, ...columns));
}
addSection("Caveats", caveats(subjects));

const charts = made.charts.map(([place, given], i) => chart(place, given, i));
const spaces = made.spaces.map(([place, space, still]) => latentSpace(place, space, still));

/** For tests and for the curious: `pplvae.decode([0, 0])` in the console. */
window.pplvae = { spaces, charts, decode: (z, k, number = 0) => spaces[number].decode(z, k) };
