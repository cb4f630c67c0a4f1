// Files of codes: .hrv, .hrva, and a picture with transparency around a .hrv (docs/format.md).

import { ascii, crc32, crc8, inflate, pushVarint, Refused, refuseUnless, uint32, utf8, Varints } from "./bytes.js";
import { admits, decodeLevels, encodeLevels, gridsOf } from "./levels.js";
import { readTables } from "./tables.js";

// The limits of the page.
const MAX_PIXELS = 2 ** 26;
const MAX_INDEX = 2 ** 26;
const MAX_IMAGES = 2 ** 20;
const MAX_CODES = 2 ** 27;

/**
 * Reads a .hrv: { height, width, grids, levels, ends, fault }. `levels` are the codes of the levels that are whole,
 * row after row; bytes.subarray(0, ends[l]) is the file of the first l + 1 levels; `fault` says what is wrong after them.
 */
export function readImage(bytes, tables) {
  refuseUnless(bytes.length > 0 && bytes[0] >= 0xd4 && bytes[0] <= 0xd7, "not a file of codes");
  const [square, byTables] = [(bytes[0] >> 1) & 1, bytes[0] & 1];
  refuseUnless(tables, "no file of tables comes before it");
  const varints = new Varints(bytes, 4, 4);
  const height = varints.next() + 1;
  const width = square ? height : varints.next() + 1;
  refuseUnless(square || width !== height, "the width is written, though it is the height");
  refuseUnless(height * width <= MAX_PIXELS, `${height}x${width} pixels are more than ${MAX_PIXELS}`);
  refuseUnless(tables.fingerprints[byTables].every((byte, i) => byte === bytes[1 + i]), "it is of another model");
  const cells = gridsOf(tables, height, width).reduce((sum, [rows, columns]) => sum + rows * columns, 0);
  refuseUnless(cells <= MAX_CODES, `an image of ${height}x${width} pixels has more than ${MAX_CODES} codes`);
  const first = 0xff; // the register after a check
  let register = crc8(first, bytes, 0, varints.at);
  let checked = varints.at;
  const after = (stop) => {
    if (stop === bytes.length) return { wrong: "is cut short" };
    register = crc8(register, bytes, checked, stop + 1);
    checked = stop + 1;
    if (register !== 0) return { wrong: "is damaged" };
    register = first;
    return { stop: checked, ended: checked === bytes.length };
  };
  const count = tables.levels.length;
  const image = decodeLevels(tables, byTables, [height, width], count, bytes, checked, bytes.length, after);
  refuseUnless(image.levels.length > 0, `no level is whole: ${image.fault}`);
  return image;
}

/** The images of the block that begins at `at` and where it ends; null where there is no whole one. */
async function readBlock(tables, first, bytes, at) {
  if (at + 20 > bytes.length || ascii(bytes, at, at + 4) !== "HRVB") return null;
  const [count, ofIndex, ofRecords, check] = [4, 8, 12, 16].map((i) => uint32(bytes, at + i));
  const [index, records, next] = [at + 20, at + 20 + ofIndex, at + 20 + ofIndex + ofRecords];
  if (next > bytes.length || check !== crc32(bytes.subarray(at, at + 16), bytes.subarray(index, records))) return null;
  try {
    const plain = await inflate(bytes.subarray(index, records), MAX_INDEX, "the index");
    return { images: readRecords(tables, first, count, plain, bytes.subarray(records, next)), next };
  } catch (error) {
    if (error instanceof Refused) return null;
    throw error;
  }
}

/** The images of a block, from its index and records. */
function readRecords(tables, first, count, index, records) {
  const varints = new Varints(index, 0, 5);
  const levels = varints.next();
  const sizes = varints.next();
  refuseUnless(levels >= 1 && levels <= tables.levels.length, "the number of levels is out of range");
  refuseUnless(sizes === 1 || sizes === count, "the index has neither one size nor one for each image");
  refuseUnless(count <= MAX_IMAGES, "too many images");
  const pairs = Array.from({ length: sizes }, () => [varints.next() + 1, varints.next() + 1]);
  refuseUnless(pairs.every(([height, width]) => height * width <= MAX_PIXELS), "an image has too many pixels");
  const least = varints.next();
  const lengths = Array.from({ length: count }, () => varints.next() + least);
  const names = Array.from({ length: count }, () => {
    const length = varints.next();
    refuseUnless(varints.at + length <= index.length, "a name goes beyond the end of the index");
    varints.at += length;
    return utf8(index.subarray(varints.at - length, varints.at));
  });
  refuseUnless(varints.at === index.length, "bytes are left after the index");
  const sum = lengths.reduce((total, length) => total + length, 0);
  refuseUnless(sum === records.length, "the lengths are not those of the records");
  let start = 0;
  return lengths.map((length, i) => {
    const record = records.subarray(start, (start += length));
    return { name: names[i], ...readRecord(tables, first, pairs[sizes === 1 ? 0 : i], levels, record) };
  });
}

/** A record has one check, so its levels are whole together or not at all. */
function readRecord(tables, first, [height, width], count, record) {
  const damaged = { height, width, levels: [], grids: [], fault: "the record is damaged" };
  if (record.length === 0 || crc8(first, record, 0, record.length) !== 0) return damaged;
  const after = (stop) => ({ stop });
  const image = decodeLevels(tables, true, [height, width], count, record, 0, record.length - 1, after);
  return image.fault ? damaged : image;
}

function nextBlock(bytes, from) {
  for (let at = from; (at = bytes.indexOf(0x48, at)) >= 0; at++) if (ascii(bytes, at, at + 4) === "HRVB") return at;
  return -1;
}

/** Reads an archive: { images: [{ name, height, width, levels, fault }, ...], fault }. */
export async function readArchive(bytes) {
  refuseUnless(ascii(bytes, 0, 4) === "HRVA", "not an archive");
  refuseUnless(bytes.length >= 9, "the archive ends in its head");
  refuseUnless(bytes[4] === 1, `version ${bytes[4]} of archives is not known`);
  const end = 9 + uint32(bytes, 5);
  refuseUnless(end + 4 <= bytes.length, "the archive ends in its head");
  refuseUnless(uint32(bytes, end) === crc32(bytes.subarray(0, end)), "the check of the archive's head fails");
  const tables = await readTables(bytes.subarray(9, end));
  const images = [];
  let whole = end + 4; // where the last whole block ends
  let passed = false;
  for (let at = whole; at >= 0 && at < bytes.length; ) {
    const block = await readBlock(tables, 0xff, bytes, at);
    for (const image of block?.images ?? []) images.push(image);
    passed ||= block && at > whole;
    at = block ? (whole = block.next) : nextBlock(bytes, at + 1);
  }
  return { images, fault: passed || whole < bytes.length ? "bytes that are no whole block are passed over" : null };
}

/** Writes a .hrv of codes as `readImage` gives them; by tables where that makes it no larger. */
export function writeImage(tables, height, width, levels) {
  const files = [0, 1].map((byTables) => {
    const bytes = [0xd4 + 2 * (height === width) + byTables, ...tables.fingerprints[byTables]];
    pushVarint(bytes, height - 1);
    if (height !== width) pushVarint(bytes, width - 1);
    let register = crc8(0xff, bytes, 0, bytes.length);
    for (const stream of encodeLevels(tables, byTables, [height, width], levels)) {
      for (const byte of stream) bytes.push(byte);  // a spread of a long stream overflows the stack
      bytes.push(crc8(register, stream, 0, stream.length));
      register = 0xff;
    }
    return Uint8Array.from(bytes);
  });
  const grids = gridsOf(tables, height, width);
  const read = levels.every((_, level) => admits(tables, 1, level, grids, files[1].length));
  return read && tables.levels.some(Boolean) && files[1].length <= files[0].length ? files[1] : files[0];
}
