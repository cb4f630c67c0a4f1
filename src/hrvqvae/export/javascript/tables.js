// The file of tables.

import { ascii, crc32, inflate, Refused, refuseUnless, uint32, utf8 } from "./bytes.js";

// The limits of the page.
const MAX_BODY = 2 ** 28;
const MAX_LEVELS = 255;
const MAX_TIMES = 1024;
const MAX_SYMBOLS = 2 ** 24;
const MAX_PREDICTED = 4096;

// In place of the first level of a group: the number of levels at a position, and the quality of the file.
export const DEPTH = -1;
export const QUALITY = -2;
const QUALITIES = 8;

const isCount = (value, least = 0, most = 2 ** 31 - 1) => Number.isInteger(value) && value >= least && value <= most;

/** The model of one level's codes or flags: its arrays, and for each feature its group, offset and first row. */
function readLevel(entry, level, symbols, ofFlags, take) {
  const { groups, features, selecting, hidden, shift } = entry;
  const say = (condition, what) => refuseUnless(condition, `tables: level ${level + 1}: ${what}`);
  const lists = (value, length) => Array.isArray(value) && value.every((one) => one?.length === length);
  say(lists(groups, 2) && lists(features, 3), "groups and features are no lists of two or three numbers");
  say(groups.length > 0, "it has no group");
  say(isCount(hidden, 0, 2 ** 16) && isCount(shift, 0, 30), "hidden or shift is out of range");
  const m = ofFlags ? 2 : symbols[level];
  say(m <= MAX_PREDICTED, "it has too many symbols to be predicted");
  const values = groups.map(([a, b]) => {
    say(isCount(b, 0, level) && isCount(a, QUALITY, b), "a group is out of range");
    say(!ofFlags || a < 0 || b < level, "a group of flags has codes that come later");
    if (a === QUALITY) return QUALITIES;
    if (a === DEPTH) return b + 2;
    const n = symbols.slice(a, b + 1).reduce((product, m) => product * m, 1);
    say(n < MAX_BODY, "a group has too many values");
    return n;
  });
  const starts = [];
  let rows = 0;
  for (const [group, dy, dx] of features) {
    say(isCount(group, 0, groups.length - 1) && isCount(dy, -4, 4) && isCount(dx, -4, 4), "a feature is out of range");
    say(groups[group][1] < level || dy < 0 || (dy === 0 && dx < 0), "a feature looks at a code that comes later");
    starts.push(rows);
    rows += values[group] + 1;
  }
  starts.push(rows);
  rows += 256;
  const coarser = (group) => isCount(group, 0, groups.length - 1) && groups[group][1] < level;
  say(selecting === -1 || coarser(selecting), "selecting is out of range");
  const sets = selecting === -1 ? 1 : values[selecting];
  const table = take(rows * hidden, 1);
  const bias = take(hidden, 4);
  const weights = take(sets * m * hidden, 2);
  const offsets = take(sets * m, 4);
  return { groups, values, features, starts, rows, selecting, sets, hidden, shift, m, table, bias, weights, offsets };
}

/** Checks that no sum that decoding can meet leaves 32 bits. */
function checkSums({ starts, rows, hidden, bias, table, weights, offsets }, level) {
  const largest = Float64Array.from(bias, Math.abs);
  starts.forEach((start, i) => {
    const end = i + 1 < starts.length ? starts[i + 1] : rows;
    for (let h = 0; h < hidden; h++) {
      let most = 0;
      for (let row = start; row < end; row++) most = Math.max(most, Math.abs(table[row * hidden + h]));
      largest[h] += most;
    }
  });
  const say = (sum) => refuseUnless(sum < 2 ** 30, `tables: level ${level + 1}: a sum leaves 32 bits`);
  largest.forEach(say);
  offsets.forEach((offset, i) => {
    let sum = Math.abs(offset);
    for (let h = 0; h < hidden; h++) sum += Math.abs(weights[i * hidden + h]) * largest[h];
    say(sum);
  });
}

/** Reads the header of bytes that begin with its length: { header, text, rest }. */
function readHeader(bytes) {
  const end = 4 + uint32(bytes, 0);
  refuseUnless(end <= bytes.length, "tables: the header goes beyond the end");
  const text = bytes.subarray(4, end);
  try {
    return { header: JSON.parse(utf8(text)) ?? {}, text, rest: bytes.subarray(end) };
  } catch (error) {
    throw new Refused(`tables: the header is not JSON: ${error.message}`);
  }
}

/** Reads the models of all levels, which a header describes; null where a level has none. */
async function readLevels({ header: { levels }, text, rest }, symbols, ofFlags) {
  const alike = Array.isArray(levels) && levels.length === symbols.length;
  refuseUnless(alike, "tables: the lists of levels differ in length");

  // Two walks over the same description: the first adds up the bytes, so that no more than these are allocated.
  let size = 4;
  const walk = (take) =>
    levels.map((entry, level) => entry === null ? null : readLevel(entry, level, symbols, ofFlags, take));
  walk((count, width) => {
    size += count * width;
    refuseUnless(size <= MAX_BODY, "tables: the arrays are too large");
  });
  const body = await inflate(rest, size, "tables: the body");
  refuseUnless(body.length === size, `tables: the body has ${body.length} bytes, its arrays ${size}`);
  refuseUnless(uint32(body, size - 4) === crc32(text), "tables: the header's check fails");
  let at = 0;
  const kinds = { 1: Int8Array, 2: Int16Array, 4: Int32Array };
  const read = walk((count, width) => {
    at += count * width;
    return new kinds[width](body.slice(at - count * width, at).buffer); // little-endian, as all of today's machines
  });
  read.forEach((entry, level) => entry && checkSums(entry, level));
  return read;
}

const hash = async (bytes) => [...new Uint8Array(await crypto.subtle.digest("SHA-256", bytes)).subarray(0, 3)];

/** Reads a file of tables of version 1. */
async function readFirst(bytes, fingerprint) {
  refuseUnless(bytes.length >= 12 && ascii(bytes, 0, 8) === "HRVQTAB1", "not a file of tables");
  const part = readHeader(bytes.subarray(8));
  const { geometry: { unit, margin, times } = {}, symbols, model } = part.header;
  refuseUnless(isCount(unit, 1) && isCount(margin), "tables: the geometry is out of range");
  const alike = Array.isArray(times) && Array.isArray(symbols) && times.length === symbols.length;
  refuseUnless(alike, "tables: the lists of levels differ in length");
  refuseUnless(isCount(symbols.length, 1, MAX_LEVELS), "tables: the number of levels is out of range");
  refuseUnless(times.every((t) => isCount(t, 1, MAX_TIMES)), "tables: the geometry is out of range");
  refuseUnless(symbols.every((m) => isCount(m, 1, MAX_SYMBOLS)), "tables: the symbols are out of range");
  refuseUnless(/^([0-9a-f]{2}){3,}$/.test(model), "tables: the digest of the model is not hexadecimal");
  const levels = await readLevels(part, symbols, false);
  const ofWeights = [0, 2, 4].map((i) => parseInt(model.slice(i, i + 2), 16));
  return { unit, margin, times, symbols, model, levels, fingerprints: [ofWeights, fingerprint ?? await hash(bytes)] };
}

/**
 * Reads a file of tables. `fingerprint` is the first 3 bytes of the SHA-256 of version 1, and `stopFingerprint` of
 * version 2, if they are known: a page that is not served by https or from this machine cannot compute them.
 *
 * The result has `stops`, the models of flags, only in version 2. `fingerprints` are of files without tables, by tables
 * and, in version 2, with stops.
 */
export async function readTables(bytes, fingerprint = null, stopFingerprint = null) {
  if (ascii(bytes, 0, 8) !== "HRVQTAB2") return readFirst(bytes, fingerprint);
  const end = 12 + uint32(bytes, 8);
  const tables = await readFirst(bytes.subarray(12, end), fingerprint);
  const stops = await readLevels(readHeader(bytes.subarray(end)), tables.symbols, true);
  const complete = stops.every((entry, level) => (entry === null) === (level === 0));
  refuseUnless(complete, "tables: a level has no model of its flags");
  refuseUnless(tables.times.every((t) => t === tables.times[0]), "tables: levels with stops have several grids");
  tables.fingerprints.push(stopFingerprint ?? await hash(bytes));
  return { ...tables, stops };
}
