"""The laws of parameters at initialisation, read off the jaxpr of `init` (used by `infnet.priors`)."""
