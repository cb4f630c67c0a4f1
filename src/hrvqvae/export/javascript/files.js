// Files of codes: .hrv (docs/format.md).

import { crc8, pushVarint, refuseUnless, Varints } from "./bytes.js";
import { decodeLevels, encodeLevels, gridsOf } from "./levels.js";

// The limits of the page.
const MAX_PIXELS = 2 ** 26;
const MAX_CODES = 2 ** 27;

/**
 * Reads a .hrv: { height, width, grids, levels, ends, fault }. `levels` are the codes of the levels that are whole,
 * row after row, -1 where a position has stopped; bytes.subarray(0, ends[p]) is the file of the first p + 1 parts (in
 * version 1, levels); `fault` says what is wrong after them.
 */
export function readImage(bytes, tables) {
  const first = bytes[0];
  const isSecond = first >= 0xe0 && first <= 0xef;
  refuseUnless(isSecond || (first >= 0xd4 && first <= 0xd7), "not a file of codes");
  const [kind, square, quality] = isSecond ? [2, first & 8, first & 7] : [first & 1, first & 2, 0];
  refuseUnless(tables, "no file of tables comes before it");
  const varints = new Varints(bytes, 4, 4);
  const height = varints.next() + 1;
  const width = square ? height : varints.next() + 1;
  refuseUnless(square || width !== height, "the width is written, though it is the height");
  refuseUnless(height * width <= MAX_PIXELS, `${height}x${width} pixels are more than ${MAX_PIXELS}`);
  refuseUnless(tables.fingerprints[kind]?.every((byte, i) => byte === bytes[1 + i]), "it is of another model");
  const cells = gridsOf(tables, height, width).reduce((sum, [rows, columns]) => sum + rows * columns, 0);
  refuseUnless(cells <= MAX_CODES, `an image of ${height}x${width} pixels has more than ${MAX_CODES} codes`);
  const image = decodeLevels(tables, kind, quality, [height, width], bytes, varints.at);
  refuseUnless(image.levels.length > 0, `no level is whole: ${image.fault}`);
  return image;
}

/**
 * Writes a .hrv of version 1, of codes as `readImage` gives them where no position has stopped; by tables where that
 * makes it no larger.
 */
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
  return tables.levels.some(Boolean) && files[1].length <= files[0].length ? files[1] : files[0];
}
