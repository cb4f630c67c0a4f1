// The codes of levels: their frequencies, the range coder and the checks.

import { crc8 } from "./bytes.js";
import { DEPTH, QUALITY } from "./tables.js";

const POWERS = Array.from({ length: 64 }, (_, i) => Math.round(2 ** (16 - i / 64)));
const PART_VALUES = 4096; // of the levels of a part with stops together, at most

/** The codes or flags of one level of one image, predicted from the codes that are known. */
class Predicted {
  constructor(entry, symbols, level, grids, codes, quality) {
    Object.assign(this, entry, { symbols, level, grids, codes, quality });
    this.sums = new Float64Array(this.hidden);
    this.scores = new Float64Array(this.m);
    this.frequencies = new Float64Array(this.m);
    this.maps = this.groups.map(([, b], g) => {
      const [rows, columns] = grids[b];
      const map = new Int32Array(rows * columns);
      if (b < level) for (let i = 0; i < map.length; i++) map[i] = this.groupValue(g, i);
      return map;
    });
  }

  /** The value of a group at place i of its grid, row after row. */
  groupValue(g, i) {
    const [a, b] = this.groups[g];
    if (a === QUALITY) return this.quality;
    const [rows, columns] = this.grids[b];
    const [y, x] = [Math.floor(i / columns), i % columns];
    let value = 0;
    for (let j = Math.max(a, 0); j <= b; j++) {
      const [r, c] = this.grids[j];
      const code = this.codes[j][Math.floor((y * r) / rows) * c + Math.floor((x * c) / columns)];
      if (a === DEPTH) value += Number(code >= 0);
      else if (code >= 0) value = value * this.symbols[j] + code;
      else return this.values[g];
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
    this.groups.forEach(([, b], g) => {
      if (b === this.level) this.maps[g][i] = this.groupValue(g, i);
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
  constructor(bytes, start) {
    Object.assign(this, { bytes, start, low: 0, range: 2 ** 48, value: 0, used: 0 });
    for (let i = 0; i < 6; i++) this.value = this.value * 256 + this.byte(i);
  }

  byte(i) {
    return this.bytes[this.start + i] ?? 0;
  }

  /** The next symbol by a model with that sum of frequencies; -1 where the bytes are cut short or damaged. */
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
    return this.start + this.used > this.bytes.length ? -1 : k;
  }

  /** Where the bytes of the part end, if nothing follows. */
  end() {
    return this.start + this.used + bytesToEnd(this.low, this.range);
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

/**
 * Decodes symbols to `codes` where `coded`, which may be `codes`, is not -1; a flag becomes 0 or -1. Returns whether the
 * bytes are whole.
 */
function decodeSymbols(decoder, model, coded, codes, ofFlags) {
  for (let i = 0; i < codes.length; i++) {
    if (coded[i] < 0) {
      codes[i] = -1;
    } else {
      const symbol = decoder.symbol(model, model.predict(i));
      if (symbol < 0) return false;
      codes[i] = ofFlags ? -symbol : symbol;
    }
    model.known(i);
  }
  return true;
}

/** The grids [rows, columns] of all levels. */
export function gridsOf(tables, height, width) {
  const cells = (side, times) => times * Math.ceil((side + tables.margin) / tables.unit);
  return tables.times.map((times) => [cells(height, times), cells(width, times)]);
}

/** The levels of each part: as many as have at most so many values together, or one. */
function partsOf(symbols, most) {
  const parts = [];
  let values = Infinity;
  symbols.forEach((m, level) => {
    values *= m;
    if (values > most) {
      parts.push([]);
      values = m;
    }
    parts[parts.length - 1].push(level);
  });
  return parts;
}

/** The model of a level's codes or flags, by its entry in the tables; without an entry all symbols are alike. */
function modelOf(entry, symbols, level, grids, codes, quality = 0) {
  return entry ? new Predicted(entry, symbols, level, grids, codes, quality) : new Alike(symbols[level]);
}

/**
 * The levels of a .hrv whose header takes the first `start` bytes. `kind`: 0 without tables, 1 by tables, 2 with stops.
 *
 * Returns { height, width, grids, levels, ends, fault }: codes of the levels that are whole, row after row, -1 where a
 * position has stopped; where each part ends; and what is wrong after them, or null.
 */
export function decodeLevels(tables, kind, quality, [height, width], bytes, start) {
  const { symbols } = tables;
  const stops = kind === 2 ? tables.stops : [];
  const parts = partsOf(symbols, kind === 2 ? PART_VALUES : 0);
  const grids = gridsOf(tables, height, width);
  const levels = [];
  const ends = [];
  let fault = null;
  let at = start;
  let checked = 0; // the first check includes the header
  for (const part of parts) {
    if (ends.length > 0 && at === bytes.length) break; // a file may end after any part
    const decoder = new Decoder(bytes, at);
    const isWhole = part.every((level) => {
      const codes = new Int32Array(grids[level][0] * grids[level][1]);
      levels.push(codes);
      const model = (entry) => modelOf(entry, symbols, level, grids, levels, quality);
      const flags = stops[level];
      if (flags && !decodeSymbols(decoder, model(flags), levels[level - 1], codes, true)) return false;
      return decodeSymbols(decoder, model(kind && tables.levels[level]), codes, codes, false);
    });
    const stop = decoder.end();
    if (!isWhole || stop >= bytes.length || crc8(0xff, bytes, checked, stop + 1) !== 0) {
      fault = `from level ${part[0] + 1} on, it is cut short or damaged`;
      levels.length = part[0];
      break;
    }
    at = checked = stop + 1;
    ends.push(at);
  }
  if (!fault && at < bytes.length) fault = "bytes are left after the last level";
  return { height, width, grids, levels, ends, fault };
}

/** The bytes of each level, without checks, of codes as `decodeLevels` gives them where no position has stopped. */
export function encodeLevels(tables, byTables, [height, width], levels) {
  const grids = gridsOf(tables, height, width);
  return levels.map((codes, level) => {
    const encoder = new Encoder();
    const model = modelOf(byTables && tables.levels[level], tables.symbols, level, grids, levels);
    codes.forEach((code, i) => {
      const total = model.predict(i);
      encoder.symbol(...model.share(code), total);
      model.known(i);
    });
    return encoder.end();
  });
}
