// A picture in 24 to 240 bytes, decoded and encoded in the page (docs/web.md).
//
//     import { decode, encode, load } from "./hrvqvae.js";
//     const model = await load("thumb.hrvw");
//     const bytes = encode(imageData, model, { bytes: 100 });
//     context.putImageData(decode(bytes, model), 0, 0);

import { ascii, crc32, inflate, Refused, refuseUnless, uint32, utf8 } from "./bytes.js";
import { readImage, writeImage } from "./files.js";
import { buildDecoder, buildEncoder, buildRefiner, Codebooks, Kernel } from "./network.js";
import { readTables } from "./tables.js";

export { Refused };

const MAX_BUNDLE = 2 ** 26; // bytes of weights
const KINDS = { i1: Int8Array, i2: Int16Array, f4: Float32Array };

/** Loads a bundle, which `hrvqvae export --web` writes, from its address. */
export async function load(address) {
  const answer = await fetch(address);
  refuseUnless(answer.ok, `${address}: ${answer.status} ${answer.statusText}`);
  return readBundle(new Uint8Array(await answer.arrayBuffer()));
}

/** Reads a bundle: the model that `decode` and `encode` take. Rejects with Refused what is damaged or no bundle. */
export async function readBundle(bytes) {
  refuseUnless(bytes.length >= 12 && ascii(bytes, 0, 8) === "HRVQWEB1", "not a bundle of this version");
  const end = 12 + uint32(bytes, 8);
  refuseUnless(end <= bytes.length, "the bundle is cut short");
  let header;
  try {
    header = JSON.parse(utf8(bytes.subarray(12, end)));
  } catch (error) {
    throw new Refused(`the bundle's header is damaged: ${error.message}`);
  }
  const body = await inflate(bytes.subarray(end), MAX_BUNDLE, "the bundle's body");
  refuseUnless(uint32(body, body.length - 4) === crc32(bytes.subarray(12, end)), "the bundle's header is damaged");
  let at = 0;
  const take = (length) => body.slice(at, (at += length));
  const tables = await readTables(take(header.tables), header.fingerprint, header.stop_fingerprint);
  const stored = {};
  for (const [name, kind, shape] of header.arrays) {
    const size = shape.reduce((product, side) => product * side, 1);
    stored[name] = { shape, data: new KINDS[kind](take(size * KINDS[kind].BYTES_PER_ELEMENT).buffer) };
  }
  refuseUnless(at + 4 === body.length, "the bundle's arrays are not as long as its body");
  return buildModel(header, tables, restore(stored));
}

/** Weights in floats, of arrays in 8 or 16 bits times NAME:scale of each row. */
function restore(stored) {
  const weights = {};
  for (const [name, { shape, data }] of Object.entries(stored)) {
    if (name.endsWith(":scale")) continue;
    const scale = stored[`${name}:scale`]?.data ?? [1];
    const row = data.length / scale.length;
    const whole = !stored[`${name}:scale`];
    weights[name] = { shape, data: whole ? data : Float32Array.from(data, (v, i) => v * scale[Math.floor(i / row)]) };
  }
  return weights;
}

function buildModel({ name, config, progressive }, tables, weights) {
  const { model } = config;
  const { channels } = config.data;
  const blocks = config.progressive.network.residual_blocks;
  const kernel = new Kernel();
  return {
    name, channels, model, tables,
    codebooks: new Codebooks(weights, model.quantizer),
    encoder: buildEncoder(kernel, weights, "encoder", model),
    decoder: buildDecoder(kernel, weights, "decoder", model),
    refiner: progressive ? buildRefiner(kernel, weights, "progressive.refiner", blocks) : null,
    prefixDecoder: progressive ? buildDecoder(kernel, weights, "progressive.decoder", model) : null,
  };
}

/** An ImageData, also where there is none (node). */
function makeImage(width, height, data) {
  return typeof ImageData === "undefined" ? { width, height, data } : new ImageData(data, width, height);
}

/**
 * Decodes a .hrv, or the beginning of one.
 *
 * Throws Refused where no level is whole, or the file is damaged or of another model. What comes after the whole levels
 * is passed over, so that a file can be drawn while it arrives; with `strict` a fault there is refused too. `levels`: at
 * most so many levels.
 */
export function decode(bytes, model, { strict = false, levels = Infinity } = {}) {
  refuseUnless(levels >= 1, "levels must be at least 1");
  const file = readImage(bytes, model.tables);
  refuseUnless(!strict || !file.fault, file.fault);
  const { height, width } = file;
  const codes = file.levels.slice(0, levels);
  const pixels = decodeCodes(codes, file.grids[0], model);
  const { padding } = model.model;
  const data = new Uint8ClampedArray(4 * width * height);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const [from, to] = [((y + padding) * pixels.width + x + padding) * pixels.channels, y * width + x];
      for (let c = 0; c < 3; c++) data[4 * to + c] = 127.5 * (pixels.data[from + (c % pixels.channels)] + 1);
      data[4 * to + 3] = 255;
    }
  }
  return makeImage(width, height, data);
}

/** Pixels in [-1, 1], with the padding, of codes on that grid. */
function decodeCodes(codes, grid, { codebooks, decoder, prefixDecoder, refiner }) {
  const latents = codebooks.lookup(codes, grid);
  const cases = Array.from(codes[0], (_, p) => codes.filter((level) => level[p] >= 0).length - 1);
  if (!refiner || cases.every((index) => index === codebooks.levels - 1)) return decoder(latents);
  return prefixDecoder(refiner(latents, cases));
}

/** Codes of an ImageData, an Int32Array for each level. */
function encodeCodes({ width, height, data }, { codebooks, encoder, channels, model }) {
  const { padding, stride } = model;
  const [rows, columns] = [height, width].map((side) => stride * Math.ceil((side + 2 * padding) / stride));
  const pixels = new Float32Array(rows * columns * channels);
  const inside = (place, side) => Math.min(Math.max(place - padding, 0), side - 1); // the border is repeated
  for (let y = 0; y < rows; y++) {
    for (let x = 0; x < columns; x++) {
      const [from, to] = [4 * (inside(y, height) * width + inside(x, width)), channels * (y * columns + x)];
      const grey = 0.299 * data[from] + 0.587 * data[from + 1] + 0.114 * data[from + 2];
      for (let c = 0; c < channels; c++) pixels[to + c] = (channels === 1 ? grey : data[from + c]) / 127.5 - 1;
    }
  }
  return codebooks.search(encoder({ height: rows, width: columns, channels, data: pixels }));
}

/**
 * Encodes an ImageData.
 *
 * `bytes`: the most levels that fit into so many bytes, at least one. `levels`: so many levels. What is
 * transparent becomes white, as in Python.
 */
export function encode(image, model, { bytes = Infinity, levels = Infinity } = {}) {
  refuseUnless(levels >= 1, "levels must be at least 1");
  const expected = 4 * image.width * image.height;
  refuseUnless(image.data.length === expected, `image data must have ${expected} values`);
  const codes = encodeCodes(onWhite(image), model).slice(0, levels);
  const file = writeImage(model.tables, image.height, image.width, codes);
  const ends = readImage(file, model.tables).ends.filter((end, i) => i === 0 || end <= bytes);
  return file.slice(0, ends[ends.length - 1]);
}

/**
 * Where each level ends: bytes.subarray(0, ends[l]) is a file of the first l + 1 levels. In a file whose positions stop
 * at levels of their own, where each part ends, which has several levels.
 */
export function levelEnds(bytes, model) {
  return readImage(bytes, model.tables).ends;
}

/** The image on a white ground. */
function onWhite({ width, height, data }) {
  const filled = data.map((value, i) => {
    const visible = data[i - (i % 4) + 3] / 255;
    return i % 4 < 3 ? value * visible + 255 * (1 - visible) : 255;
  });
  return { width, height, data: filled };
}
