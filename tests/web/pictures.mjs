// What the module in web/ makes of files and images, for tests.
//
//     node pictures.mjs decode BUNDLE FILES OUT     FILES: JSON, a list of texts in base64
//     node pictures.mjs encode BUNDLE IMAGES OUT    IMAGES: JSON, a list of {width, height, data (RGBA, base64), bytes}
//
//     node pictures.mjs bundles - BUNDLES OUT     BUNDLES: JSON, a list of texts in base64
//
// OUT gets JSON, a list of {width, height, data} or {refused}; of encode, of files in base64; of bundles, of names.

import { readFileSync, writeFileSync } from "node:fs";
import process from "node:process";
import { decode, encode, readBundle, Refused } from "../../src/hrvqvae/export/javascript/hrvqvae.js";

// a page that is not served by https cannot compute hashes
Object.defineProperty(globalThis, "crypto", { value: undefined });

const [what, bundle, input, out] = process.argv.slice(2);
const base64 = (bytes) => Buffer.from(bytes).toString("base64");
const bytesOf = (text) => new Uint8Array(Buffer.from(text, "base64"));

function result(entry, model) {
  if (what === "encode") return base64(encode({ ...entry, data: new Uint8ClampedArray(bytesOf(entry.data)) }, model, entry));
  const { width, height, data } = decode(bytesOf(entry), model);
  return { width, height, data: base64(data) };
}

/** What `compute` gives, or { refused: why }. */
async function orRefused(compute) {
  try {
    return await compute();
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    return { refused: error.message };
  }
}

const entries = JSON.parse(readFileSync(input));
const begin = performance.now();
const results = [];
if (what === "bundles") {
  for (const entry of entries) results.push(await orRefused(async () => (await readBundle(bytesOf(entry))).name));
} else {
  const model = await readBundle(readFileSync(bundle));
  for (const entry of entries) results.push(await orRefused(() => result(entry, model)));
}
process.stdout.write(`${(performance.now() - begin) / entries.length} ms each\n`);
writeFileSync(out, JSON.stringify(results));
