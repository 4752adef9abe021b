// Step 2 of 4: noise, and its mixture with latents.

// Standard normal numbers: those of a seed are the same on every machine.
export function normal(length, seed) {
  const uniform = mulberry32(seed);
  const values = new Float32Array(length);
  for (let i = 0; i < length; i += 2) {
    // Box and Muller 1958.
    const radius = Math.sqrt(-2 * Math.log(1 - uniform()));
    const angle = 2 * Math.PI * uniform();
    values[i] = radius * Math.cos(angle);
    if (i + 1 < length) values[i + 1] = radius * Math.sin(angle);
  }
  return values;
}

// Uniform numbers in [0, 1): the generator mulberry32 (Tommy Ettinger 2017).
function mulberry32(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

export function weightedSum(weights, terms) {
  const sum = new Float32Array(terms[0].length);
  for (let i = 0; i < sum.length; i += 1) {
    let value = 0;
    for (let k = 0; k < weights.length; k += 1) value += weights[k] * terms[k][i];
    sum[i] = value;
  }
  return sum;
}

// Mix latents and noise by two weights, as in training.
export function addNoise(latents, noise, weights) {
  return weightedSum(weights, [latents, noise]);
}
