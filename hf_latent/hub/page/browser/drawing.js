// Images and latents as canvases.

function byte(value) {
  return Math.round(127.5 * (Math.min(1, Math.max(-1, value)) + 1));
}

// Blue for negative, white for 0, red for positive values; 2.5 standard deviations are full colour.
function latentColour(value) {
  const share = Math.min(1, Math.abs(value) / 2.5);
  const faded = Math.round(255 * (1 - share));
  return value < 0 ? [faded, faded, 255] : [255, faded, faded];
}

// Draw (C, H, W) pixels in [-1, 1].
export function drawImage(canvas, pixels, [channels, height, width]) {
  const positions = height * width;
  fill(canvas, width, height, (i) => {
    const values = [0, 1, 2].map((c) => byte(pixels[(channels === 1 ? 0 : c) * positions + i]));
    return [...values, channels === 4 ? byte(pixels[3 * positions + i]) : 255];
  });
}

// Draw the absolute difference of two images, bright where they differ, three times enlarged.
export function drawDifference(canvas, first, second, [channels, height, width]) {
  const positions = height * width;
  fill(canvas, width, height, (i) => {
    const values = [0, 1, 2].map((c) => {
      const k = (channels === 1 ? 0 : c) * positions + i;
      return byte(3 * Math.abs(first[k] - Math.min(1, Math.max(-1, second[k]))) - 1);
    });
    return [...values, 255];
  });
}

// Draw (c, h, w) latents, their channels side by side with a gap between them.
export function drawLatents(canvas, latents, [channels, height, width]) {
  const whole = channels * (width + 1) - 1;
  fill(canvas, whole, height, (i) => {
    const [row, column] = [Math.floor(i / whole), i % whole];
    const [channel, x] = [Math.floor(column / (width + 1)), column % (width + 1)];
    if (x === width) return [0, 0, 0, 0];
    return [...latentColour(latents[(channel * height + row) * width + x]), 255];
  });
}

function fill(canvas, width, height, colourOf) {
  canvas.width = width;
  canvas.height = height;
  const data = new ImageData(width, height);
  for (let i = 0; i < width * height; i += 1) data.data.set(colourOf(i), 4 * i);
  canvas.getContext("2d").putImageData(data, 0, 0);
}
