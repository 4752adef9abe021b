"""A model as a static page that runs it in a browser: `hf-latent export --format page`."""
