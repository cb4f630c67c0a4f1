"""Where images lie: files, tars, Parquet, arrays. Each form is a module, and nothing outside asks which one it is."""
