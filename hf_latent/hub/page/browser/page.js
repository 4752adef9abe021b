// The page: what happens when somebody uses a control.

import { addNoise, normal } from "./add_noise.js";
import { halfMask, paint, slerp } from "./decode.js";
import { concatenate, denoise } from "./denoise.js";
import { drawDifference, drawImage, drawLatents } from "./drawing.js";
import { addPixelNoise, psnr, readPicture } from "./encode.js";
import { loadModel } from "./model.js";

const FIRST_SEED = 1;
const TOGETHER = 16; // classes in one batch: more need much memory, and show nothing for long
const PAINT_KEYS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

const element = (id) => document.getElementById(id);
const number = (id) => Number(element(id).value);

let model;
// What the steps hand to each other.
const state = { clean: null, pixels: null, latents: null, drawn: null, painted: null, cursor: [0, 0] };

function tell(words) {
  element("status").textContent = words;
}

function showError(error) {
  element("error").textContent = error ? error.message : "";
  element("error").hidden = !error;
}

// Return a function that runs `work`, and once more if it was called meanwhile.
function latest(work) {
  let running = false;
  let again = false;
  return async () => {
    again = true;
    if (running) return;
    running = true;
    while (again) {
      again = false;
      showError(null); // before, for what `work` starts may fail too
      try {
        await work();
      } catch (error) {
        showError(error);
      }
    }
    running = false;
  };
}

function anySeed() {
  return Math.floor(Math.random() * 2 ** 32);
}

function nextFrame() {
  return new Promise((resolve) => {
    setTimeout(resolve, 0);
  });
}

// 1 Encode

const encodePicture = latest(async () => {
  state.pixels = addPixelNoise(state.clean, number("pixel-noise"), FIRST_SEED);
  element("pixel-noise-shown").textContent = number("pixel-noise");
  state.latents = await model.encode(state.pixels);
  const decoded = await model.decode(state.latents);
  drawImage(element("pixels"), state.pixels, model.imageShape);
  drawLatents(element("latents"), state.latents, model.latentShape);
  drawImage(element("round-trip"), decoded, model.imageShape);
  drawDifference(element("dropped"), state.pixels, decoded, model.imageShape);
  const own = psnr(state.pixels, decoded).toFixed(1);
  const words = [`The round trip is ${own} dB from the picture.`];
  if (number("pixel-noise")) {
    const clean = psnr(state.clean, decoded).toFixed(1);
    words.push(`It is ${clean} dB from the picture without noise.`);
  }
  element("encode-words").textContent = words.join(" ");
  await Promise.all([mixNoise(), walk()]);
});

async function takePicture(file) {
  try {
    state.clean = await readPicture(file, model.imageShape);
  } catch (error) {
    showError(error);
    return;
  }
  await encodePicture();
}

const drawOwnPicture = latest(async () => {
  element("picture").value = ""; // or the same file could not be chosen again
  const classes = model.settings.classes || [""];
  const label = Math.floor(Math.random() * classes.length);
  await showOwnPicture(normal(model.latentSize, anySeed()), label);
});

async function showOwnPicture(noise, label) {
  const { default_steps: steps, guidance_scale: guidance } = model.settings;
  const latents = await denoise(model, { steps, noise, labels: [label], guidance });
  state.clean = (await model.decode(latents)).map((x) => Math.min(1, Math.max(-1, x)));
  await encodePicture();
}

// 2 Add noise

const mixNoise = latest(async () => {
  const [level, ...weights] = model.settings.noising[number("level")];
  element("level-shown").textContent = level.toFixed(2);
  const noisy = addNoise(state.latents, normal(model.latentSize, FIRST_SEED), weights);
  drawLatents(element("noisy-latents"), noisy, model.latentShape);
  drawImage(element("noisy-decoded"), await model.decode(noisy), model.imageShape);
});

// 3 Denoise

function chosen() {
  return { steps: element("steps").value, guidance: number("guidance") };
}

function addToStrip(words, label) {
  const figure = document.createElement("figure");
  const canvas = document.createElement("canvas");
  const caption = document.createElement("figcaption");
  const item = document.createElement("li");
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", label);
  caption.textContent = words;
  figure.append(canvas, caption);
  item.append(figure);
  element("strip").append(item);
  return [canvas, figure];
}

async function drawSteps() {
  const start = performance.now();
  const labels = [number("class")];
  const { levels } = model.settings.steps[element("steps").value];
  const drawn = await denoise(model, {
    ...chosen(),
    labels,
    noise: normal(model.latentSize, number("seed")),
    afterStep: async (i, latents, clean) => {
      const words = `step ${i + 1}, from level ${levels[i].toFixed(2)}`;
      const [canvas, figure] = addToStrip(words, `prediction of step ${i + 1}`);
      drawImage(canvas, await model.decode(clean), model.imageShape);
      const small = document.createElement("canvas");
      small.setAttribute("role", "img");
      small.setAttribute("aria-label", `latents after step ${i + 1}`);
      drawLatents(small, latents, model.latentShape);
      figure.append(small);
      await nextFrame(); // to show it
    },
  });
  finishDrawing(drawn);
  const pixels = await model.decode(drawn);
  const [canvas] = addToStrip("the picture", "the picture");
  canvas.className = "end";
  drawImage(canvas, pixels, model.imageShape);
  element("denoise-words").textContent = `Drawn in ${seconds(start)} s.`;
}

function finishDrawing(latents) {
  state.drawn = latents;
  state.painted = latents;
  showPainted();
  walk();
}

async function drawClasses() {
  const start = performance.now();
  const { classes } = model.settings;
  const [seed, options] = [number("seed"), chosen()];
  for (let first = 0; first < classes.length; first += TOGETHER) {
    const names = classes.slice(first, first + TOGETHER);
    const labels = names.map((_, i) => first + i);
    const noise = concatenate(labels.map((label) => normal(model.latentSize, seed + label)));
    const images = await model.decode(await denoise(model, { ...options, labels, noise }));
    names.forEach((name, i) => {
      const pixels = images.subarray(i * model.imageSize, (i + 1) * model.imageSize);
      drawImage(addToStrip(name, name)[0], pixels, model.imageShape);
    });
    await nextFrame();
  }
  element("denoise-words").textContent = `${classes.length} classes drawn in ${seconds(start)} s.`;
}

// Both buttons fill one strip: what was asked for last is drawn after what is being drawn.
let drawing = drawSteps;
const fillStrip = latest(() => {
  element("strip").replaceChildren();
  element("denoise-words").textContent = "";
  return drawing();
});

function draw(work) {
  drawing = work;
  return fillStrip();
}

function seconds(start) {
  return ((performance.now() - start) / 1000).toFixed(1);
}

// 4 Decode

const walk = latest(async () => {
  if (!state.latents || !state.drawn) return;
  element("walk-shown").textContent = number("walk").toFixed(2);
  const between = slerp(state.latents, state.drawn, number("walk"));
  drawImage(element("walked"), await model.decode(between), model.imageShape);
});

const showPainted = latest(async () => {
  const canvas = element("painted-latents");
  const [, height, width] = model.latentShape;
  const first = number("channel") * height * width;
  const channel = state.painted.subarray(first, first + height * width);
  drawLatents(canvas, channel, [1, height, width]);
  if (document.activeElement === canvas) {
    const [row, column] = state.cursor;
    canvas.getContext("2d").fillStyle = "rgba(0, 160, 0, 0.6)";
    canvas.getContext("2d").fillRect(column + 0.25, row + 0.25, 0.5, 0.5);
  }
  element("brush-shown").textContent = number("brush");
  drawImage(element("painted"), await model.decode(state.painted), model.imageShape);
});

function paintAt(row, column) {
  const brush = { channel: number("channel"), row, column, radius: 1, value: number("brush") };
  state.painted = paint(state.painted, model.latentShape, brush);
  element("paint-words").textContent = `Painted at row ${row + 1}, column ${column + 1}.`;
  showPainted();
}

function paintUnder(event) {
  if (!event.buttons) return;
  const [, height, width] = model.latentShape;
  const box = event.target.getBoundingClientRect();
  const share = [(event.clientY - box.top) / box.height, (event.clientX - box.left) / box.width];
  state.cursor = [height, width].map((size, i) =>
    Math.min(size - 1, Math.max(0, Math.floor(share[i] * size))),
  );
  paintAt(...state.cursor);
}

function paintByKey(event) {
  const [, height, width] = model.latentShape;
  if (event.key === " ") paintAt(...state.cursor);
  else if (event.key in PAINT_KEYS) {
    const moved = state.cursor.map((x, i) => x + PAINT_KEYS[event.key][i]);
    state.cursor = moved.map((x, i) => Math.min([height, width][i] - 1, Math.max(0, x)));
    element("paint-words").textContent = `At row ${state.cursor[0] + 1}, column ${state.cursor[1] + 1}.`;
    showPainted();
  } else return;
  event.preventDefault();
}

const renew = latest(async () => {
  const mask = halfMask(model.latentShape, element("half").value);
  const noise = normal(model.latentSize, anySeed());
  const kept = { latents: state.latents, mask };
  const latents = await denoise(model, { ...chosen(), noise, labels: [number("class")], kept });
  drawImage(element("renewed"), await model.decode(latents), model.imageShape);
});

// Controls

function addOptions(id, values, words = values) {
  element(id).replaceChildren(...values.map((value, i) => new Option(words[i], value)));
}

function describe() {
  const { title, classes, distilled, steps, default_steps: defaultSteps, guidance_scale: guidance } = model.settings;
  document.title = title;
  element("title").textContent = title;
  const [values, fewer] = [model.imageSize, model.latentSize];
  const ratio = Number((values / fewer).toFixed(1));
  element("ratio").textContent =
    `${values.toLocaleString("en")} numbers become ${fewer.toLocaleString("en")}: ${ratio} times fewer.`;
  const channels = [...Array(model.latentShape[0]).keys()];
  addOptions("channel", channels, channels.map((i) => i + 1));
  addOptions("steps", Object.keys(steps));
  element("steps").value = defaultSteps;
  const slider = element("guidance");
  [slider.min, slider.max] = [Math.min(slider.min, guidance), Math.max(slider.max, guidance)];
  slider.value = guidance;
  element("guidance-shown").textContent = number("guidance");
  addOptions("class", (classes || [""]).map((_, i) => i), classes || ["any"]);
  for (const id of ["class-label", "draw-classes"]) element(id).hidden = !classes;
  element("guidance-label").hidden = !classes || distilled;
}

function connect() {
  const on = (id, event, work) => element(id).addEventListener(event, work);
  on("picture", "change", (event) => event.target.files[0] && takePicture(event.target.files[0]));
  on("own-picture", "click", drawOwnPicture);
  on("pixel-noise", "input", encodePicture);
  on("level", "input", mixNoise);
  on("guidance", "input", () => {
    element("guidance-shown").textContent = number("guidance");
  });
  on("draw", "click", () => draw(drawSteps));
  on("draw-classes", "click", () => draw(drawClasses));
  on("walk", "input", walk);
  for (const id of ["channel", "brush"]) on(id, "input", showPainted);
  for (const event of ["pointerdown", "pointermove"]) on("painted-latents", event, paintUnder);
  on("painted-latents", "keydown", paintByKey);
  for (const event of ["focus", "blur"]) on("painted-latents", event, showPainted);
  on("unpaint", "click", () => finishDrawing(state.drawn));
  on("renew", "click", renew);
  on("encode", "dragover", (event) => {
    event.preventDefault();
    element("encode").classList.add("over");
  });
  on("encode", "dragleave", () => element("encode").classList.remove("over"));
  on("encode", "drop", (event) => {
    event.preventDefault();
    element("encode").classList.remove("over");
    element("picture").value = "";
    if (event.dataTransfer.files[0]) takePicture(event.dataTransfer.files[0]);
  });
}

async function start() {
  try {
    model = await loadModel(tell);
    describe();
    await showOwnPicture(normal(model.latentSize, FIRST_SEED + 1), 0);
    await draw(drawSteps);
    await renew();
    connect();
    for (const controls of document.querySelectorAll("fieldset")) controls.disabled = false;
    tell("Ready.");
  } catch (error) {
    tell("The page cannot run its model.");
    showError(error);
  }
}

start();
