// What a run is and came to, in words.

const numeral = (value) => (typeof value === "number" ? value.toLocaleString("en-US") : String(value));
const capital = (text) => text[0].toUpperCase() + text.slice(1);
const labelOfFigure = (name) => (values.units[name] ?? [name.replaceAll("_", " ")])[0].replaceAll(" - ", " − ");
const unitOfFigure = (name) => (values.units[name] ?? ["", ""])[1];

/** A figure with its interval as the tables of ppl_vae write it; a dash where it is not finite. */
const figure = (given) => (typeof given === "number" ? shown(given) : (given?.text ?? shown(given?.value)));

const OF_TRAINING = {
  validation_elbo: "the ELBO on validation data",
  elbo: "the ELBO on training data",
  reconstruction_error: "the reconstruction error (mean L2 norm, validation)",
  classification_error: "the classification error",
};

const kindOf = (evaluation) => (evaluation.kind === "exact" ? "exact" : `a stochastic ${evaluation.kind} bound`);

function madeOf({ data, ...about }) {
  const said = [];
  if (data?.name) {
    const parts = ["train", "validation", "test"].filter((n) => data[n]).map((n) => `${numeral(data[n])} ${n === "train" ? "training" : n}`);
    const binarize = data.binarize && data.binarize !== "none" ? `, ${data.binarize}` : "";
    said.push(`A model of ${data.name} (${(data.x_shape ?? []).join(" × ")}${data.x_shape?.length === 1 ? " columns" : ""}${binarize}${parts.length ? `; ${parts.join(", ")} data` : ""}).`);
    if (!data.validation) said.push("There are no validation data: figures of training are those of data that it was fitted to.");
  }
  const pieces = ["prior", "likelihood", "posterior", "classifier", "objective", "regularizer", "scheduler"].filter((role) => about[role]).map((role) => `${role} ${about[role]}`);
  if (pieces.length) said.push(`${capital(pieces.join(", "))}.`);
  return said.join(" ");
}

function trainedHow(about) {
  if (!about.state) return "";
  const states = { finished: "finished", "early stopping": "stopped early", interrupted: "was interrupted", diverged: "diverged" };
  const how = states[about.state] ?? `is not known to have ended (${about.state})`;
  const planned = about.epochs_planned && about.epochs_planned !== about.epochs ? ` of ${about.epochs_planned}` : "";
  const took = about.seconds === null || about.seconds === undefined ? "" : `, ${numeral(Math.round(about.seconds))} seconds`;
  const best = about.best_epoch ? `; the parameters are those of epoch ${about.best_epoch}` : "";
  const known = Object.entries(OF_TRAINING).filter(([name]) => typeof about.figures?.[name] === "number");
  const figures = known.map(([name, words]) => `${words} is ${shown(about.figures[name], 5)}`).join("; ");
  const last = figures ? ` ${capital(figures)} (nats per datum where it is a bound).` : "";
  return `Training ${how} after ${about.epochs}${planned} epoch${about.epochs === 1 && !planned ? "" : "s"}${took}, on ${about.device} with seed ${about.seed}${best}.${last}`;
}

/** What log p(x) is of a conditional model, by the note of its evaluation. */
const evidenceOf = ({ notes }) => (notes ?? []).map((note) => /log p\(x\) is (log p\(x[|,] ?y\))/.exec(note)?.[1]).find(Boolean) ?? "log p(x)";
const labelIn = (evaluation, name) => labelOfFigure(name).replace("log p(x)", evidenceOf(evaluation));

function evaluatedHow(evaluation) {
  if (!evaluation) return "";
  const parts = ["log_evidence", "elbo", "gap"].filter((n) => evaluation.figures[n]).map((n) => `${labelIn(evaluation, n)} is ${figure(evaluation.figures[n])}`);
  const where = `${numeral(evaluation.num_data)} data${evaluation.data ? ` (${evaluation.data})` : ""}`;
  const weights = evaluation.checkpoint ? `, with the weights of ${evaluation.checkpoint}` : "";
  return `On ${where}${weights}, ${evidenceOf(evaluation)} by ${evaluation.method} (${kindOf(evaluation)}): ${parts.join("; ")} nats per datum, 95% intervals over data.`;
}

/** The main figures, large: those of an evaluation, else the last of training. */
function mainFigures(subject) {
  const own = subject.evaluation?.figures ?? {};
  let parts = ["log_evidence", "elbo", "gap"].filter((n) => own[n]).map((n) => [labelIn(subject.evaluation, n), ...figure(own[n]).split(" [")]);
  if (!parts.length) {
    const figures = subject.about.figures ?? {};
    parts = Object.entries(OF_TRAINING).filter(([n]) => typeof figures[n] === "number").slice(0, 2).map(([n, words]) => [words.replace("the ", "").replace(/ \(.*/, ""), shown(figures[n], 4)]);
  }
  if (!parts.length) return null;
  return make("dl", { class: "figures" }, ...parts.map(([name, value, rest]) =>
    make("div", {}, make("dt", {}, name), make("dd", {}, value, rest ? make("small", {}, `95%: ${rest.slice(0, -1).replace(", ", " to ")}`) : null))));
}

const absent = (text) => make("p", { class: "absent" }, text);
const caveat = (text) => (text ? make("p", { class: "caveat" }, make("strong", {}, "Caveat. "), text) : null);

function summary(subject) {
  const texts = [madeOf(subject.about), trainedHow(subject.about), evaluatedHow(subject.evaluation)].filter(Boolean);
  return [mainFigures(subject), ...texts.map((text) => make("p", {}, text)), caveat(subject.caveat), ...subject.absent.map(absent)];
}
