// What is painted over an image, on a grid of side x side marks. props.value is JSON: {picture, side, marks}.
const radius = 0.06; // of the brush, as a share of a side
const pixels = 336;
let state = { picture: "", side: 1, marks: "" };
let marks = [];
let image = null;
let painting = false;

function draw() {
  const canvas = element.querySelector("canvas");
  if (!canvas) return;
  canvas.width = canvas.height = pixels;
  const pen = canvas.getContext("2d");
  pen.imageSmoothingEnabled = false;
  pen.fillStyle = "#888";
  pen.fillRect(0, 0, pixels, pixels);
  if (image) pen.drawImage(image, 0, 0, pixels, pixels);
  pen.fillStyle = "rgba(0, 158, 115, 0.55)";
  const cell = pixels / state.side;
  marks.forEach((mark, place) => {
    if (mark) pen.fillRect((place % state.side) * cell, Math.floor(place / state.side) * cell, cell, cell);
  });
}

function load() {
  let painted = null;
  try { painted = JSON.parse(props.value); } catch { return; }
  if (!painted || !painted.picture) return;
  const isNew = painted.picture !== state.picture;
  state = painted;
  marks = Array.from({ length: state.side ** 2 }, (_, place) => state.marks[place] === "1");
  if (!isNew) { draw(); return; }
  image = new Image();
  image.onload = draw;
  image.src = state.picture;
}

function paint(event) {
  const canvas = element.querySelector("canvas");
  const box = canvas.getBoundingClientRect();
  const x = (event.clientX - box.left) / box.width, y = (event.clientY - box.top) / box.height;
  marks.forEach((_, place) => {
    const column = ((place % state.side) + 0.5) / state.side, row = (Math.floor(place / state.side) + 0.5) / state.side;
    if (Math.hypot(column - x, row - y) <= Math.max(radius, 0.5 / state.side)) marks[place] = true;
  });
  draw();
}

function tell() {
  state = { ...state, marks: marks.map((mark) => (mark ? "1" : "0")).join("") };
  props.value = JSON.stringify(state);
  requestAnimationFrame(draw);
}

element.addEventListener("pointerdown", (event) => {
  if (event.target.tagName !== "CANVAS") return;
  painting = true;
  paint(event);
});
element.addEventListener("pointermove", (event) => { if (painting) paint(event); });
window.addEventListener("pointerup", () => {
  if (painting) tell();
  painting = false;
});
element.addEventListener("click", (event) => {
  if (event.target.tagName !== "BUTTON") return;
  marks = marks.map(() => false);
  tell();
});
watch("value", load);
load();
draw();
