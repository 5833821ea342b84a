"""The demo's models: small networks that know drawn shapes."""
