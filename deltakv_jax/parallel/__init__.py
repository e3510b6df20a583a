"""One model over several devices: where its parts lie, and what goes between them."""
