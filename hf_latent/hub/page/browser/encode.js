// Step 1 of 4: a picture to pixels, and pixels to latents.

import { normal, weightedSum } from "./add_noise.js";

// Read a picture file. Throws an Error in words.
export async function readPicture(file, shape) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    throw new Error(`${file.name || "This"} is no picture that the browser can read: choose a PNG, JPEG or WebP file.`);
  }
  return toPixels(bitmap, shape);
}

// Cut the middle out of a picture, resize it, and return (C, H, W) in [-1, 1].
export function toPixels(source, [channels, height, width]) {
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const scale = Math.max(width / source.width, height / source.height);
  const [w, h] = [source.width * scale, source.height * scale];
  context.imageSmoothingQuality = "high";
  if (channels < 4) {
    context.fillStyle = "white"; // behind transparent pixels
    context.fillRect(0, 0, width, height);
  }
  context.drawImage(source, (width - w) / 2, (height - h) / 2, w, h);
  return fromBytes(context.getImageData(0, 0, width, height).data, channels);
}

function fromBytes(bytes, channels) {
  const positions = bytes.length / 4;
  const pixels = new Float32Array(channels * positions);
  for (let i = 0; i < positions; i += 1) {
    const [red, green, blue] = bytes.subarray(4 * i, 4 * i + 3);
    if (channels === 1) {
      // ITU-R BT.601, as Pillow's mode L.
      pixels[i] = (0.299 * red + 0.587 * green + 0.114 * blue) / 127.5 - 1;
      continue;
    }
    for (let c = 0; c < channels; c += 1) {
      pixels[c * positions + i] = bytes[4 * i + c] / 127.5 - 1;
    }
  }
  return pixels;
}

// Add normal noise of a standard deviation to pixels, and stay in [-1, 1].
export function addPixelNoise(pixels, deviation, seed) {
  const noise = normal(pixels.length, seed);
  return weightedSum([1, deviation], [pixels, noise]).map((x) => Math.min(1, Math.max(-1, x)));
}

// Peak signal-to-noise ratio in dB; images in [-1, 1], the data range of [0, 1] being 1.
export function psnr(first, second) {
  let sum = 0;
  for (let i = 0; i < first.length; i += 1) {
    const clamped = Math.min(1, Math.max(-1, second[i]));
    sum += ((first[i] - clamped) / 2) ** 2;
  }
  return -10 * Math.log10(Math.max(sum / first.length, 1e-10));
}
