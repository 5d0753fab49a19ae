# Thin on purpose: what each target does is written in scripts/dev.sh.
.PHONY: help run setup test test-long lint bench fuzz
.DEFAULT_GOAL := help

help run setup test test-long lint bench fuzz:
	@scripts/dev.sh $@
