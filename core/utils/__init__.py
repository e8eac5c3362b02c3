"""Names that hivemind 1.1 kept under ``hivemind.utils``: thin re-exports of where they live now."""
