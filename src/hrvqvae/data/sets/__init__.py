"""The data sets known by name, a module each; `config.entries.DATASETS` lists them. No torch."""
