"""Tables as files for papers and programs: LaTeX, Parquet and JSON with a published schema."""
