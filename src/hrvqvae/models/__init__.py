"""The systems, a folder each, and the contract that they fulfil; `config.entries.SYSTEMS` lists them. No torch."""
