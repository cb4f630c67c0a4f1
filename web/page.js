// The page: a picture at a few bytes, beside what others make of as many.

import { decode, encode, levelEnds, load, readBundle } from "../src/hrvqvae/export/javascript/hrvqvae.js";

const at = (id) => document.getElementById(id);
const say = (text, failed = false) => {
  at("status").textContent = text;
  at("status").className = failed ? "failed" : "";
};

const bytesOf = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));

/** The model: inside a page in one file, else beside the page. */
async function loadModel() {
  const inside = at("bundle");
  return inside ? readBundle(bytesOf(inside.textContent.trim())) : load("thumb.hrvw");
}

async function loadExamples() {
  const inside = at("examples-data");
  if (inside) return JSON.parse(inside.textContent);
  const answer = await fetch("examples.json");
  return answer.ok ? answer.json() : [];
}

/** A library that the page compares with; null where it is not installed (npm install in web/). */
async function library(name, path) {
  if (globalThis.libraries) return globalThis.libraries[name];
  return import(path).catch(() => null);
}

function canvasOf(width, height) {
  const canvas = document.createElement("canvas");
  Object.assign(canvas, { width, height });
  return canvas;
}

/** An image drawn to that size, halved as often as it can be, which is sharp and has no aliasing. */
function drawn(source, width, height) {
  let [from, w, h] = [source, source.width, source.height];
  for (let last = false; !last; ) {
    last = w / 2 < width || h / 2 < height;
    [w, h] = last ? [width, height] : [Math.round(w / 2), Math.round(h / 2)];
    const next = canvasOf(w, h);
    const context = next.getContext("2d", { willReadFrequently: true });
    context.imageSmoothingQuality = "high";
    context.drawImage(from, 0, 0, w, h);
    from = next;
  }
  return from;
}

const pixelsOf = (canvas) => canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);

/** dB of the pixels on grey, where they are transparent. */
function psnr(a, b) {
  let sum = 0;
  const seen = (data, i) => (data[i] - 128) * (data[i - (i % 4) + 3] / 255);
  for (let i = 0; i < a.data.length; i++) if (i % 4 < 3) sum += (seen(a.data, i) - seen(b.data, i)) ** 2;
  return 10 * Math.log10(255 ** 2 / Math.max(sum / (a.data.length * 0.75), 1e-9));
}

function show(name, note, image, original) {
  const figure = at(`figure-${name}`) ?? document.createElement("figure");
  if (!figure.id) at("results").append(figure);
  figure.id = `figure-${name}`;
  const title = document.createElement("b");
  title.textContent = name;
  const caption = document.createElement("figcaption");
  const dB = image && original ? `${psnr(image, original).toFixed(1)} dB` : "";
  caption.append(title, [note, dB].filter(Boolean).join(", "));
  const canvas = canvasOf(image?.width ?? 1, image?.height ?? 1);
  if (image) canvas.getContext("2d").putImageData(image, 0, 0);
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", `${name}: ${note} ${dB}`);
  figure.replaceChildren(canvas, caption);
}

/** The nearest number of components, at most 9 a side, for so many characters. */
function components(bytes, width, height) {
  let best = [1, 1];
  for (let x = 1; x <= 9; x++) {
    for (let y = 1; y <= 9; y++) {
      const fits = 4 + 2 * x * y <= bytes && x * y >= best[0] * best[1];
      const squarer = Math.abs(Math.log((x * height) / (y * width))) <= Math.abs(Math.log((best[0] * height) / (best[1] * width)));
      if (fits && (x * y > best[0] * best[1] || squarer)) best = [x, y];
    }
  }
  return best;
}

async function decodedBy(browser, width, height) {
  return pixelsOf(drawn(await createImageBitmap(browser), width, height));
}

/** A WebP file without what is no part of the picture: browsers put a profile of some 450 bytes into each. */
async function bareWebp(blob) {
  const bytes = new Uint8Array(await blob.arrayBuffer());
  const sizeAt = (place) => new DataView(bytes.buffer).getUint32(place, true);
  for (let place = 12; place < bytes.length; place += 8 + sizeAt(place + 4) + (sizeAt(place + 4) % 2)) {
    const name = String.fromCharCode(...bytes.subarray(place, place + 4));
    if (name === "ALPH") return blob; // transparency belongs to the picture
    if (name !== "VP8 ") continue;
    const chunk = bytes.subarray(place, place + 8 + sizeAt(place + 4) + (sizeAt(place + 4) % 2));
    const head = Uint8Array.from([82, 73, 70, 70, 0, 0, 0, 0, 87, 69, 66, 80]); // RIFF, length, WEBP
    new DataView(head.buffer).setUint32(4, chunk.length + 4, true);
    return new Blob([head, chunk], { type: "image/webp" });
  }
  return blob;
}

/** The WebP of the best quality that fits, or else the smallest: the browser's encoder. */
async function webp(canvas, bytes) {
  const file = async (quality) => bareWebp(await new Promise((done) => canvas.toBlob(done, "image/webp", quality)));
  let [low, high, best] = [0, 1, await file(0)];
  for (let i = 0; i < 6 && best.size <= bytes; i++) {
    const middle = (low + high) / 2;
    const tried = await file(middle);
    if (tried.size <= bytes) [low, best] = [middle, tried];
    else high = middle;
  }
  return best.type === "image/webp" ? best : null;
}

const state = { picture: null, example: null, file: null, ends: [], turn: 0 };
const [model, examples, blurhash, thumbhash] = await Promise.all([
  loadModel(), loadExamples(),
  library("blurhash", "./node_modules/blurhash/dist/index.mjs"), library("thumbhash", "./node_modules/thumbhash/thumbhash.js"),
]);

/** Makes a thumbnail of the picture and its file of all levels. */
function begin() {
  const { picture } = state;
  const side = Number(document.querySelector("[name=side]:checked").value);
  const scale = side / Math.max(picture.width, picture.height);
  const [width, height] = [picture.width, picture.height].map((length) => Math.max(1, Math.round(length * scale)));
  state.canvas = drawn(picture, width, height);
  state.original = pixelsOf(state.canvas);
  const started = performance.now();
  state.file = encode(state.original, model);
  state.ends = levelEnds(state.file, model);
  say(`encoded in ${(performance.now() - started).toFixed(0)} ms; the smallest picture has ${state.ends[0]} bytes`);
  return compare();
}

/** Draws all for the bytes that the slider says. */
async function compare() {
  const turn = ++state.turn;
  const { original, canvas } = state;
  const { width, height } = original;
  const limit = Number(at("bytes").value);
  at("limit").textContent = limit;
  const end = state.ends.filter((length, i) => i === 0 || length <= limit).at(-1);
  const file = state.file.subarray(0, end);
  show("Original", `${width}×${height}`, original);
  show("thumb", `${end} bytes`, decode(file, model), original);
  at("code").value = btoa(String.fromCharCode(...file));
  if (blurhash) {
    const [x, y] = components(limit, width, height);
    const text = blurhash.encode(original.data, width, height, x, y);
    show("BlurHash", `${text.length} bytes`, new ImageData(blurhash.decode(text, width, height), width, height), original);
  }
  if (thumbhash) {
    const hash = thumbhash.rgbaToThumbHash(width, height, original.data);
    const { w, h, rgba } = thumbhash.thumbHashToRGBA(hash);
    const own = canvasOf(w, h);
    own.getContext("2d").putImageData(new ImageData(Uint8ClampedArray.from(rgba), w, h), 0, 0);
    show("ThumbHash", `${hash.length} bytes`, pixelsOf(drawn(own, width, height)), original);
  }
  const blob = await webp(canvas, limit);
  const pixels = blob && (await decodedBy(blob, width, height));
  if (turn === state.turn && blob) show("WebP", `${blob.size} bytes`, pixels, original);
  const avif = state.example?.avif?.[width]?.filter(([bytes], i) => i === 0 || bytes <= limit).at(-1);
  const drawnAvif = avif && (await decodedBy(new Blob([bytesOf(avif[1])], { type: "image/avif" }), width, height).catch(() => null));
  if (turn !== state.turn) return;
  if (drawnAvif) show("AVIF", `frame ${avif[0]} bytes`, drawnAvif, original);
  else at("figure-AVIF")?.remove();
}

async function open(blob, example = null) {
  try {
    state.picture = await createImageBitmap(blob);
  } catch {
    return say("This is no picture that the browser can read.", true);
  }
  state.example = example;
  for (const button of at("examples").children) button.ariaPressed = String(button.example === example);
  return begin();
}

for (const example of examples) {
  const button = document.createElement("button");
  const image = new Image();
  Object.assign(image, { src: `data:image/png;base64,${example.png}`, alt: example.name });
  Object.assign(button, { type: "button", example, ariaPressed: "false" });
  button.append(image);
  button.onclick = () => open(new Blob([bytesOf(example.png)]), example);
  at("examples").append(button);
}
at("file").onchange = ({ target }) => target.files[0] && open(target.files[0]);
at("bytes").oninput = () => state.file && compare();
at("sides").onchange = () => state.picture && begin();
at("copy").onclick = async () => {
  try {
    await navigator.clipboard.writeText(at("code").value);
  } catch {
    at("code").select();
    document.execCommand("copy"); // where a page may not write to the clipboard by itself
  }
  say(`copied ${at("code").value.length} characters`);
};
for (const name of ["dragover", "dragleave", "drop"]) {
  addEventListener(name, (event) => {
    event.preventDefault();
    at("drop").classList.toggle("over", name === "dragover");
    if (name === "drop" && event.dataTransfer.files[0]) open(event.dataTransfer.files[0]);
  });
}
addEventListener("paste", ({ clipboardData }) => clipboardData.files[0] && open(clipboardData.files[0]));
if (examples.length) at("examples").firstChild.click();
