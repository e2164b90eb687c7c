# Nunchi: the verbs. `make` alone lists them; CI calls the same ones.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup up down demo loop collect train register promote rollback restart export candidate triton gateway ui mlflow airflow
.PHONY: pretrain test chaos soak bench bench-peers audit lint lock

PY := .venv/bin/python
REPOSITORY ?= model_repository
CONFIG ?=
CHECKPOINT ?=
OSV ?=
TARGET ?=
DATA ?=
ARGS ?=

# Settings of .env, where there is one, for every command below.
ENV := set -a; [ ! -f .env ] || . ./.env; set +a;

help: ## list the verbs
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## make .venv from requirements.lock (every other verb does it when needed)
	@deploy/setup.sh

up: setup ## start Triton, the gateway and the page, wait for a first prediction, print the URLs (Ctrl-C stops all)
	@$(ENV) exec $(PY) -m deploy.local up

down: setup ## stop what `make up` started
	@$(ENV) $(PY) -m deploy.local down

demo: setup ## the whole loop on the bundled reviews: search, register, promote, export, serve, predict (var/demo)
	@$(ENV) exec $(PY) -m deploy.demo

loop: setup ## new reviews become a new answer, under load: crawl, retrain, gates, promote, export, Slack; then a drill (var/loop)
	@deploy/setup.sh airflow
	@$(ENV) exec $(PY) -m deploy.loop $(ARGS)

collect: setup ## what is new on a site of reviews, cleaned and labelled by its stars: SITE=yaml ARGS="--since 2026-11-30"
	@$(ENV) $(PY) -m training.collection crawl --site $(or $(SITE),$(error collect wants SITE=path/to/site.yaml)) $(ARGS)

train: setup ## search for the best model: CONFIG=yaml ARGS="--train.epochs 3 --tune.trials 4"; ARGS=--resume goes on
	@$(ENV) exec $(PY) -m training.tune $(if $(CONFIG),--config $(CONFIG)) $(ARGS)

register: setup ## read test once for the best trial of the last search, make it a Candidate: ARGS=search
	@$(ENV) $(PY) -m training.registry register $(ARGS)

promote: setup ## make a Candidate the Champion, if it passes the gates: VERSION=number
	@$(ENV) $(PY) -m training.registry promote $(or $(VERSION),$(error promote wants VERSION=number)) $(ARGS)

rollback: setup ## answer from the version before this one, at once; then make its model the Champion again
	@$(ENV) $(PY) -m export.rollback --repository $(REPOSITORY)

restart: setup ## a new gateway in place of the running one, without a lost request
	@$(ENV) $(PY) -m deploy.local restart

export: setup ## publish the Champion and let it answer: DATA=labelled reviews CHECKPOINT=folder ARGS=--watch; TARGET=torchserve or gpu packs it
	@$(ENV) $(PY) -m export$(TARGET:%=.%) $(if $(filter gpu,$(TARGET)),,--repository $(REPOSITORY)) $(if $(CHECKPOINT),--checkpoint $(CHECKPOINT)) $(if $(DATA),--data $(DATA)) $(ARGS)

candidate: setup ## a version on trial beside the one that answers: ARGS="start --mode shadow --share 0.2", promote, end, status
	@$(ENV) $(PY) -m export.candidate $(ARGS)

mlflow: setup ## MLflow's pages, in the foreground
	@$(ENV) exec $(PY) -m training.tracking serve

airflow: setup ## Airflow's pages and scheduler, in the foreground: http://127.0.0.1:8081; or any command of it: ARGS="dags unpause retrain"
	@deploy/setup.sh airflow
	@$(ENV) exec .venv-airflow/bin/python -m dags $(ARGS)

pretrain: setup ## train nano's encoder from scratch: DATA=folder with NSMC's files (else downloaded)
	@$(ENV) $(PY) -m training.pretrain $(if $(DATA),--data $(DATA)) $(ARGS)

triton: setup ## the embedded Triton alone, in the foreground
	@$(ENV) exec $(PY) -m server

gateway: setup ## the gateway alone, in the foreground
	@$(ENV) exec $(PY) -m gateway

ui: setup ## the page alone, in the foreground
	@$(ENV) exec $(PY) -m ui

test: lint ## every test, the end-to-end ones against the real servers included
	@tests/run.sh

chaos: setup ## releases, faults and overload under load, in full length; figures in var/chaos/figures.md
	$(PY) -m pytest tests/chaos --full --ignore tests/chaos/test_soak.py $(ARGS)

soak: setup ## 20 minutes at 70 % load with a promotion every minute; figures and a picture in var/chaos
	$(PY) -m pytest tests/chaos/test_soak.py --full --timeout 2400 $(ARGS)

bench: setup ## throughput and latency, against other servers when CHECKPOINT=folder or kcbert-shape: DATA=texts ARGS="--cores 0,1 --rounds 3 --seconds 6"
	@$(ENV) $(PY) -m loadtest.bench $(if $(CHECKPOINT),--checkpoint $(CHECKPOINT)) $(if $(DATA),--data $(DATA)) $(ARGS)

bench-peers: setup ## infinity, for `make bench` to measure too, in an environment of its own (.venv-peers)
	@loadtest/peers/setup.sh

audit: setup ## known vulnerabilities of every package in requirements.lock, asked of osv.dev (or OSV=url)
	@deploy/audit.sh $(OSV)

lint: setup ## ruff and the import directions between the rooms
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/lint-imports

lock: setup ## resolve pyproject.toml anew into requirements.lock, and dags/requirements.in beside it
	rm -f requirements.lock
	UV_FIND_LINKS="$${PIP_FIND_LINKS:-}" .venv/bin/uv pip compile --quiet --python-version 3.11 --group dev \
	  --no-emit-find-links --no-annotate --no-header --output-file requirements.lock
	sed -i 's/^\(torch==[0-9.]*\)+cpu$$/\1/' requirements.lock
	rm -f dags/requirements.lock
	.venv/bin/uv pip compile --quiet --python-version 3.11 dags/requirements.in --no-annotate --no-header --output-file dags/requirements.lock
