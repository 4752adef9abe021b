"""`python -m hf_latent`: the `hf-latent` command."""

from hf_latent.cli import main

if __name__ == "__main__":
    main()
