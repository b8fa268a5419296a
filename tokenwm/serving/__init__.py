"""The world model as a service: wire (arrays in bytes) → batching → server; client for callers."""
