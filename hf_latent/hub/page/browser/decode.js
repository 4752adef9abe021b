// Step 4 of 4: what one can do with latents before they are decoded.

import { weightedSum } from "./add_noise.js";

// Interpolate along an arc, which keeps the length (Shoemake 1985).
export function slerp(first, second, weight) {
  let [product, a, b] = [0, 0, 0];
  for (let i = 0; i < first.length; i += 1) {
    product += first[i] * second[i];
    a += first[i] ** 2;
    b += second[i] ** 2;
  }
  const cosine = product / Math.sqrt(Math.max(a * b, 1e-16));
  const angle = Math.acos(Math.min(1, Math.max(-1, cosine)));
  const sine = Math.sin(angle);
  if (sine < 1e-4) return weightedSum([1 - weight, weight], [first, second]);
  const weights = [Math.sin((1 - weight) * angle) / sine, Math.sin(weight * angle) / sine];
  return weightedSum(weights, [first, second]);
}

// Return latents with one channel's value set around a position, as a round brush does.
export function paint(latents, [, height, width], { channel, row, column, radius, value }) {
  const painted = Float32Array.from(latents);
  for (let y = 0; y < height; y += 1) {
    for (let x = 0; x < width; x += 1) {
      if ((y - row) ** 2 + (x - column) ** 2 <= radius ** 2) {
        painted[(channel * height + y) * width + x] = value;
      }
    }
  }
  return painted;
}

// Return a mask of latents that is 1 in the half to make anew.
export function halfMask([channels, height, width], kept) {
  const mask = new Float32Array(channels * height * width);
  for (let i = 0; i < mask.length; i += 1) {
    const [x, y] = [i % width, Math.floor(i / width) % height];
    const anew = {
      left: x >= width / 2,
      right: x < width / 2,
      top: y >= height / 2,
      bottom: y < height / 2,
    }[kept];
    mask[i] = anew ? 1 : 0;
  }
  return mask;
}
