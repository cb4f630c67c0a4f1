// The networks: codes to pixels, and pixels to codes.
//
// Features are { height, width, channels, data }, data a Float32Array of rows, columns, channels. A convolution gathers
// what each output sees into a row of a matrix, some rows at a time, and multiplies them by the filters in WebAssembly.

const MULTIPLY = // multiply.wat
  "AGFzbQEAAAABCwFgB39/f39/f38AAwIBAAUDAQABBxUCBm1lbW9yeQIACG11bHRpcGx5AAAKnAIBmQICBX8FeyAFQQJ0IQUgBkECdCELA0AgASEHQQAh" +
  "CCAAIAVqIQoDQCAAIQkgAiAIav0ABAAhDSANIQ4gDSEPIA0hEANAIAf9AAQAIQwgDSAMIAn9CQIA/eYB/eQBIQ0gDiAMIAkgBWr9CQIA/eYB/eQBIQ4g" +
  "DyAMIAkgBUEBdGr9CQIA/eYB/eQBIQ8gECAMIAkgBUEDbGr9CQIA/eYB/eQBIRAgB0EQaiEHIAlBBGoiCSAKSQ0ACyADIAhqIQkgCSAN/QsEACAJIAtq" +
  "IgkgDv0LBAAgCSALaiIJIA/9CwQAIAkgC2ogEP0LBAAgCEEQaiIIIAtJDQALIAAgBUECdGohACADIAtBAnRqIQMgBEEEayIEQQBKDQALCw==";
const ROWS = 128; // of a matrix at a time, a multiple of 4

/** The memory in which matrices are multiplied. */
export class Kernel {
  constructor() {
    const module = new WebAssembly.Module(Uint8Array.from(atob(MULTIPLY), (c) => c.charCodeAt(0)));
    Object.assign(this, new WebAssembly.Instance(module).exports);
    Object.assign(this, { used: 0, rows: 0, size: 0, out: 0, pitch: 0 });
  }

  /** The address of space for so many numbers. */
  take(count) {
    const address = this.used;
    this.used += 16 * Math.ceil(count / 4);
    const missing = this.used - this.memory.buffer.byteLength;
    if (missing > 0) this.memory.grow(Math.ceil(missing / 65536));
    return address;
  }

  view(address, count) {
    return new Float32Array(this.memory.buffer, address, count);
  }

  /** Makes space for the rows and the products of a layer. */
  reserve(size, pitch) {
    if (size > this.size) [this.rows, this.size] = [this.take(ROWS * size), size];
    if (pitch > this.pitch) [this.out, this.pitch] = [this.take(ROWS * pitch), pitch];
  }
}

/** The filters at some taps (row, column) of torch's weights (outputs, inputs, rows, columns), four outputs together. */
class Filters {
  constructor(kernel, { shape, data }, bias, taps, transposed = false) {
    const [first, second, rows, columns] = shape;
    const [outputs, inputs] = transposed ? [second, first] : [first, second];
    const [size, pitch] = [taps.length * inputs, 4 * Math.ceil(outputs / 4)];
    Object.assign(this, { kernel, outputs, size, pitch, filters: kernel.take(pitch * size), bias: kernel.take(pitch) });
    kernel.reserve(size, pitch);
    kernel.view(this.bias, outputs).set(bias);
    const filters = kernel.view(this.filters, pitch * size);
    for (let o = 0; o < outputs; o++) {
      taps.forEach(([y, x], t) => {
        for (let i = 0; i < inputs; i++) {
          const [a, b] = transposed ? [i, o] : [o, i];
          const from = ((a * second + b) * rows + y) * columns + x;
          filters[((o >> 2) * size + t * inputs + i) * 4 + (o & 3)] = data[from];
        }
      });
    }
  }

  /** Writes to out[place(i)] for each of height * width places, which see input at `offsets` from (stride y, stride x). */
  apply(input, height, width, stride, offsets, out, place) {
    const { kernel, outputs, size, pitch } = this;
    const { channels, data } = input;
    for (let first = 0; first < height * width; first += ROWS) {
      const count = Math.min(ROWS, height * width - first);
      const rows = kernel.view(kernel.rows, ROWS * size);
      for (let p = 0, at = 0; p < count; p++) {
        const [y, x] = [stride * Math.floor((first + p) / width), stride * ((first + p) % width)];
        for (const [dy, dx] of offsets) {
          let from = ((y + dy) * input.width + x + dx) * channels;
          for (const end = from + channels; from < end; ) rows[at++] = data[from++];
        }
      }
      kernel.multiply(kernel.rows, this.filters, this.bias, kernel.out, count, size, pitch);
      const products = kernel.view(kernel.out, ROWS * pitch);
      for (let p = 0; p < count; p++) {
        const to = place(first + p) * outputs;
        for (let o = 0; o < outputs; o++) out[to + o] = products[p * pitch + o];
      }
    }
  }
}

/** Features with a border of zeros, and without what is negative, if `relu`. */
function padded({ height, width, channels, data }, border, relu) {
  const wide = (width + 2 * border) * channels;
  const out = new Float32Array((height + 2 * border) * wide);
  for (let y = 0; y < height; y++) {
    const [from, to] = [y * width * channels, (y + border) * wide + border * channels];
    for (let i = 0; i < width * channels; i++) {
      const value = data[from + i];
      out[to + i] = relu && value < 0 ? 0 : value;
    }
  }
  return { width: width + 2 * border, channels, data: out };
}

function added(features, more) {
  const data = Float32Array.from(features.data);
  for (let i = 0; i < data.length; i++) data[i] += more[i];
  return { ...features, data };
}

/** Features plus the bias of each position's case. */
function biased(features, biases, cases) {
  const { channels } = features;
  const bias = (i) => biases[cases[Math.floor(i / channels)] * channels + (i % channels)];
  return { ...features, data: features.data.map((value, i) => value + bias(i)) };
}

/** A convolution that keeps the size (padding by dilation * half of the kernel), or halves it (4x4, padding by 1). */
function convolution(kernel, weights, name, { stride = 1, dilation = 1, relu = false } = {}) {
  const { weight, bias } = { weight: weights[`${name}.weight`], bias: weights[`${name}.bias`].data };
  const [channels, , side] = weight.shape;
  const border = stride === 1 ? dilation * (side >> 1) : 1;
  const taps = Array.from({ length: side * side }, (_, i) => [Math.floor(i / side), i % side]);
  const offsets = taps.map(([y, x]) => [y * dilation, x * dilation]);
  const filters = new Filters(kernel, weight, bias, taps);
  return (input) => {
    const [height, width] = [input.height / stride, input.width / stride];
    const data = new Float32Array(height * width * channels);
    filters.apply(padded(input, border, relu), height, width, stride, offsets, data, (i) => i);
    return { height, width, channels, data };
  };
}

/** A transposed convolution that doubles the size (4x4, stride 2, padding 1): four convolutions 2x2, interleaved. */
function doubling(kernel, weights, name) {
  const { weight, bias } = { weight: weights[`${name}.weight`], bias: weights[`${name}.bias`].data };
  const channels = weight.shape[1];
  const seen = [[[1, 1], [3, 0]], [[0, 2], [2, 1]]]; // for even and odd outputs: (row of the filter, of the input)
  const phases = [0, 1, 2, 3].map((phase) => {
    const pairs = seen[phase >> 1].flatMap((row) => seen[phase & 1].map((column) => [row, column]));
    const taps = pairs.map(([[y], [x]]) => [y, x]);
    return [new Filters(kernel, weight, bias, taps, true), pairs.map(([[, dy], [, dx]]) => [dy, dx])];
  });
  return (input) => {
    const { height, width } = input;
    const [data, inner] = [new Float32Array(4 * height * width * channels), padded(input, 1, true)];
    phases.forEach(([filters, offsets], phase) => {
      const place = (i) => (2 * Math.floor(i / width) + (phase >> 1)) * 2 * width + 2 * (i % width) + (phase & 1);
      filters.apply(inner, height, width, 1, offsets, data, place);
    });
    return { height: 2 * height, width: 2 * width, channels, data };
  };
}

/** x + conv1x1(relu(conv(relu(x + bias)))); blocks of a refiner have the bias of each position's case, others none. */
function residualBlock(kernel, weights, name, dilation = 1) {
  const spatial = convolution(kernel, weights, `${name}.spatial`, { dilation, relu: true });
  const pointwise = convolution(kernel, weights, `${name}.pointwise`, { relu: true });
  const biases = weights[`${name}.case.weight`];
  return (input, cases) => {
    const inside = biases ? biased(input, biases.data, cases) : input;
    return added(input, pointwise(spatial(inside)).data);
  };
}

const chain = (layers) => (input) => layers.reduce((features, layer) => layer(features), input);

const blocksOf = (kernel, weights, name, count) =>
  Array.from({ length: count }, (_, i) => residualBlock(kernel, weights, `${name}.${i}`));

/** The decoder with that prefix of its weights' names: latents to pixels in [-1, 1]. */
export function buildDecoder(kernel, weights, name, { stride, residual_blocks: blocks }) {
  const doublings = Array.from({ length: Math.log2(stride) }, (_, i) => doubling(kernel, weights, `${name}.${2 + 2 * i}`));
  return chain([convolution(kernel, weights, `${name}.0`), ...blocksOf(kernel, weights, `${name}.1`, blocks), ...doublings]);
}

/** The refiner of prefixes: latents and the case of each position, its number of levels less 1, to latents. */
export function buildRefiner(kernel, weights, name, blocks) {
  const inward = convolution(kernel, weights, `${name}.inward`);
  const outward = convolution(kernel, weights, `${name}.outward`, { relu: true });
  const stack = Array.from({ length: blocks }, (_, i) => residualBlock(kernel, weights, `${name}.blocks.${i}`, 2 ** (i >> 1)));
  return (latents, cases) => added(latents, outward(stack.reduce((input, block) => block(input, cases), inward(latents))).data);
}

/** The encoder: pixels in [-1, 1] to latents. */
export function buildEncoder(kernel, weights, name, { stride, residual_blocks: blocks }) {
  const downs = Math.log2(stride);
  const halvings = Array.from({ length: downs }, (_, i) =>
    convolution(kernel, weights, `${name}.${2 * i}`, { stride: 2, relu: i > 0 }));
  const [wide, stack, last] = [0, 1, 2].map((i) => `${name}.${2 * downs + i}`);
  return chain([
    ...halvings, convolution(kernel, weights, wide, { relu: true }), ...blocksOf(kernel, weights, stack, blocks),
    convolution(kernel, weights, last, { relu: true }),
  ]);
}

/** Codewords and codes: codeword i of a level has, at the next level, the codebook i, or the only one. */
export class Codebooks {
  constructor(
    weights,
    { levels, codewords, linked, dim, beam, joint_beam: joint, coarse_weight: coarseWeight },
  ) {
    Object.assign(this, { levels, size: codewords, dim, beam, coarseWeight });
    this.together = Math.min((!joint && linked) || levels, levels); // levels of one search
    const name = (level) => (levels === 1 ? "quantizer.codebook" : `quantizer.codebooks.${level}`);
    this.books = Array.from({ length: levels }, (_, level) => weights[`${name(level)}.codewords`].data);
    this.counts = this.books.map((book) => book.length / (codewords * dim)); // of codebooks
  }

  /** The sum of the codewords of the first levels, without those of -1, where a position has stopped: latents. */
  lookup(codes, [height, width]) {
    const { dim, size } = this;
    const data = new Float32Array(height * width * dim);
    for (let p = 0; p < height * width; p++) {
      let index = 0;
      codes.forEach((level, l) => {
        if (level[p] < 0) return;
        index = (index % this.counts[l]) * size + level[p];
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
      for (let first = 0; first < this.levels; first += this.together) {
        const best = this.descend(residual, first, Math.min(first + this.together, this.levels));
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
        const start = (index % this.counts[level]) * size; // first codeword of the codebook
        for (let k = 0; k < size; k++) {
          const at = (start + k) * dim;
          let distance = 0;
          for (let d = 0; d < dim; d++) {
            const difference = residual[d] - book[at + d];
            distance += difference * difference;
          }
          const cost = distance + before;
          if (kept.length === most && cost >= kept[most - 1].cost) continue;
          const rank = kept.findIndex((other) => cost < other.cost);
          const child = { parent, k, index: start + k, cost, before: weight * distance + before };
          kept.splice(rank < 0 ? kept.length : rank, 0, child);
          if (kept.length > most) kept.pop();
        }
      }
      paths = kept.map(({ parent, k, index, before }) => {
        const residual = parent.residual.map((value, d) => value - book[index * dim + d]);
        return { residual, index, before, codes: [...parent.codes, k] };
      });
    }
    return paths[0];
  }
}
