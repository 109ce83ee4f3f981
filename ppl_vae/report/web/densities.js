// Densities over the chosen latents, on cells: each a Float32Array of cells * cells (of cells, for one latent), largest 1.

const CELLS = 96;

const normalise = (grid) => {
  let top = 0;
  for (const value of grid) top = Math.max(top, value);
  return top > 0 ? grid.map((value) => value / top) : grid;
};

/** The prior at the middles of cells: as it was computed for one or two latents, else of independent normals. */
function priorDensity(space, pair, which) {
  const prior = space.prior;
  if (!prior) return null;
  if (prior.density) {
    const all = unpack(prior.density);
    const size = prior.cells ** space.dim;
    const from = prior.density.shape[0] > 1 ? which * size : 0;
    return Float32Array.from(all.subarray(from, from + size), (v) => (v / 255) ** 2);
  }
  const lines = pair.map((u) =>
    Float64Array.from({ length: CELLS }, (_, i) => {
      const z = space.low + ((i + 0.5) * (space.high - space.low)) / CELLS;
      return Math.exp(-0.5 * ((z - prior.mean[u]) / prior.std[u]) ** 2);
    }),
  );
  return outer(lines);
}

function outer(lines) {
  if (lines.length === 1) return Float32Array.from(lines[0]);
  const grid = new Float32Array(CELLS * CELLS);
  for (let i = 0; i < CELLS; i++) for (let j = 0; j < CELLS; j++) grid[i * CELLS + j] = lines[0][i] * lines[1][j];
  return grid;
}

/** The aggregate posterior's mass in cells, 1/N sum of q(z|x_n): exact of independent normals, else counted from draws. */
function aggregateDensity(space, points, pair) {
  const { low, high, dim } = space;
  const n = points.length / dim;
  const grid = new Float32Array(CELLS ** pair.length);
  const width = (high - low) / CELLS;
  if (!space.spread) {
    const draws = unpack(space.draws);
    for (let k = 0; k < n; k++) {
      const cell = pair.map((u) => Math.floor((draws[k * dim + u] - low) / width));
      if (cell.every((c) => c >= 0 && c < CELLS)) grid[cell.length === 1 ? cell[0] : cell[0] * CELLS + cell[1]] += 1;
    }
    return normalise(grid);
  }
  const spread = unpack(space.spread);
  for (let k = 0; k < n; k++) {
    const masses = pair.map((u) => {
      const [mean, std] = [points[k * dim + u], Math.abs(spread[k * dim + u])];
      const first = clamp(Math.floor((mean - 6 * std - low) / width), 0, CELLS);
      const last = clamp(Math.ceil((mean + 6 * std - low) / width), 0, CELLS);
      const found = [];
      let before = erf((low + first * width - mean) / (std * Math.SQRT2));
      for (let i = first; i < last; i++) {
        const after = erf((low + (i + 1) * width - mean) / (std * Math.SQRT2));
        found.push(Math.max(0, after - before));
        before = after;
      }
      return { first, found };
    });
    const [a, b] = masses;
    for (let i = 0; i < a.found.length; i++) {
      if (!b) grid[a.first + i] += a.found[i];
      else for (let j = 0; j < b.found.length; j++) grid[(a.first + i) * CELLS + b.first + j] += a.found[i] * b.found[j];
    }
  }
  return normalise(grid);
}

/** A density as an image, z_1 across and z_2 up, in one colour whose opacity is the density's root. */
function tinted(grid, side, text, strongest) {
  const canvas = make("canvas", { width: side, height: side });
  const context = canvas.getContext("2d");
  const image = context.createImageData(side, side);
  const rgb = channels(text);
  for (let i = 0; i < side; i++) {
    for (let j = 0; j < side; j++) {
      const at = 4 * ((side - 1 - j) * side + i);
      image.data.set(rgb, at);
      image.data[at + 3] = 255 * strongest * Math.sqrt(grid[i * side + j]);
    }
  }
  context.putImageData(image, 0, 0);
  return canvas;
}
