"""Configs, parsed and checked: the only readers of a config's keys."""
