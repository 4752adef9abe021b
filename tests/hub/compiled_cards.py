"""To import it compiles the cards' templates, once for all programs that are forked afterwards."""

from hf_latent.hub.card.render import ENVIRONMENT

for template in ENVIRONMENT.list_templates(extensions=["md"]):
    ENVIRONMENT.get_template(template)
