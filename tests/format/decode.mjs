// The codes in files of codes, by the JavaScript module.
//
//     node decode.mjs TABLES FILE.hrv...
//
// Each argument is known by its first bytes. A file of tables is used for the .hrv files after it.
// One line of JSON is printed for each file that is not a file of tables:
//
//     .hrv   {"file", "height", "width", "levels": [rows of codes of level 1, of level 2, ...], "fault"}
//     else   {"file", "refused": why}, and the exit code is 2
//
// "levels" are those that are whole. "fault" says what lies after them, and is null where the file is read to its end.

import { readFileSync } from "node:fs";
import process from "node:process";
import { Refused } from "../../src/hrvqvae/export/javascript/bytes.js";
import { readImage } from "../../src/hrvqvae/export/javascript/files.js";
import { readTables } from "../../src/hrvqvae/export/javascript/tables.js";

function inRows({ height, width, grids, levels, fault }) {
  const rows = levels.map((flat, level) => {
    const [count, columns] = grids[level];
    return Array.from({ length: count }, (_, y) => Array.from(flat.subarray(y * columns, (y + 1) * columns)));
  });
  return { height, width, levels: rows, fault };
}

let tables = null;
for (const file of process.argv.slice(2)) {
  let result;
  try {
    const bytes = readFileSync(file);
    if (bytes.toString("latin1", 0, 4) === "HRVQ") {
      tables = null;
      tables = await readTables(bytes);
      continue;
    }
    result = inRows(readImage(bytes, tables));
  } catch (error) {
    if (!(error instanceof Refused) && !error.syscall) throw error;
    result = { refused: error.message };
    process.exitCode = 2;
  }
  process.stdout.write(`${JSON.stringify({ file, ...result })}\n`);
}
