"""The systems, a folder each, and the contract that they fulfil; `config.registry.SYSTEMS` lists them. No torch."""
