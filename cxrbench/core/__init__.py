"""Floor 1: specs, stages, digests, store, records, registry. Standard library, pydantic and yaml only."""
