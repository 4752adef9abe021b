// The model: three graphs, computed by onnxruntime, and the numbers of page.json.

async function fetchChecked(file, what) {
  const options = file.integrity ? { integrity: file.integrity } : {};
  let response;
  try {
    response = await fetch(file.address, options);
  } catch (error) {
    throw new Error(`${what} could not be loaded from ${file.address}: ${error.message}`);
  }
  if (!response.ok) throw new Error(`${what} is missing at ${file.address}`);
  return response;
}

// Return onnxruntime. Both files are compared with their hashes, and then run from memory.
async function loadRuntime([module, machineCode]) {
  const script = await (await fetchChecked(module, "The runtime")).blob();
  const address = URL.createObjectURL(new Blob([script], { type: "text/javascript" }));
  const runtime = await import(address);
  URL.revokeObjectURL(address);
  const binary = await (await fetchChecked(machineCode, "The runtime")).arrayBuffer();
  runtime.env.wasm.wasmBinary = binary;
  runtime.env.wasm.numThreads = 1; // more need headers that static hosts do not send
  return runtime;
}

function count(shape) {
  return shape.reduce((product, size) => product * size, 1);
}

// Load the model. `tell` is called with a sentence about what is being loaded.
export async function loadModel(tell) {
  tell("Loading the page's numbers …");
  const settings = await (await fetchChecked({ address: "page.json" }, "The model")).json();
  tell("Loading the runtime …");
  const runtime = await loadRuntime(settings.runtime);
  const sessions = {};
  for (const step of ["encode", "denoise", "decode"]) {
    tell(`Loading the step ${step} …`);
    const response = await fetchChecked({ address: `${step}.onnx` }, `The step ${step}`);
    const content = new Uint8Array(await response.arrayBuffer());
    sessions[step] = await runtime.InferenceSession.create(content);
  }
  return new Model(settings, runtime, sessions);
}

// All images and latents are Float32Arrays, one image after the other, channels first.
export class Model {
  constructor(settings, runtime, sessions) {
    Object.assign(this, { settings, runtime, sessions });
    this.imageShape = settings.image_shape;
    this.latentShape = settings.latent_shape;
    this.imageSize = count(this.imageShape);
    this.latentSize = count(this.latentShape);
    this.waiting = Promise.resolve(); // a session computes one call at a time
  }

  compute(step, inputs) {
    const next = this.waiting.then(async () => {
      const session = this.sessions[step];
      const named = session.inputNames.map((name, i) => [name, inputs[i]]);
      const { [session.outputNames[0]]: output } = await session.run(Object.fromEntries(named));
      return output.data;
    });
    this.waiting = next.catch(() => {});
    return next;
  }

  floats(values, shape) {
    return new this.runtime.Tensor("float32", values, [values.length / count(shape), ...shape]);
  }

  // Images in [-1, 1] to latents of unit variance.
  encode(images) {
    return this.compute("encode", [this.floats(images, this.imageShape)]);
  }

  // The denoiser's output for noisy latents, a timestep, and a label for each image.
  predict(noisyLatents, timestep, labels) {
    const images = noisyLatents.length / this.latentSize;
    const timesteps = new Float32Array(images).fill(timestep);
    const inputs = [this.floats(noisyLatents, this.latentShape), this.floats(timesteps, [])];
    if (this.settings.classes) {
      const numbers = BigInt64Array.from(labels, BigInt);
      inputs.push(new this.runtime.Tensor("int64", numbers, [images]));
    }
    return this.compute("denoise", inputs);
  }

  // Latents to images near [-1, 1].
  decode(latents) {
    return this.compute("decode", [this.floats(latents, this.latentShape)]);
  }
}
