"""Configuration: schema of the keys, YAML loading and overrides, `--help-config`."""
