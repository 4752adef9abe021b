// Step 3 of 4: noise to latents. The steps are tables of page.json, see hf_latent/hub/page/steps.py.

import { addNoise, weightedSum } from "./add_noise.js";

export function concatenate(arrays) {
  const whole = new Float32Array(arrays.reduce((sum, x) => sum + x.length, 0));
  let start = 0;
  for (const part of arrays) {
    whole.set(part, start);
    start += part.length;
  }
  return whole;
}

// Evaluate the denoiser. With guidance: null + guidance (conditional - null), both in one batch.
async function predict(model, noisyLatents, timestep, labels, guidance) {
  const { classes } = model.settings;
  if (!classes || guidance === 1) return model.predict(noisyLatents, timestep, labels);
  const both = concatenate([noisyLatents, noisyLatents]);
  const nulls = labels.map(() => classes.length);
  const outputs = await model.predict(both, timestep, [...labels, ...nulls]);
  const [conditional, unconditional] = [0, 1].map((i) =>
    outputs.subarray(i * noisyLatents.length, (i + 1) * noisyLatents.length),
  );
  return weightedSum([guidance, 1 - guidance], [conditional, unconditional]);
}

// Denoise. `noise` is of one or several images, and `labels` has the label of each.
// `afterStep(i, latents, clean)` is awaited after step i; `clean` is its prediction of clean latents.
// `kept`: { latents, mask } keeps the latents where the mask, of the noise's length, is 0.
export async function denoise(model, { steps, noise, labels, guidance, kept, afterStep }) {
  const table = model.settings.steps[steps];
  const terms = [noise];
  let previous = noise;
  let latents = noise;
  for (let i = 0; i < table.timesteps.length; i += 1) {
    let input = weightedSum(table.inputs[i], terms);
    if (kept && i) input = choose(kept.mask, input, previous);
    const scale = table.guided[i] ? guidance : 1;
    const output = await predict(model, input, table.timesteps[i], labels, scale);
    terms.push(output);
    latents = weightedSum(table.latents[i], terms);
    if (kept) {
      previous = addNoise(kept.latents, noise, table.kept[i]);
      latents = choose(kept.mask, latents, previous);
    }
    if (afterStep) await afterStep(i, latents, weightedSum(table.clean[i], [input, output]));
  }
  return latents;
}

function choose(mask, where, elsewhere) {
  return where.map((value, i) => (mask[i] ? value : elsewhere[i]));
}
