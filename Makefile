# Nunchi: the verbs. `make` alone lists them; CI calls the same ones.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup up down export triton gateway test lint lock pretrain finetune

PY := .venv/bin/python
REPOSITORY ?= model_repository
CHECKPOINT ?= var/checkpoints/nano
DATA ?=

# Settings of .env, where there is one, for every command below.
ENV := set -a; [ ! -f .env ] || . ./.env; set +a;

help: ## list the verbs
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## make .venv from requirements.lock (every other verb does it when needed)
	@deploy/setup.sh

up: setup ## start Triton and the gateway, wait for a first prediction, print the URLs (Ctrl-C stops all)
	@$(ENV) exec $(PY) -m deploy.local up

down: setup ## stop what `make up` started
	@$(ENV) $(PY) -m deploy.local down

pretrain: setup ## train nano's encoder from scratch: DATA=folder with NSMC's files (else downloaded)
	@$(ENV) $(PY) -m training.pretrain $(if $(DATA),--data $(DATA))

finetune: setup ## fine-tune it into a classifier: DATA=folder with NSMC's files (else downloaded)
	@$(ENV) $(PY) -m training.finetune $(if $(DATA),--data $(DATA))

export: setup ## publish a checkpoint as the next version: CHECKPOINT=folder REPOSITORY=folder DATA=labelled TSV
	@$(ENV) $(PY) -m export --checkpoint $(CHECKPOINT) --repository $(REPOSITORY) $(if $(DATA),--data $(DATA))

triton: setup ## the embedded Triton alone, in the foreground
	@$(ENV) exec $(PY) -m server

gateway: setup ## the gateway alone, in the foreground
	@$(ENV) exec $(PY) -m gateway

test: lint ## every test, the end-to-end ones against the real servers included
	$(PY) -m pytest

lint: setup ## ruff and the import directions between the rooms
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/lint-imports

lock: setup ## resolve pyproject.toml anew into requirements.lock
	rm -f requirements.lock
	UV_FIND_LINKS="$${PIP_FIND_LINKS:-}" .venv/bin/uv pip compile --quiet --python-version 3.11 --group dev pyproject.toml \
	  --no-emit-find-links --no-annotate --no-header --output-file requirements.lock
	sed -i 's/^\(torch==[0-9.]*\)+cpu$$/\1/' requirements.lock
