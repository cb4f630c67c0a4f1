"""The data sets known by name, a module each; `config.registry.DATASETS` lists them. No torch."""
