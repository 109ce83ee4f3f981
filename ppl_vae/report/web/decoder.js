// p(x|z) in the browser: the decoder's layers in float32, or a grid of decoded means.

/** erf to 1.2e-7 everywhere (a Chebyshev fit of erfc). */
function erf(x) {
  const t = 1 / (1 + 0.5 * Math.abs(x));
  const terms = [-1.26551223, 1.00002368, 0.37409196, 0.09678418, -0.18628806, 0.27886807, -1.13520398, 1.48851587, -0.82215223, 0.17087277];
  const sum = terms.reduceRight((rest, term) => term + t * rest, 0);
  const tail = t * Math.exp(-x * x + sum);
  return x >= 0 ? 1 - tail : tail - 1;
}

const softplus = (a) => (a > 20 ? a : Math.log1p(Math.exp(a)));
const sigmoid = (a) => 1 / (1 + Math.exp(-a));

const ACTIVATIONS = {
  softplus,
  sigmoid,
  relu: (a) => Math.max(0, a),
  leaky_relu: (a) => (a > 0 ? a : 0.01 * a),
  elu: (a) => (a > 0 ? a : Math.expm1(a)),
  gelu: (a) => 0.5 * a * (1 + erf(a / Math.SQRT2)),
  silu: (a) => a * sigmoid(a),
  tanh: Math.tanh,
};

const LINKS = {
  identity: (a) => a,
  sigmoid,
  exp: Math.exp,
  softplus,
  continuous_bernoulli: (a) => (Math.abs(a) < 0.02 ? 0.5 + a / 12 - a ** 3 / 720 : 1 / -Math.expm1(-a) - 1 / a),
};

/** Each layer: a function from one Float32Array to another. Sums are in float64, results are rounded to float32. */
const LAYERS = {
  linear({ weight, bias }) {
    const [rows, columns] = weight.shape;
    const w = unpack(weight);
    const b = bias ? unpack(bias) : new Float32Array(rows);
    const out = new Float32Array(rows);
    return (input) => {
      for (let i = 0, k = 0; i < rows; i++) {
        let s0 = 0, s1 = 0, s2 = 0, s3 = 0, j = 0;
        for (; j + 3 < columns; j += 4, k += 4) {
          s0 += w[k] * input[j];
          s1 += w[k + 1] * input[j + 1];
          s2 += w[k + 2] * input[j + 2];
          s3 += w[k + 3] * input[j + 3];
        }
        for (; j < columns; j++, k++) s0 += w[k] * input[j];
        out[i] = s0 + s1 + (s2 + s3) + b[i];
      }
      return out;
    };
  },
  affine({ scale, shift }) {
    const [a, b] = [unpack(scale), unpack(shift)];
    return (input) => input.map((value, i) => a[i] * value + b[i]);
  },
  layer_norm({ eps, scale, shift }) {
    const a = scale ? unpack(scale) : null;
    const b = shift ? unpack(shift) : null;
    return (input) => {
      let mean = 0, square = 0;
      for (const value of input) mean += value / input.length;
      for (const value of input) square += (value - mean) ** 2 / input.length;
      const factor = 1 / Math.sqrt(square + eps);
      return input.map((value, i) => (value - mean) * factor * (a ? a[i] : 1) + (b ? b[i] : 0));
    };
  },
  glu() {
    return (input) => input.subarray(0, input.length / 2).map((value, i) => value * sigmoid(input[input.length / 2 + i]));
  },
};

function elementwise(act) {
  return (input) => {
    const out = new Float32Array(input.length);
    for (let i = 0; i < input.length; i++) out[i] = act(input[i]);
    return out;
  };
}

/** The decoder itself: (z, condition) to the mean of p(x|z). */
function perceptron(given) {
  const layers = given.layers.map((layer) => (LAYERS[layer.op] ? LAYERS[layer.op](layer) : elementwise(ACTIVATIONS[layer.op])));
  layers.push(elementwise(LINKS[given.link]));
  return (z, y) => {
    let h = new Float32Array(given.visible + (given.conditions ? y.length : 0));
    h.set(z.slice(0, given.visible));
    if (given.conditions) h.set(y, given.visible);
    for (const layer of layers) h = layer(h);
    return h;
  };
}

/** Decoded means between those of a grid: linear along each axis; a column of codes takes the nearest node's. */
function interpolated(given) {
  const packed = unpack(given.values);
  const steps = unpack(given.steps);
  const [, nodes, size] = given.values.shape;
  const scale = given.range ? (given.range[1] - given.range[0]) / 255 : 1;
  const start = given.range ? given.range[0] : 0;
  return (z, _, which) => {
    const out = new Float32Array(size);
    let corners = [[0, 1]];
    let nearest = 0;
    for (const axis of given.axes) {
      const at = clamp(((z[axis] - given.low) / (given.high - given.low)) * (given.size - 1), 0, given.size - 1);
      const left = Math.min(given.size - 2, Math.floor(at));
      const share = at - left;
      nearest = nearest * given.size + Math.round(at);
      corners = corners.flatMap(([node, w]) => [[node * given.size + left, w * (1 - share)], [node * given.size + left + 1, w * share]]);
    }
    for (const [node, weight] of corners) {
      const from = (which * nodes + node) * size;
      for (let i = 0; i < size; i++) out[i] += weight * packed[from + i];
    }
    for (let i = 0; i < size; i++) out[i] = start + scale * (steps[i] ? packed[(which * nodes + nearest) * size + i] : out[i]);
    return out;
  };
}

/** The largest difference from torch's own means, at the latents that the page holds for this. */
function probe(given, decode) {
  const [z, mean] = [unpack(given.probes.z), unpack(given.probes.mean)];
  const y = given.probes.y ? unpack(given.probes.y) : null;
  const [count, dim] = given.probes.z.shape;
  const size = mean.length / count;
  let worst = 0, largest = 1;
  for (let n = 0; n < count; n++) {
    const condition = y ? y.subarray((n * y.length) / count, ((n + 1) * y.length) / count) : null;
    const found = decode(z.slice(n * dim, (n + 1) * dim), condition);
    for (let i = 0; i < size; i++) {
      const difference = Math.abs(found[i] - mean[n * size + i]);
      worst = difference <= worst ? worst : difference;
      largest = Math.max(largest, Math.abs(mean[n * size + i]));
    }
  }
  return { worst, good: worst <= 1e-5 * largest };
}
