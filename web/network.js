// The networks in plain JavaScript: codes to pixels, and pixels to codes.
//
// Features are { height, width, channels, data }, data a Float32Array of rows, columns, channels. A convolution gathers
// what each output sees into a row of a matrix and multiplies by the filters.

/** Multiplies: out[p][o] = bias[o] + sum over k of rows[p][k] * filters[o][k], by blocks of 2 rows and 4 filters. */
function multiply(rows, filters, bias, count, size, outputs, out) {
  for (let o = 0; o < outputs; o += 4) {
    const [o1, o2, o3] = [1, 2, 3].map((i) => Math.min(o + i, outputs - 1)); // a filter is taken again at the end
    const [f0, f1, f2, f3] = [o * size, o1 * size, o2 * size, o3 * size];
    for (let p = 0; p < count; p += 2) {
      const q = Math.min(p + 1, count - 1);
      const [r0, r1] = [p * size, q * size];
      let [a0, a1, a2, a3] = [bias[o], bias[o1], bias[o2], bias[o3]];
      let [b0, b1, b2, b3] = [a0, a1, a2, a3];
      for (let k = 0; k < size; k++) {
        const a = rows[r0 + k];
        const b = rows[r1 + k];
        const w0 = filters[f0 + k];
        const w1 = filters[f1 + k];
        const w2 = filters[f2 + k];
        const w3 = filters[f3 + k];
        a0 += a * w0;
        a1 += a * w1;
        a2 += a * w2;
        a3 += a * w3;
        b0 += b * w0;
        b1 += b * w1;
        b2 += b * w2;
        b3 += b * w3;
      }
      const [p0, q0] = [p * outputs, q * outputs];
      out[p0 + o] = a0;
      out[p0 + o1] = a1;
      out[p0 + o2] = a2;
      out[p0 + o3] = a3;
      out[q0 + o] = b0;
      out[q0 + o1] = b1;
      out[q0 + o2] = b2;
      out[q0 + o3] = b3;
    }
  }
}

/** Rows (height * width, taps * channels) of what lies at offsets (dy, dx) from (stride * y, stride * x); 0 outside. */
function gather(input, height, width, stride, offsets) {
  const { channels, data } = input;
  const rows = new Float64Array(height * width * offsets.length * channels);
  let at = 0;
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      for (const [dy, dx] of offsets) {
        const [row, column] = [stride * y + dy, stride * x + dx];
        if (row >= 0 && row < input.height && column >= 0 && column < input.width) {
          const from = (row * input.width + column) * channels;
          for (let c = 0; c < channels; c++) rows[at + c] = data[from + c];
        }
        at += channels;
      }
    }
  }
  return rows;
}

/** The filters (outputs, taps * inputs) of torch's weights (outputs, inputs, rows, columns), at some (row, column). */
function filtersAt({ shape, data }, taps, transposed) {
  const [first, second, rows, columns] = shape;
  const [outputs, inputs] = transposed ? [second, first] : [first, second];
  const filters = new Float64Array(outputs * taps.length * inputs); // in 64 bits, so that nothing is converted
  let at = 0;
  for (let o = 0; o < outputs; o++) {
    for (const [y, x] of taps) {
      for (let i = 0; i < inputs; i++) {
        const [a, b] = transposed ? [i, o] : [o, i];
        filters[at++] = data[((a * second + b) * rows + y) * columns + x];
      }
    }
  }
  return filters;
}

const relu = (features) => ({ ...features, data: features.data.map((value) => Math.max(0, value)) });

function added(features, more) {
  const data = Float32Array.from(features.data);
  for (let i = 0; i < data.length; i++) data[i] += more[more.length === data.length ? i : i % more.length];
  return { ...features, data };
}

/** A convolution that keeps the size (padding by dilation * half of the kernel), or halves it (4x4, padding by 1). */
function convolution(weights, name, { stride = 1, dilation = 1 } = {}) {
  const { weight, bias } = { weight: weights[`${name}.weight`], bias: weights[`${name}.bias`].data };
  const [channels, , side] = weight.shape;
  const padding = stride === 1 ? dilation * (side >> 1) : 1;
  const taps = Array.from({ length: side * side }, (_, i) => [Math.floor(i / side), i % side]);
  const offsets = taps.map(([y, x]) => [y * dilation - padding, x * dilation - padding]);
  const filters = filtersAt(weight, taps, false);
  return (input) => {
    const [height, width] = [input.height / stride, input.width / stride];
    const data = new Float32Array(height * width * channels);
    const rows = gather(input, height, width, stride, offsets);
    multiply(rows, filters, bias, height * width, filters.length / channels, channels, data);
    return { height, width, channels, data };
  };
}

/** A transposed convolution that doubles the size (4x4, stride 2, padding 1): four convolutions 2x2, interleaved. */
function doubling(weights, name) {
  const { weight, bias } = { weight: weights[`${name}.weight`], bias: weights[`${name}.bias`].data };
  const channels = weight.shape[1];
  const seen = [[[1, 0], [3, -1]], [[0, 1], [2, 0]]]; // for even and odd outputs: (row of the filter, offset)
  const phases = [0, 1, 2, 3].map((phase) => {
    const pairs = seen[phase >> 1].flatMap((row) => seen[phase & 1].map((column) => [row, column]));
    const filters = filtersAt(weight, pairs.map(([[y], [x]]) => [y, x]), true);
    return { filters, offsets: pairs.map(([[, dy], [, dx]]) => [dy, dx]) };
  });
  return (input) => {
    const [height, width] = [2 * input.height, 2 * input.width];
    const [data, part] = [height * width, input.height * input.width].map((size) => new Float32Array(size * channels));
    phases.forEach(({ filters, offsets }, phase) => {
      const rows = gather(input, input.height, input.width, 1, offsets);
      multiply(rows, filters, bias, input.height * input.width, filters.length / channels, channels, part);
      for (let y = 0; y < input.height; y++) {
        for (let x = 0; x < input.width; x++) {
          const [from, to] = [y * input.width + x, (2 * y + (phase >> 1)) * width + 2 * x + (phase & 1)];
          data.set(part.subarray(from * channels, (from + 1) * channels), to * channels);
        }
      }
    });
    return { height, width, channels, data };
  };
}

/** x + conv1x1(relu(conv(relu(x)))); `biases` has a bias of x inside for each case. */
function residualBlock(weights, name, dilation = 1) {
  const spatial = convolution(weights, `${name}.spatial`, { dilation });
  const pointwise = convolution(weights, `${name}.pointwise`);
  const biases = weights[`${name}.case.weight`];
  return (input, number) => {
    const bias = biases?.data.subarray(number * input.channels, (number + 1) * input.channels);
    return added(input, pointwise(relu(spatial(relu(bias ? added(input, bias) : input)))).data);
  };
}

const chain = (layers) => (input) => layers.reduce((features, layer) => layer(features), input);

/** Layers in turn, from their names: numbers of torch's Sequential that have weights. */
function sequence(weights, name, blocks, ups) {
  const stack = Array.from({ length: blocks }, (_, i) => residualBlock(weights, `${name}.1.${i}`));
  const layers = [convolution(weights, `${name}.0`), ...stack, relu];
  for (let i = 0; i < ups; i++) layers.push(doubling(weights, `${name}.${2 + 2 * i}`), ...(i + 1 < ups ? [relu] : []));
  return chain(layers);
}

const halvings = (model) => Math.log2(model.stride);

/** The decoder with that prefix of its weights' names: latents to pixels in [-1, 1]. */
export function buildDecoder(weights, name, model) {
  return sequence(weights, name, model.residual_blocks, halvings(model));
}

/** The refiner of prefixes: latents and the number of levels less 1 to latents. */
export function buildRefiner(weights, name, blocks) {
  const [inward, outward] = ["inward", "outward"].map((layer) => convolution(weights, `${name}.${layer}`));
  const stack = Array.from({ length: blocks }, (_, i) => residualBlock(weights, `${name}.blocks.${i}`, 2 ** (i >> 1)));
  return (latents, number) => {
    const features = stack.reduce((input, block) => block(input, number), inward(latents));
    return added(latents, outward(relu(features)).data);
  };
}

/** The encoder: pixels in [-1, 1] to latents. */
export function buildEncoder(weights, name, model) {
  const downs = halvings(model);
  const layers = [];
  for (let i = 0; i < downs; i++) layers.push(convolution(weights, `${name}.${2 * i}`, { stride: 2 }), relu);
  layers.push(convolution(weights, `${name}.${2 * downs}`));
  for (let i = 0; i < model.residual_blocks; i++) layers.push(residualBlock(weights, `${name}.${2 * downs + 1}.${i}`));
  layers.push(relu, convolution(weights, `${name}.${2 * downs + 2}`));
  return chain(layers);
}

/** Codewords and codes: each level has `codewords` children below each codeword of the level before in its group. */
export class Codebooks {
  constructor(weights, { levels, codewords, linked, shared, dim, beam, coarse_weight: coarseWeight }) {
    Object.assign(this, { levels, size: codewords, linked: Math.min(linked || levels, levels), dim, beam, coarseWeight });
    const name = (level) => (levels === 1 ? "quantizer.codebook" : `quantizer.codebooks.${shared ? 0 : level}`);
    this.books = Array.from({ length: levels }, (_, level) => weights[`${name(level)}.codewords`].data);
  }

  /** The sum of the codewords of the first levels: latents. */
  lookup(codes, [height, width]) {
    const { dim, size, linked } = this;
    const data = new Float32Array(height * width * dim);
    for (let p = 0; p < height * width; p++) {
      let index = 0;
      codes.forEach((level, l) => {
        index = (l % linked ? index * size : 0) + level[p];
        for (let d = 0; d < dim; d++) data[p * dim + d] += this.books[l][index * dim + d];
      });
    }
    return { height, width, channels: dim, data };
  }

  /** Codes of latents, an Int32Array for each level: the search of docs/method.md, with a beam. */
  search({ height, width, data }) {
    const codes = Array.from({ length: this.levels }, () => new Int32Array(height * width));
    for (let p = 0; p < height * width; p++) {
      let residual = data.slice(p * this.dim, (p + 1) * this.dim);
      for (let first = 0; first < this.levels; first += this.linked) {
        const best = this.descend(residual, first, Math.min(first + this.linked, this.levels));
        best.codes.forEach((code, i) => (codes[first + i][p] = code));
        residual = best.residual;
      }
    }
    return codes;
  }

  /** The path of least cost through the levels first, ..., last - 1: { residual, codes }. */
  descend(vector, first, last) {
    const { dim, size } = this;
    const weight = this.beam > 1 ? this.coarseWeight : 0;
    let paths = [{ residual: vector, index: 0, before: 0, codes: [] }];
    for (let level = first; level < last; level++) {
      const book = this.books[level];
      const kept = []; // children in order of their costs, at most as many as the beam has paths
      const most = level + 1 < last ? this.beam : 1;
      for (const parent of paths) {
        const { residual, index, before } = parent;
        for (let k = 0; k < size; k++) {
          const at = (index * size + k) * dim;
          let distance = 0;
          for (let d = 0; d < dim; d++) {
            const difference = residual[d] - book[at + d];
            distance += difference * difference;
          }
          const cost = distance + before;
          if (kept.length === most && cost >= kept[most - 1].cost) continue;
          const rank = kept.findIndex((other) => cost < other.cost);
          kept.splice(rank < 0 ? kept.length : rank, 0, { parent, k, cost, before: weight * distance + before });
          if (kept.length > most) kept.pop();
        }
      }
      paths = kept.map(({ parent, k, before }) => {
        const index = parent.index * size + k;
        const residual = parent.residual.map((value, d) => value - book[index * dim + d]);
        return { residual, index, before, codes: [...parent.codes, k] };
      });
    }
    return paths[0];
  }
}
