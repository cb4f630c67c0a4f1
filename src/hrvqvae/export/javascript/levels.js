// The codes of levels: their frequencies, the range coder and the checks.

import { crc8 } from "./bytes.js";

const POWERS = Array.from({ length: 64 }, (_, i) => Math.round(2 ** (16 - i / 64)));

/** The codes of one level of one image, predicted from the codes that are known. */
class Predicted {
  constructor(entry, level, grids, codes) {
    Object.assign(this, entry, { level, grids, codes });
    this.sums = new Float64Array(this.hidden);
    this.scores = new Float64Array(this.m);
    this.frequencies = new Float64Array(this.m);
    this.maps = this.groups.map((group) => {
      const [rows, columns] = grids[group[1]];
      const map = new Int32Array(rows * columns);
      if (group[1] < level) for (let i = 0; i < map.length; i++) map[i] = this.groupValue(group, i);
      return map;
    });
  }

  /** The value of a group at place i of its grid, row after row. */
  groupValue([a, b], i) {
    const [rows, columns] = this.grids[b];
    const [y, x] = [Math.floor(i / columns), i % columns];
    let value = 0;
    for (let j = a; j <= b; j++) {
      const [r, c] = this.grids[j];
      value = value * this.symbols[j] + this.codes[j][Math.floor((y * r) / rows) * c + Math.floor((x * c) / columns)];
    }
    return value;
  }

  feature(group, dy, dx, y, x) {
    const [height, width] = this.grids[this.level];
    const [rows, columns] = this.grids[this.groups[group][1]];
    const r = Math.floor((y * rows) / height) + dy;
    const c = Math.floor((x * columns) / width) + dx;
    return r < 0 || r >= rows || c < 0 || c >= columns ? this.values[group] : this.maps[group][r * columns + c];
  }

  /** Finds the frequencies at place i; returns their sum. */
  predict(i) {
    const { sums, scores, frequencies, hidden, m, table, weights, offsets, starts } = this;
    const [height, width] = this.grids[this.level];
    const [y, x] = [Math.floor(i / width), i % width];
    sums.set(this.bias);
    for (let f = 0; f < starts.length; f++) {
      const feature = this.features[f]; // undefined for the last one, the place
      const value = feature
        ? this.feature(feature[0], feature[1], feature[2], y, x)
        : 16 * Math.floor((16 * y) / height) + Math.floor((16 * x) / width);
      const row = (starts[f] + value) * hidden;
      for (let h = 0; h < hidden; h++) sums[h] += table[row + h];
    }
    for (let h = 0; h < hidden; h++) sums[h] = Math.max(0, sums[h]);
    const set = this.selecting === -1 ? 0 : this.feature(this.selecting, 0, 0, y, x);
    let best = -Infinity;
    for (let k = 0; k < m; k++) {
      const row = set * m + k;
      let score = offsets[row];
      for (let h = 0; h < hidden; h++) score += weights[row * hidden + h] * sums[h];
      scores[k] = score;
      best = Math.max(best, score);
    }
    let total = 0;
    for (let k = 0; k < m; k++) {
      const t = Math.floor((best - scores[k]) / 2 ** this.shift);
      frequencies[k] = t < 17 * 64 ? 1 + Math.floor(POWERS[t % 64] / 2 ** Math.floor(t / 64)) : 1;
      total += frequencies[k];
    }
    return total;
  }

  /** The symbol at that place in the sum of the frequencies: [symbol, sum of the frequencies before it, its own]. */
  find(place) {
    let [k, before] = [0, 0];
    while (before + this.frequencies[k] <= place) before += this.frequencies[k++];
    return [k, before, this.frequencies[k]];
  }

  /** Of a symbol: [sum of the frequencies before it, its own]. */
  share(symbol) {
    let before = 0;
    for (let k = 0; k < symbol; k++) before += this.frequencies[k];
    return [before, this.frequencies[symbol]];
  }

  /** Takes note of the code at place i, which codes[level] has. */
  known(i) {
    this.groups.forEach((group, g) => {
      if (group[1] === this.level) this.maps[g][i] = this.groupValue(group, i);
    });
  }
}

/** The codes of a level whose symbols are all alike. */
class Alike {
  constructor(m) {
    this.m = m;
  }

  predict() {
    return this.m;
  }

  find(place) {
    return [place, place, 1];
  }

  share(symbol) {
    return [symbol, 1];
  }

  known() {}
}

class Decoder {
  constructor(bytes, start, end) {
    Object.assign(this, { bytes, start, end, low: 0, range: 2 ** 48, value: 0, used: 0 });
    for (let i = 0; i < 6; i++) this.value = this.value * 256 + this.byte(i);
  }

  byte(i) {
    return this.start + i < this.end ? this.bytes[this.start + i] : 0;
  }

  /** The next symbol by a model with that sum of frequencies; -1 where no encoder made these bytes. */
  symbol(model, total) {
    const part = Math.floor(this.range / total);
    const place = Math.floor(this.value / part);
    if (place >= total) return -1;
    const [k, before, frequency] = model.find(place);
    this.value -= part * before;
    this.low = (this.low + part * before) % 2 ** 48;
    this.range = part * frequency;
    while (this.range <= 2 ** 40) {
      this.value = this.value * 256 + this.byte(this.used + 6);
      this.low = (this.low % 2 ** 40) * 256;
      this.range *= 256;
      this.used++;
    }
    return k;
  }

  /** Bytes of the level. */
  length() {
    return this.used + bytesToEnd(this.low, this.range);
  }
}

function bytesToEnd(low, range) {
  for (let n = 0; ; n++) {
    const step = 2 ** (48 - 8 * n);
    if (Math.ceil(low / step) * step + step <= low + range) return n;
  }
}

class Encoder {
  constructor() {
    Object.assign(this, { low: 0, range: 2 ** 48, bytes: [] });
  }

  symbol(before, frequency, total) {
    const part = Math.floor(this.range / total);
    this.low += part * before;
    this.range = part * frequency;
    this.carry();
    while (this.range <= 2 ** 40) {
      this.put();
      this.range *= 256;
    }
  }

  carry() {
    if (this.low < 2 ** 48) return;
    this.low -= 2 ** 48;
    let i = this.bytes.length - 1;
    while (this.bytes[i] === 255) this.bytes[i--] = 0;
    this.bytes[i]++;
  }

  put() {
    this.bytes.push(Math.floor(this.low / 2 ** 40));
    this.low = (this.low % 2 ** 40) * 256;
  }

  end() {
    const n = bytesToEnd(this.low, this.range);
    const step = 2 ** (48 - 8 * n);
    this.low = Math.ceil(this.low / step) * step;
    this.carry();
    for (let i = 0; i < n; i++) this.put();
    return this.bytes;
  }
}

/** Codes of one level and where its bytes end; or what is wrong with them. */
function decodeLevel(model, codes, bytes, start, end) {
  const decoder = new Decoder(bytes, start, end);
  for (let i = 0; i < codes.length; i++) {
    const symbol = decoder.symbol(model, model.predict(i));
    if (symbol < 0) return { wrong: "is damaged" };
    if (decoder.used > end - start) return { wrong: "is cut short or damaged" };
    codes[i] = symbol;
    model.known(i);
  }
  const stop = start + decoder.length();
  return stop > end ? { wrong: "is cut short" } : { stop };
}

/** The grids [rows, columns] of all levels. */
export function gridsOf(tables, height, width) {
  const cells = (side, times) => times * Math.ceil((side + tables.margin) / tables.unit);
  return tables.times.map((times) => [cells(height, times), cells(width, times)]);
}

function modelOf(tables, byTables, level, grids, codes) {
  const entry = byTables && tables.levels[level];
  const symbols = tables.symbols;
  return entry ? new Predicted({ ...entry, symbols }, level, grids, codes) : new Alike(symbols[level]);
}

/**
 * The levels of a .hrv whose header takes the first `start` bytes.
 *
 * Returns { height, width, grids, levels, ends, fault }: codes of the levels that are whole, row after row; where each
 * ends; and what is wrong after them, or null.
 */
export function decodeLevels(tables, byTables, [height, width], bytes, start) {
  const grids = gridsOf(tables, height, width);
  const levels = [];
  const ends = [];
  let fault = null;
  let at = start;
  let checked = 0; // the first check includes the header
  for (let level = 0; level < grids.length && !fault; level++) {
    if (level > 0 && at === bytes.length) break; // a file may end after any level
    const codes = new Int32Array(grids[level][0] * grids[level][1]);
    levels.push(codes);
    const model = modelOf(tables, byTables, level, grids, levels);
    let { wrong, stop } = decodeLevel(model, codes, bytes, at, bytes.length);
    if (!wrong && stop === bytes.length) wrong = "is cut short";
    if (!wrong && crc8(0xff, bytes, checked, stop + 1) !== 0) wrong = "is damaged";
    if (wrong) {
      fault = `level ${level + 1} ${wrong}`;
      levels.pop();
    } else {
      at = checked = stop + 1;
      ends.push(at);
    }
  }
  if (!fault && at < bytes.length) fault = "bytes are left after the last level";
  return { height, width, grids, levels, ends, fault };
}

/** The bytes of each level, without checks, of codes as `decodeLevels` gives them. */
export function encodeLevels(tables, byTables, [height, width], levels) {
  const grids = gridsOf(tables, height, width);
  return levels.map((codes, level) => {
    const encoder = new Encoder();
    const model = modelOf(tables, byTables, level, grids, levels);
    codes.forEach((code, i) => {
      const total = model.predict(i);
      encoder.symbol(...model.share(code), total);
      model.known(i);
    });
    return encoder.end();
  });
}
